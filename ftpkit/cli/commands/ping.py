"""The command ``ping``."""

import click

from ftpkit.cli.format import escaped
from ftpkit.cli.output.units import format_duration
from ftpkit.cli.server_option import connected, server_options
from ftpkit.net.address import Url


@click.command()
@server_options
def ping(url: Url | None, timeout: float) -> None:
    """Measure the round-trip time to the server.

    \b
    Example:  ftpkit ping --to ftpk://HOST:9021
    """
    with connected(url, timeout) as client:
        seconds = client.ping()
    click.echo(f"reply from {escaped(str(client.address))} in {format_duration(seconds)}")
