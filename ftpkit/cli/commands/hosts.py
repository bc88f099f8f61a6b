"""The command ``hosts``."""

import sys
from typing import Final

import click

from ftpkit.cli.exit_codes import DONE, FAILED, print_error
from ftpkit.cli.output.table import Column, print_rows
from ftpkit.cli.server_option import known_hosts, saved_urls
from ftpkit.cli.settings import URL, json_option
from ftpkit.net.address import Url

_COLUMNS: Final = (
    Column("url", "host"),
    Column("default", "default"),
    Column("pin", "pin", lambda pin: f"{pin[:12]}..."),
    Column("token", "token"),
)


@click.command()
@click.option("--forget", is_flag=True, help="Delete the saved pin and token of each HOST.")
@click.argument("names", metavar="[HOST]...", nargs=-1, type=URL)
@json_option()
def hosts(forget: bool, names: tuple[Url, ...], json: bool) -> int:
    """List the servers saved by 'ftpkit login', or forget some.

    \b
    Example:  ftpkit hosts --forget ftpk://HOST:9021
    """
    if forget != bool(names):
        raise click.UsageError("--forget needs at least one HOST, and HOST needs --forget")
    if forget:
        missing = [url for url in names if not known_hosts().forget(url.address)]
        for url in missing:
            print_error(f"{url} is not a saved host; 'ftpkit hosts' lists them")
        return FAILED if missing else DONE
    saved = saved_urls()
    if not saved.urls and not json and sys.stderr.isatty():
        click.echo("no saved servers; log in with: ftpkit login URL", err=True)
    print_rows(
        _COLUMNS,
        [
            {
                "url": str(url),
                "default": url.address == saved.default,
                "pin": url.pin,
                "token": url.token is not None,
            }
            for url in saved.urls
        ],
        json=json,
    )
    return DONE
