"""The command ``mkdir``."""

import click

from ftpkit.cli.exit_codes import run_each
from ftpkit.cli.format import directory_name
from ftpkit.cli.server_option import connected, server_options
from ftpkit.net.address import Url


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@server_options
def mkdir(names: tuple[str, ...], url: Url | None, timeout: float) -> int:
    """Create each directory NAME, and its parents.

    A directory that already exists is no error.

    \b
    Example:  ftpkit mkdir backups/2026
    """
    with connected(url, timeout) as client:
        return run_each(map(directory_name, names), client.mkdir)
