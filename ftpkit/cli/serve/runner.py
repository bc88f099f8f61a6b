"""Runs a server until a signal stops it, and reloads its settings on SIGHUP."""

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import click

from ftpkit.cli.exit_codes import DONE
from ftpkit.cli.format import escaped
from ftpkit.cli.output.units import format_duration
from ftpkit.cli.paths import default_state, local_servers_directory
from ftpkit.cli.serve.banner import first_line, is_loopback, reachable, warn_of_exposure
from ftpkit.cli.serve.options import ServeOptions
from ftpkit.cli.serve.run_as import SystemUser
from ftpkit.cli.serve.signals import RELOAD, handled_signals
from ftpkit.cli.serve.state_dir import StateDirectory
from ftpkit.cli.serve.systemd import ServiceManager, inherited_sockets, stdout_is_journal
from ftpkit.cli.settings import ReloadableCommand
from ftpkit.client.known_hosts import LocalServers
from ftpkit.errors import LocalFileError
from ftpkit.net.address import Address, Url
from ftpkit.net.tls_identity import Identity
from ftpkit.osapi import sockets as os_sockets
from ftpkit.server import Server
from ftpkit.server.sockets import ListeningSocket, adopt, bind
from ftpkit.server.workers.supervisor import Supervisor
from ftpkit.tokens import Tokens

_logger: Final = logging.getLogger("ftpkit.cli")

ALL_INTERFACES: Final = "*"


@dataclass(frozen=True, slots=True)
class Credentials:
    """The server's key and tokens, the state directory that holds them, and its address."""

    address: Address
    plain: bool
    state: StateDirectory | None = None
    identity: Identity | None = None
    tokens: Tokens | None = None
    first_token: str | None = None

    @classmethod
    def load(
        cls, options: ServeOptions, identity: Identity | None, address: Address
    ) -> "Credentials":
        """Read the state directory, creating what is missing; ``identity`` replaces its key."""
        try:
            state = StateDirectory(options.state or default_state())
            identity = identity or state.identity()
            if options.open:
                return cls(address, options.plain, state, identity)
            tokens = state.tokens()
            return cls(address, options.plain, state, identity, tokens, state.first_token())
        except LocalFileError as error:
            if options.plain and options.open:
                # A server without TLS and tokens needs no state directory.
                _logger.info("TLS is disabled: %s", error)
                return cls(address, options.plain)
            raise click.ClickException(f"{error}; choose another directory with --state") from None

    @property
    def pin(self) -> str | None:
        return None if self.identity is None else self.identity.pin

    def url(self, address: Address) -> Url:
        """Return the login URL for clients that reach the server at ``address``."""
        if not self.plain:
            return Url(address, pin=self.pin, token=self.first_token)
        # To a loopback address without a token, clients connect without TLS by themselves.
        needed = self.first_token is not None or not is_loopback(address.host)
        return Url(address, token=self.first_token, plain=needed)

    def save_url(self) -> Url:
        """Save the server's address for 'ftpkit token add'; return the login URL."""
        url = self.url(reachable(self.address))
        try:
            if self.state is not None:
                self.state.set_url(url)
        except LocalFileError as error:
            _logger.error(
                "could not save the server address; new login URLs will not contain it: %s", error
            )
        return url

    def register(self, registration: contextlib.ExitStack, root: str) -> None:
        """Let clients on this machine find the server, until ``registration`` is closed.

        An earlier registration is replaced without a gap.
        """
        earlier = registration.pop_all()
        state = None if self.state is None else self.state.path
        try:
            servers = LocalServers(local_servers_directory())
            registration.enter_context(
                servers.announce(self.url(self.address), root=os.path.abspath(root), state=state)
            )
        except LocalFileError as error:
            _logger.info("clients on this machine cannot find the server without --to: %s", error)
        earlier.close()


def run_server(options: ServeOptions, context: click.Context) -> int:
    """Run a server until a signal stops it; return the exit code."""
    options.logging()()
    if options.workers > 1 and not os_sockets.HAS_FD_PASSING:
        raise click.UsageError("--workers: this system cannot pass sockets between processes")
    manager = ServiceManager()
    with contextlib.ExitStack() as stack:
        next_signal = stack.enter_context(handled_signals())
        account, identity = options.account(), options.identity()
        sockets = _listen(options)
        for each in sockets:
            stack.callback(each.close)
        if account is not None:
            _drop_privileges(account, options, sockets)
        credentials = Credentials.load(options, identity, sockets[0].address)
        registration = stack.enter_context(contextlib.ExitStack())
        credentials.register(registration, options.root)
        server = _server(options, credentials, sockets)
        with _cli_errors(f"cannot serve {options.root}"):
            if os.path.exists(options.root) and not os.path.isdir(options.root):
                raise NotADirectoryError("it is not a directory")
            os.makedirs(options.root, exist_ok=True)
            server.start()
        try:
            # Saved only now: if the start fails, another server may be running with this state.
            url = credentials.save_url()
            shown = replace(url, token=None) if stdout_is_journal() else url
            click.echo(
                first_line(options.root, shown, open_to_all=options.open, state=options.state)
            )
            warn_of_exposure(server.addresses, plain=options.plain, open_to_all=options.open)

            def ready() -> None:
                nonlocal credentials
                if server.identity is not None and server.identity.pin != credentials.pin:
                    credentials = replace(credentials, identity=server.identity)
                    credentials.register(registration, options.root)
                    credentials.save_url()
                    _logger.warning(
                        "the server's key has changed; clients need a new login URL, see "
                        "'ftpkit token add --help'"
                    )
                manager.ready(f"serves {escaped(options.root)} at {url}")

            ready()
            while next_signal() == RELOAD:
                manager.reloading()
                options = _reload(server, options, context, ready)
            manager.stopping(options.grace)
            _logger.info(
                "stopping: waiting up to %s for active transfers; a second signal stops at once",
                format_duration(options.grace),
            )
        finally:
            server.stop(grace_s=options.grace)
    return DONE


@contextlib.contextmanager
def _cli_errors(what: str) -> Iterator[None]:
    """Turn an OSError into a ClickException that begins with ``what``."""
    try:
        yield
    except OSError as error:
        raise click.ClickException(f"{what}: {error.strerror or error}") from None


def _listen(options: ServeOptions) -> list[ListeningSocket]:
    """Bind the port, or take the sockets that the service manager has passed."""
    datagrams = not options.no_udp
    host, port = options.host, options.port
    with _cli_errors(f"cannot listen on {f'port {port}' if host is None else Address(host, port)}"):
        try:
            if inherited := inherited_sockets():
                return adopt(inherited, datagrams=datagrams)
            return bind(host or ALL_INTERFACES, port, datagrams=datagrams)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise OSError(
                error.errno, f"{error.strerror}; choose another port with --port"
            ) from None
        except ValueError as error:
            raise click.ClickException(
                f"cannot use the sockets of the service manager: {error}"
            ) from None


def _drop_privileges(
    account: SystemUser, options: ServeOptions, sockets: Sequence[ListeningSocket]
) -> None:
    """Become ``account``, after creating its directories and giving it the sockets."""
    with _cli_errors(f"--user {account.name}"):
        account.make_directory(options.root, 0o777)
        if options.state is not None:
            account.make_directory(options.state, 0o700)
        account.own(each.fileno() for bound in sockets for each in bound.sockets)
        account.become()


def _server(
    options: ServeOptions, credentials: Credentials, sockets: Sequence[ListeningSocket]
) -> Server | Supervisor:
    if options.workers > 1:
        tokens = None if credentials.tokens is None else credentials.tokens.path
        config = options.worker_config(credentials.identity, tokens)
        return Supervisor(options.root, config, durable=not options.no_fsync, sockets=sockets)
    return Server(
        options.root,
        identity=credentials.identity,
        plain=options.plain,
        tokens=credentials.tokens,
        limits=options.limits,
        durable=not options.no_fsync,
        sockets=sockets,
    )


def _reload(
    server: Server | Supervisor, old: ServeOptions, context: click.Context, done: Callable[[], None]
) -> ServeOptions:
    """Read the options again, and apply and return those that can change while a server runs.

    ``done`` is called when they are in effect; with workers, by another thread.
    """
    try:
        new = ServeOptions.parse(ReloadableCommand.reload(context))
    except click.ClickException as error:
        _logger.error(
            "cannot reload the settings, keeping the old ones: %s", error.format_message()
        )
        done()
        return old
    identity = None
    try:
        identity = new.identity()
    except click.ClickException as error:
        _logger.error("cannot reload the certificate, keeping it: %s", error.format_message())
    fixed = ["root", "host", "port", "user", "state", "plain", "open", "no_fsync", "no_udp"]
    if isinstance(server, Server):
        fixed += ["workers"]
    for name in fixed:
        if getattr(new, name) != getattr(old, name):
            _logger.warning("restart the server to change %s", name.replace("_", "-"))
    new = replace(new, **{name: getattr(old, name) for name in fixed})
    new.logging()()
    if isinstance(server, Server):
        server.change(new.limits, identity)
        _logger.info("reloaded", extra={"fields": {"workers": 1}})
        done()
    else:
        config = new.worker_config(identity or server.config.identity, server.config.tokens)
        server.change(config, done)
    return new
