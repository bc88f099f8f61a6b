"""The command ``login``."""

import sys
from contextlib import closing
from functools import partial

import click

from ftpkit.cli.format import escaped
from ftpkit.cli.server_option import (
    connect_verified,
    connection_options,
    find_server,
    is_interactive,
    known_hosts,
)
from ftpkit.cli.settings import URL
from ftpkit.net.address import Url
from ftpkit.protocol.messages import AuthReply
from ftpkit.tokens import Permission


@click.command()
@click.argument("url", metavar="[URL]", type=URL, required=False)
@connection_options
def login(url: Url | None, timeout: float) -> None:
    """Save the login URL of a server, and make that server the default.

    'ftpkit serve' and 'ftpkit token add' print a login URL. Without URL, it is read from standard
    input, which keeps the token out of the shell history; a terminal does not echo it.

    The URL is saved after the server's key has been verified and the token has been accepted. If
    the URL has no pin and the TLS certificate cannot be verified, you are asked to confirm the pin
    of the server's key.

    \b
    Example:  ftpkit login ftpk://TOKEN:PIN@HOST:9021
    """
    hosts = known_hosts()  # without a place to save it, nothing is asked or sent
    connection, verified = connect_verified(partial(find_server, url or _read_url()), timeout)
    with closing(connection):
        hosts.save(verified, default=True)
    click.echo(_welcome(verified, connection.auth))


def _read_url() -> Url:
    if is_interactive():
        return URL(click.prompt("Login URL", hide_input=True, err=True).strip())
    return URL(sys.stdin.readline().strip())


def _welcome(url: Url, auth: AuthReply | None) -> str:
    if auth is None:
        return f"saved {url}, which requires no token"
    allowed = ", ".join(each for each in Permission if each in auth.can)
    return f"logged in to {url} as {escaped(auth.user)}: {allowed}"
