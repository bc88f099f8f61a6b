"""The command ``ls``."""

from dataclasses import asdict

import click

from ftpkit.cli.format import json_line, ls_line
from ftpkit.cli.server_option import connect, server_options
from ftpkit.cli.settings import json_option
from ftpkit.net.address import Url


@click.command()
@click.argument("name", default="")
@click.option("-R", "--recursive", is_flag=True, help="List subdirectories recursively.")
@json_option()
@server_options
def ls(name: str, recursive: bool, json: bool, url: Url | None, timeout: float) -> None:
    """List the directory NAME, or the root of the server.

    Prints size, modification time and name. A directory ends in /, a symbolic link in @.

    \b
    Example:  ftpkit ls -R backups
    """
    with connect(url, timeout) as client:
        for entry in client.list(name, recursive=recursive):
            click.echo(json_line(asdict(entry)) if json else ls_line(entry))
