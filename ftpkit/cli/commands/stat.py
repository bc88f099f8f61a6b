"""The command ``stat``."""

from dataclasses import asdict

import click

from ftpkit.cli.format import directory_name, json_line, stat_lines
from ftpkit.cli.server_option import connected, server_options
from ftpkit.cli.settings import json_option
from ftpkit.net.address import Url


@click.command()
@click.argument("name")
@json_option()
@server_options
def stat(name: str, json: bool, url: Url | None, timeout: float) -> None:
    """Show size, modification time, version and digest of NAME.

    \b
    Example:  ftpkit stat bigfile.iso
    """
    with connected(url, timeout) as client:
        reply = client.stat(directory_name(name))
    click.echo(json_line(asdict(reply)) if json else stat_lines(reply))
