"""login and hosts: the servers that are known here."""

import sys
from contextlib import closing
from functools import partial
from typing import Final

import click

from ftpkit.cli.commands.files import json_option
from ftpkit.cli.exit_codes import DONE, FAILED, print_error
from ftpkit.cli.format import escaped, json_line
from ftpkit.cli.output.table import Column, table
from ftpkit.cli.server_option import find, has_person, kept_hosts, meet, timeout_options
from ftpkit.cli.settings import URL
from ftpkit.net.address import Url
from ftpkit.protocol.messages import AuthReply
from ftpkit.tokens import Permission

_PIN_SHOWN: Final = 12


def _shortened(pin: str) -> str:
    return f"{pin[:_PIN_SHOWN]}..."


_COLUMNS: Final = (
    Column("url", "host"),
    Column("default", "default"),
    Column("pin", "key", _shortened),
    Column("token", "token"),
)


@click.command()
@click.argument("url", metavar="[LOGIN-URL]", type=URL, required=False)
@timeout_options
def login(url: Url | None, timeout: float) -> None:
    """Keep the LINK to a server, and use that server from now on.

    The server prints it when it starts, and for each token that is made. Without LINK it is read
    from standard input, so that it stands in no history of commands; a terminal does not show it.

    The link is kept when the server has the right key and knows the token. Where a link names no
    key, and no authority vouches for the server, you are shown its key, and asked.

    \b
    Example:  ftpkit login ftpk://TOKEN:PIN@HOST:9021
    """
    opened, known = meet(partial(find, url or _read_link()), timeout)
    with closing(opened):
        kept_hosts().save(known, default=True)
    click.echo(_welcome(known, opened.auth))


@click.command()
@click.option("--forget", is_flag=True, help="Forget the key and the token of each HOST.")
@click.argument("names", metavar="[HOST]...", nargs=-1, type=URL)
@json_option
def hosts(forget: bool, names: tuple[Url, ...], json: bool) -> int:
    """List the servers that are known here, or forget some.

    \b
    Example:  ftpkit hosts --forget ftpk://HOST:9021
    """
    if forget != bool(names):
        raise click.UsageError("--forget and HOST go together")
    if forget:
        return _forget(names)
    kept = kept_hosts().load()
    rows = [
        {
            "url": str(url),
            "default": url.address == kept.default,
            "pin": url.pin,
            "token": url.token is not None,
        }
        for url in kept.urls
    ]
    if json:
        for row in rows:
            click.echo(json_line({**row}))
    elif rows:
        click.echo(table(_COLUMNS, rows))
    return DONE


def _forget(names: tuple[Url, ...]) -> int:
    code = DONE
    for url in names:
        if not kept_hosts().forget(url.address):
            print_error(f"nothing is known of {url}")
            code = FAILED
    return code


def _read_link() -> Url:
    if has_person():
        return URL(click.prompt("Link", hide_input=True, err=True).strip())
    return URL(sys.stdin.readline().strip())


def _welcome(url: Url, holder: AuthReply | None) -> str:
    if holder is None:
        return f"{url} is known; it asks for no token"
    allowed = ", ".join(each for each in Permission if each in holder.can)
    return f"logged in to {url} as {escaped(holder.user)}: {allowed}"
