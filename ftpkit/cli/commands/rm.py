"""The command ``rm``."""

from functools import partial

import click

from ftpkit.cli.exit_codes import run_each
from ftpkit.cli.server_option import connect, server_options
from ftpkit.net.address import Url


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("-r", "--recursive", is_flag=True, help="Delete directories and their contents.")
@server_options
def rm(names: tuple[str, ...], recursive: bool, url: Url | None, timeout: float) -> int:
    """Delete each NAME, a file or an empty directory.

    \b
    Example:  ftpkit rm -r old-backups
    """
    with connect(url, timeout) as client:
        return run_each(names, partial(client.delete, recursive=recursive))
