"""The command ``ls``."""

import sys
from dataclasses import asdict

import click

from ftpkit.cli.exit_codes import Tally, print_error
from ftpkit.cli.format import directory_name, json_line, ls_line
from ftpkit.cli.server_option import connected, server_options
from ftpkit.cli.settings import json_option
from ftpkit.net.address import Url


@click.command()
@click.argument("name", default="")
@click.option("-R", "--recursive", is_flag=True, help="List subdirectories recursively.")
@json_option()
@server_options
def ls(name: str, recursive: bool, json: bool, url: Url | None, timeout: float) -> int:
    """List the directory NAME, or the root of the server.

    Prints size, modification time and name. A directory ends in /, a symbolic link in @. What
    cannot be listed is reported, and the exit code is then 1.

    \b
    Example:  ftpkit ls -R backups
    """
    tally = Tally()
    with connected(url, timeout) as client:
        for entry in client.list(directory_name(name), recursive=recursive):
            if entry.error is not None:
                tally.fail(entry.error, entry.name)
            if json or entry.error is None:
                line = json_line(asdict(entry)) if json else ls_line(entry)
                sys.stdout.write(f"{line}\n")  # click.echo would flush each line
    sys.stdout.flush()
    if tally.failures:
        print_error(f"{tally.failures:,} not listed")
    return tally.exit_code
