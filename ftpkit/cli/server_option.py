"""Which server a client's command talks to, and what is known of it."""

import sys
from contextlib import closing
from dataclasses import replace
from functools import partial

import click

from ftpkit.cli.paths import digest_cache_directory, hosts_file, running_directory, settings_file
from ftpkit.cli.settings import TIMEOUT, URL, Command, Decorator, config_option, setting
from ftpkit.client import Client, UdpMode
from ftpkit.client.connection import Connection, UrlProvider
from ftpkit.client.known_hosts import KnownHosts, LocalServer, LocalServers
from ftpkit.errors import CannotConnectError, Code, FtpkitError, LocalFileError, UntrustedError
from ftpkit.net.address import DEFAULT_PORT, Address, Url
from ftpkit.net.local import is_local_host


def kept_hosts() -> KnownHosts:
    """Return the links that ``login`` has kept."""
    return KnownHosts(hosts_file())


def timeout_options(command: Command) -> Command:
    """Add ``timeout``, and the settings file."""
    options = (
        setting(
            "timeout",
            "--timeout",
            type=TIMEOUT,
            metavar="TIME",
            default="30s",
            show_default=True,
            help="Give up on a server that is silent for so long.",
        ),
        config_option("FTPKIT_CONFIG", settings_file, where="~/.config/ftpkit/client.toml"),
    )
    for option in reversed(options):
        command = option(command)
    return command


def target_options(command: Command) -> Command:
    """Add what every command of the client takes: ``url``, ``timeout``, and the settings file."""
    url: Decorator = setting(
        "url",
        "--to",
        "--from",
        type=URL,
        metavar="URL",
        show_default="the last login, else the server that runs here",
        help="The server, or a link to it; both spellings mean the same.",
    )
    return url(timeout_options(command))


def connect(
    url: Url | None,
    timeout: float,
    rate: float | None = None,
    retry_for: float = 0.0,
    udp: UdpMode = UdpMode.NO,
    jobs: int = 1,
) -> Client:
    """Return a client of ``url`` that connects when it is used; ``rate`` in bytes a second."""
    where = partial(find, url)
    if has_person():
        _get_acquainted(where, timeout)
    return Client(
        where,
        timeout_s=timeout,
        bytes_per_s=rate,
        retry_for_s=retry_for,
        digest_cache=digest_cache_directory(),
        udp=udp,
        jobs=jobs,
    )


def find(asked: Url | None) -> Url:
    """Return where a command goes, with what is known of it; None asks for no server by name."""
    if asked is not None and (asked.pin is not None or (asked.plain and asked.token is not None)):
        return asked
    kept = kept_hosts().load()
    if asked is None:
        return kept.find(kept.default) or _only_running() or Url(Address("127.0.0.1"))
    known = kept.find(asked.address) or _running_at(asked.address)
    if known is None or (asked.plain and not known.plain):
        return asked
    if asked.token is not None:
        return replace(asked, pin=known.pin)
    return replace(known, address=asked.address)


def meet(where: UrlProvider, timeout: float) -> tuple[Connection, Url]:
    """Connect, and return how the server is known then.

    On a terminal, a person decides about a key that nobody vouches for.
    """
    try:
        connection = Connection(where, timeout_s=timeout, limiter=None)
    except UntrustedError:
        if where().pin is not None or not has_person():
            raise
        url = replace(where(), pin=_accepted_pin(where, timeout))
        connection = Connection(lambda: url, timeout_s=timeout, limiter=None)
    return connection, connection.url


def _accepted_pin(where: UrlProvider, timeout: float) -> str | None:
    """Return the pin of the server's key, if a person says that it is the right one.

    None says that there is nothing to ask, after all.
    """
    shown: list[str] = []

    def see(pin: str) -> bool:
        shown.append(pin)
        return False  # a server has no time for a handshake in which a person thinks

    try:
        Connection(where, timeout_s=timeout, limiter=None, confirm_pin=see).close()
    except UntrustedError:
        if not shown:
            raise
        click.echo(f"The key of {where()} is not known here. Its pin is\n{shown[0]}", err=True)
        if not click.confirm("Is that the pin of the server that you mean?", err=True):
            raise
    return shown[0] if shown else None


def has_person() -> bool:
    """Whether there is somebody who can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _get_acquainted(where: UrlProvider, timeout: float) -> None:
    """Have a person decide about an unknown key, before anything is begun, and keep that."""
    known = where()
    if known.plain or known.pin is not None:
        return
    try:
        connection, url = meet(where, timeout)
    except FtpkitError as error:
        # Who has just said that the key is right is not to hear that nobody vouches for it.
        if isinstance(error, UntrustedError) or error.code == Code.AUTH_REQUIRED:
            raise
        return  # the command itself tells, and perhaps tries again
    with closing(connection):
        if url.pin is not None:
            kept = kept_hosts().load().find(url.address)
            token = None if kept is None else kept.token
            kept_hosts().save(Url(url.address, pin=url.pin, token=token), default=False)


def _only_running() -> Url | None:
    """Return the server that runs here; of several, the one at the usual port."""
    servers = _running()
    usual = [server for server in servers if server.url.address.port == DEFAULT_PORT]
    match usual or servers:
        case []:
            return None
        case [server]:
            return server.url
        case several:
            told = ", ".join(f"{server.url} ({server.root})" for server in several)
            raise CannotConnectError(
                f"several servers run here, --to says which: {told}", permanent=True
            )


def _running() -> list[LocalServer]:
    try:
        directory = running_directory()
    except LocalFileError:  # an account without a home can still be a client
        return []
    return LocalServers(directory).servers()


def _running_at(address: Address) -> Url | None:
    for server in _running():
        if server.url.address.port == address.port and is_local_host(address.host):
            return server.url
    return None
