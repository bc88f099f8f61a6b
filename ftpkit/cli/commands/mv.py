"""The command ``mv``."""

import click

from ftpkit.cli.exit_codes import advised
from ftpkit.cli.server_option import connected, server_options
from ftpkit.errors import Code
from ftpkit.net.address import Url


@click.command()
@click.argument("name")
@click.argument("to")
@click.option("--overwrite", is_flag=True, help="Replace TO if it is an existing file.")
@server_options
def mv(name: str, to: str, overwrite: bool, url: Url | None, timeout: float) -> None:
    """Rename NAME to TO on the server.

    \b
    Example:  ftpkit mv bigfile.iso archive/bigfile-2026.iso
    """
    advice: dict[str, str] = {Code.EXISTS: "use --overwrite to replace a file"}
    with connected(url, timeout) as client, advised(advice):
        client.rename(name, to, overwrite=overwrite)
