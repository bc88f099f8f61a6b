"""token: who may use a server, and for what."""

import os
import re
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import click

from ftpkit.cli.commands.files import json_option
from ftpkit.cli.exit_codes import DONE, FAILED, print_error
from ftpkit.cli.format import format_time, json_line
from ftpkit.cli.output.table import Column, table
from ftpkit.cli.output.units import format_size, parse_duration, parse_size
from ftpkit.cli.paths import default_state, running_directory
from ftpkit.cli.settings import COUNT, RATE, setting, word
from ftpkit.client.known_hosts import LocalServers
from ftpkit.errors import LocalFileError, RefusedError
from ftpkit.net.address import Address, Url
from ftpkit.protocol.names import check_name
from ftpkit.tokens import Grant, Permission, encode_grant, is_user_name

if TYPE_CHECKING:
    from ftpkit.cli.serve.state_dir import State

_MAX_LIFETIME_S: Final = 3650 * 86400


def _user(text: str) -> str:
    if not is_user_name(text):
        raise ValueError(text)
    return text


def _can(text: str) -> frozenset[Permission]:
    return frozenset(map(Permission, text.split(",")))


def _under(text: str) -> str:
    try:
        return check_name(text.removesuffix("/"), root=True)
    except RefusedError as error:
        raise ValueError(text) from error


def _quota(text: str) -> int:
    if not (count := parse_size(text)):
        raise ValueError(text)
    return count


def _weight(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,3})?", text) or not float(text):
        raise ValueError(text)
    return float(text)


def _lifetime(text: str) -> float:
    if not 0 < (seconds := parse_duration(text)) <= _MAX_LIFETIME_S:
        raise ValueError(text)
    return seconds


USER: Final = word(_user, "at most 64 letters, digits and . _ -, a letter or digit first")
CAN: Final = word(_can, f"some of {','.join(Permission)}")
UNDER: Final = word(_under, "a directory in the server's root, like people/alice")
QUOTA: Final = word(_quota, "bytes like 10G or 10Gi, over 0")
WEIGHT: Final = word(_weight, "a number over 0, like 2 or 0.5")
LIFETIME: Final = word(_lifetime, "a time like 12h, 7d or 365d, over 0 and 3650d at most")


def _shown_rate(bytes_per_s: float) -> str:
    return f"{format_size(bytes_per_s)}/s"


def _shown_end(expires_at: float) -> str:
    end = format_time(int(expires_at * 1e9))
    return f"{end} (expired)" if expires_at <= time.time() else end


_COLUMNS: Final = (
    Column("user", "name"),
    Column("can", "can", ",".join),
    Column("under", "under"),
    Column("quota", "quota", format_size),
    Column("rate_bps", "rate", _shown_rate),
    Column("weight", "weight"),
    Column("connections", "connections"),
    Column("expires_at", "expires", _shown_end),
)

state_option = setting(
    "state",
    "--state",
    metavar="DIR",
    show_default="that of the server that runs here, else ~/.local/state/ftpkit",
    help="The directory that the server keeps its key and its tokens in.",
)


@click.group(invoke_without_command=True)
@click.pass_context
def token(ctx: click.Context) -> None:
    """Say who may use the server on this machine, and for what.

    Each user has a token, a secret word. The link that 'add' prints holds it, and all else that a
    client needs. A running server notices every change by itself: who has lost a token is cut off
    within a second.

    \b
    Example:  ftpkit token add alice --under people/alice --quota 10G
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@token.command()
@click.argument("user", metavar="NAME", type=USER)
@click.option(
    "--can",
    type=CAN,
    metavar="WORDS",
    default="read,write",
    show_default=True,
    help="Some of read, write, delete and admin. Without delete, nothing that stands is replaced; "
    "admin is to see what the server does.",
)
@click.option(
    "--under",
    type=UNDER,
    metavar="DIR",
    default="",
    show_default="all",
    help="See nothing but this directory of the server, as if it were all.",
)
@click.option(
    "--quota",
    type=QUOTA,
    metavar="SIZE",
    help="Store so many bytes there at most, like 10G.",
)
@click.option(
    "--rate", type=RATE, metavar="RATE", help="Move so many bytes a second each way, like 50M."
)
@click.option(
    "--weight",
    type=WEIGHT,
    metavar="N",
    default="1",
    show_default=True,
    help="Move N times as much as others, where they wait for each other.",
)
@click.option("--connections", type=COUNT, metavar="N", help="Have so many at most at a time.")
@click.option("--expires", type=LIFETIME, metavar="TIME", help="End after this time, like 7d.")
@state_option
def add(
    user: str,
    can: frozenset[Permission],
    under: str,
    quota: int | None,
    rate: float | None,
    weight: float,
    connections: int | None,
    expires: float | None,
    state: str | None,
) -> None:
    """Make a token for NAME, and print its link.

    On the client, 'ftpkit login LINK' takes it. Only its hash is kept, so that it cannot be shown
    again. A server that is running admits it at once.

    \b
    Example:  ftpkit token add alice --can read,write,delete --quota 10G --expires 30d
    """
    grant = Grant(
        user=user,
        can=can,
        under=under,
        quota=quota,
        bytes_per_s=rate,
        weight=weight,
        connections=connections,
        expires_at=None if expires is None else time.time() + expires,
    )
    place = _state(state)
    served = place.url()
    url = served or Url(Address(socket.gethostname()), pin=place.identity().pin)
    try:
        secret = place.tokens().add(grant)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    click.echo(replace(url, token=secret).login_url())
    click.echo(f"For {user}: ftpkit login LINK - the link is not shown again", err=True)
    if served is None:
        click.echo(f"No server has run with {place.path} yet: {url} is a guess", err=True)


@token.command()
@json_option
@state_option
def ls(json: bool, state: str | None) -> None:
    """List all tokens, the oldest first.

    What each allows is shown, and never the token itself: only its hash is known here.

    \b
    Example:  ftpkit token ls
    """
    grants = _known(state).tokens().grants()
    rows = [
        {key: value for key, value in encode_grant(each).items() if key != "key"} for each in grants
    ]
    if json:
        for row in rows:
            click.echo(json_line(row))
    else:
        click.echo(table(_COLUMNS, [{**row, "under": row["under"] or None} for row in rows]))


@token.command()
@click.argument("users", metavar="NAME...", nargs=-1, required=True, type=USER)
@state_option
def rm(users: tuple[str, ...], state: str | None) -> int:
    """Take the token of each NAME away.

    Who is connected with it is cut off within a second.

    \b
    Example:  ftpkit token rm alice
    """
    tokens, code = _known(state).tokens(), DONE
    for user in users:
        if not tokens.remove(user):
            print_error(f"there is no token {user}")
            code = FAILED
    return code


def _place() -> str:
    """Return where the state of the server is that is meant: the one that runs, if one does."""
    running = LocalServers(running_directory()).servers()
    states = {server.state for server in running if server.state is not None}
    return states.pop() if len(states) == 1 else default_state()


def _state(path: str | None) -> "State":
    # It loads what makes certificates, which other commands should not wait for.
    from ftpkit.cli.serve.state_dir import State

    return State(path or _place())


def _known(path: str | None) -> "State":
    """Return the state of a server, but make none where it was looked for by mistake."""
    path = path or _place()
    try:
        os.stat(path)
    except OSError as error:
        raise LocalFileError(f"cannot look for tokens in {path}: {error.strerror}") from error
    return _state(path)
