"""The options that name the server, and finding that server's URL, pin and token."""

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final

import click

from ftpkit.cli import paths
from ftpkit.cli.settings import DURATION, TIMEOUT, URL, Command, add_options, config_option, setting
from ftpkit.client import Client
from ftpkit.client.connection import Connection, UrlProvider
from ftpkit.client.known_hosts import KnownHosts, LocalServer, LocalServers, SavedUrls
from ftpkit.errors import CannotConnectError, Code, FtpkitError, LocalFileError, UntrustedError
from ftpkit.net.address import DEFAULT_PORT, Address, Url
from ftpkit.net.local import is_local_host

retry_option = setting(
    "retry-for",
    "Reconnect after a lost connection, until nothing has been transferred for TIME.",
    DURATION,
    "10m",
)


NOT_CHOSEN: Final = Url(Address("127.0.0.1"))


def known_hosts() -> KnownHosts:
    """Return the file of servers that ``login`` saves; LocalFileError without a home directory."""
    return KnownHosts(paths.hosts_file())


def saved_urls() -> SavedUrls:
    """Return the servers that ``login`` has saved; none without a home directory."""
    try:
        hosts = known_hosts()
    except LocalFileError:  # a user without a home directory can still be a client
        return SavedUrls()
    return hosts.load()


def connection_options(command: Command) -> Command:
    """Add the options ``timeout`` and ``config``."""
    return add_options(
        command,
        setting("timeout", "Fail if the server does not respond for this long.", TIMEOUT, "30s"),
        config_option("FTPKIT_CONFIG", paths.settings_file, where="~/.config/ftpkit/client.toml"),
    )


def server_options(command: Command) -> Command:
    """Add the options of every client command: ``url``, ``timeout`` and ``config``."""
    url = setting(
        "url",
        "The server's address or login URL; --to and --from are the same option.",
        URL,
        flags=("--to", "--from"),
        show_default="the last login, else the server on this machine",
    )
    return url(connection_options(command))


def connect(url: Url | None, timeout: float, **transfers: Any) -> Client:
    """Return a client that connects on first use; ``transfers`` are further arguments of Client.

    On a terminal, the user is first asked to confirm the pin of a key that cannot be verified.
    """
    provider = partial(find_server, url)
    if is_interactive():
        _save_confirmed_pin(provider, timeout)
    cache = paths.digest_cache_directory()
    return Client(provider, timeout_s=timeout, digest_cache=cache, **transfers)


@contextmanager
def connected(url: Url | None, timeout: float) -> Iterator[Client]:
    """Like ``connect``; CannotConnectError says how to choose a server if none was."""
    with connect(url, timeout) as client:
        try:
            yield client
        except CannotConnectError as error:
            if error.permanent or url is not None or find_server(None) != NOT_CHOSEN:
                raise
            raise CannotConnectError(
                f"{error}; no server was chosen: run 'ftpkit login URL', or name one with --to"
            ) from error


def find_server(requested: Url | None) -> Url:
    """Return ``requested`` with the pin and token known for it; for None, the default server."""
    if requested is not None and (
        requested.pin is not None or (requested.plain and requested.token is not None)
    ):
        return requested
    saved = saved_urls()
    if requested is None:
        return saved.find(saved.default) or _default_local_server() or NOT_CHOSEN
    known = saved.find(requested.address) or _local_server_at(requested.address)
    if known is None or (requested.plain and not known.plain):
        return requested
    if requested.token is not None:
        return replace(requested, pin=known.pin)
    return replace(known, address=requested.address)


def connect_verified(provider: UrlProvider, timeout: float) -> tuple[Connection, Url]:
    """Connect, and return the connection and the URL with the server's pin.

    On a terminal, the user is asked to confirm the pin of a key that cannot be verified.
    """
    try:
        connection = Connection(provider, timeout_s=timeout, limiter=None)
    except UntrustedError:
        if provider().pin is not None or not is_interactive():
            raise
        url = replace(provider(), pin=_confirmed_pin(provider, timeout))
        connection = Connection(lambda: url, timeout_s=timeout, limiter=None)
    return connection, connection.url


def _confirmed_pin(provider: UrlProvider, timeout: float) -> str | None:
    """Return the pin that the user confirmed; None if the key can now be verified without one."""
    pins: list[str] = []

    def reject(pin: str) -> bool:
        pins.append(pin)
        return False  # the handshake would time out while the user decides

    try:
        Connection(provider, timeout_s=timeout, limiter=None, confirm_pin=reject).close()
    except UntrustedError:
        if not pins:
            raise
        click.echo(f"The key of {provider()} cannot be verified. Its pin is\n{pins[0]}", err=True)
        if not click.confirm("Is this the pin that the server printed?", err=True):
            raise
    return pins[0] if pins else None


def is_interactive() -> bool:
    """Whether a user can be asked: stdin and stderr are terminals."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _save_confirmed_pin(provider: UrlProvider, timeout: float) -> None:
    """Ask the user to confirm an unknown key before anything is transferred, and save its pin."""
    known = provider()
    if known.plain or known.pin is not None:
        return
    try:
        connection, url = connect_verified(provider, timeout)
    except FtpkitError as error:
        # A command that went on would fail with a less exact error.
        if isinstance(error, UntrustedError) or error.code == Code.AUTH_REQUIRED:
            raise
        return  # the command itself reports it, or retries
    with closing(connection):
        if url.pin is not None:
            saved = saved_urls().find(url.address)
            token = None if saved is None else saved.token
            known_hosts().save(Url(url.address, pin=url.pin, token=token), default=False)


def _default_local_server() -> Url | None:
    """Return the only server on this machine, or the only one of several at the default port."""
    servers = _local_servers()
    at_default = [server for server in servers if server.url.address.port == DEFAULT_PORT]
    match at_default or servers:
        case []:
            return None
        case [server]:
            return server.url
        case several:
            choices = ", ".join(f"{server.url} ({server.root})" for server in several)
            raise CannotConnectError(
                f"several servers run on this machine; choose one with --to: {choices}",
                permanent=True,
            )


def _local_servers() -> list[LocalServer]:
    try:
        return LocalServers(paths.local_servers_directory()).servers()
    except LocalFileError:  # a user without a home directory can still be a client
        return []


def _local_server_at(address: Address) -> Url | None:
    urls = (server.url for server in _local_servers() if is_local_host(address.host))
    return next((url for url in urls if url.address.port == address.port), None)
