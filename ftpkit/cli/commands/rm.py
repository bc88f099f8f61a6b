"""The command ``rm``."""

import click

from ftpkit.cli.exit_codes import advised, run_each
from ftpkit.cli.server_option import connected, server_options
from ftpkit.errors import Code
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
    with connected(url, timeout) as client:

        def delete(name: str) -> None:
            with advised({Code.NOT_EMPTY: "use -r to delete its contents too"}):
                client.delete(name, recursive=recursive)

        return run_each(names, delete)
