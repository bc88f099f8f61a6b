"""The command group ``token``: ``add``, ``ls`` and ``rm``."""

import os
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import click

from ftpkit.cli.exit_codes import DONE, FAILED, print_error
from ftpkit.cli.format import format_time
from ftpkit.cli.output.table import Column, plain, print_rows
from ftpkit.cli.output.units import format_rate, format_size, parse_duration, parse_size
from ftpkit.cli.paths import default_state, local_servers_directory
from ftpkit.cli.settings import COUNT, RATE, decimal, json_option, option, parsed_by, setting
from ftpkit.client.known_hosts import LocalServers
from ftpkit.errors import LocalFileError, RefusedError
from ftpkit.net.address import Address, Url
from ftpkit.protocol.names import check_name
from ftpkit.tokens import Grant, Permission, encode_grant, is_user_name

if TYPE_CHECKING:
    from ftpkit.cli.serve.state_dir import StateDirectory

_MAX_LIFETIME_S: Final = 3650 * 86400


def _can(text: str) -> frozenset[Permission]:
    return frozenset(map(Permission, text.split(",")))


def _under(text: str) -> str:
    try:
        return check_name(text.removesuffix("/"), root=True)
    except RefusedError as error:
        raise ValueError(text) from error


USER: Final = parsed_by(
    "NAME",
    str,
    "at most 64 letters, digits and . _ -, starting with a letter or digit",
    is_user_name,
)
CAN: Final = parsed_by("LIST", _can, f"a list of {','.join(Permission)}")
UNDER: Final = parsed_by("DIR", _under, "a directory below the server's root, like people/alice")
QUOTA: Final = parsed_by("SIZE", parse_size, "bytes like 10G or 10Gi, more than 0", bool)
WEIGHT: Final = parsed_by("N", decimal, "a number more than 0, like 2 or 0.5", bool)
LIFETIME: Final = parsed_by(
    "TIME",
    parse_duration,
    "a time like 12h, 7d or 365d, more than 0 and at most 3650d",
    lambda seconds: 0 < seconds <= _MAX_LIFETIME_S,
)


def _format_expiry(expires_at: float) -> str:
    expiry = format_time(int(expires_at * 1e9))
    return f"{expiry} (expired)" if expires_at <= time.time() else expiry


_COLUMNS: Final = (
    Column("user", "name"),
    Column("can", "can", ",".join),
    Column("under", "under", lambda under: plain(under) or "-"),
    Column("quota", "quota", format_size),
    Column("rate_bps", "rate", format_rate),
    Column("weight", "weight"),
    Column("connections", "connections"),
    Column("expires_at", "expires", _format_expiry),
)

state_option = setting(
    "state",
    "State directory of the server, which holds its key and tokens.",
    metavar="DIR",
    show_default="that of the running server, else ~/.local/state/ftpkit",
)


@click.group(invoke_without_command=True)
@click.pass_context
def token(ctx: click.Context) -> None:
    """Manage the users of the server on this machine.

    Each user has a token, a secret with certain permissions. 'add' prints a login URL, which
    contains the token and everything else that a client needs. A running server applies changes by
    itself: a user whose token is removed is disconnected within a second.

    \b
    Example:  ftpkit token add alice --under people/alice --quota 10G
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@token.command()
@click.argument("user", metavar="NAME", type=USER)
@option(
    "--can",
    "Permissions, from read, write, delete and admin. Replacing a file requires delete; "
    "'ftpkit status' requires admin.",
    CAN,
    "read,write",
)
@option(
    "--under",
    "Restrict the user to this directory, which appears as the root.",
    UNDER,
    "",
    show_default="the root",
)
@option("--quota", "Limit the bytes stored in the user's directory, like 10G.", QUOTA)
@option(
    "--rate",
    "Limit the rate in each direction, in bytes per second, like 50M.",
    RATE,
    names=["bytes_per_s"],
)
@option(
    "--weight", "Give the user N times the share of others with the schedule fair.", WEIGHT, "1"
)
@option("--connections", "Limit the user's simultaneous connections.", COUNT)
@option("--expires", "Let the token expire after this time, like 7d.", LIFETIME)
@state_option
def add(user: str, state: str | None, expires: float | None, **limits: Any) -> None:
    """Create a token for the user NAME, and print its login URL.

    Run 'ftpkit login URL' on the client. The URL cannot be shown again: the server stores only the
    hash of the token. A running server accepts it immediately.

    \b
    Example:  ftpkit token add alice --can read,write,delete --quota 10G --expires 30d
    """
    expires_at = None if expires is None else time.time() + expires
    grant = Grant(user=user, expires_at=expires_at, **limits)
    directory = _state(state, create=True)
    saved_url = directory.url()
    url = saved_url or Url(Address(socket.gethostname()), pin=directory.identity().pin)
    try:
        secret = directory.tokens().add(grant)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    click.echo(replace(url, token=secret).login_url())
    click.echo(
        f"On the client of {user}, run: ftpkit login URL (the URL above is not shown again)",
        err=True,
    )
    if saved_url is None:
        click.echo(
            f"No server has used {directory.path} yet; the address {url} may be wrong", err=True
        )


@token.command()
@json_option()
@state_option
def ls(json: bool, state: str | None) -> None:
    """List all users with their permissions and limits, the oldest first.

    The tokens cannot be shown: the server stores only their hashes.

    \b
    Example:  ftpkit token ls
    """
    grants = map(encode_grant, _state(state).tokens().grants())
    rows = [{key: value for key, value in each.items() if key != "key"} for each in grants]
    print_rows(_COLUMNS, rows, json=json)


@token.command()
@click.argument("users", metavar="NAME...", nargs=-1, required=True, type=USER)
@state_option
def rm(users: tuple[str, ...], state: str | None) -> int:
    """Remove the token of each user NAME.

    A running server closes the user's connections within a second.

    \b
    Example:  ftpkit token rm alice
    """
    tokens = _state(state).tokens()
    missing = [user for user in users if not tokens.remove(user)]
    for user in missing:
        print_error(f"no such user: {user}; 'ftpkit token ls' lists them")
    return FAILED if missing else DONE


def _default_path() -> str:
    """Return the state directory of the only running server; else the default one."""
    running = LocalServers(local_servers_directory()).servers()
    states = {server.state for server in running if server.state is not None}
    return states.pop() if len(states) == 1 else default_state()


def _state(path: str | None, *, create: bool = False) -> "StateDirectory":
    """Open a state directory; LocalFileError if it does not exist, unless ``create``."""
    # Deferred: 'ftpkit --help' starts faster without the module that makes certificates.
    from ftpkit.cli.serve.state_dir import StateDirectory

    path = path or _default_path()
    try:
        if not create:
            os.stat(path)
    except FileNotFoundError:
        raise LocalFileError(
            f"no server state in {path}: start 'ftpkit serve' once, or name the directory with"
            " --state"
        ) from None
    except OSError as error:
        raise LocalFileError(
            f"cannot read the state directory {path}: {error.strerror}; choose one with --state"
        ) from error
    return StateDirectory(path)
