"""Runs a server until a signal stops it, and reloads its settings on SIGHUP."""

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import click

from ftpkit.cli.exit_codes import DONE
from ftpkit.cli.format import escaped
from ftpkit.cli.output.units import format_duration
from ftpkit.cli.paths import default_state, local_servers_directory
from ftpkit.cli.serve.banner import first_line, is_loopback, reachable, warn_of_exposure
from ftpkit.cli.serve.options import ServeOptions
from ftpkit.cli.serve.run_as import Account
from ftpkit.cli.serve.signals import RELOAD, handled_signals
from ftpkit.cli.serve.state_dir import State
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
    """The server's key and tokens, and the state directory that holds them."""

    state: State | None
    identity: Identity | None
    tokens: Tokens | None
    first_token: str | None

    @classmethod
    def load(cls, options: ServeOptions, identity: Identity | None) -> "Credentials":
        """Read the state directory, creating what is missing; ``identity`` replaces its key."""
        try:
            state = State(options.state or default_state())
            identity = identity or state.identity()
            tokens = None if options.open else state.tokens()
            first_token = None if options.open else state.first_token()
        except LocalFileError as error:
            if options.plain and options.open:
                # A server without TLS and tokens needs no state directory.
                _logger.info("TLS is disabled: %s", error)
                return cls(None, None, None, None)
            raise click.ClickException(f"{error}; choose another directory with --state") from None
        return cls(state, identity, tokens, first_token)

    @property
    def pin(self) -> str | None:
        """The pin of the key, if there is one."""
        return None if self.identity is None else self.identity.pin

    def url(self, address: Address, *, plain: bool) -> Url:
        """Return the login URL of a server at ``address``."""
        if not plain:
            return Url(address, pin=self.pin, token=self.first_token)
        # To a loopback address without a token, clients connect without TLS by themselves.
        needed = self.first_token is not None or not is_loopback(address.host)
        return Url(address, token=self.first_token, plain=needed)


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
        credentials = Credentials.load(options, identity)
        registration = stack.enter_context(contextlib.ExitStack())
        address = sockets[0].address
        _register(registration, options, credentials, address)
        server = _server(options, credentials, sockets)
        try:
            os.makedirs(options.root, exist_ok=True)
            server.start()
        except OSError as error:
            reason = error.strerror or str(error)
            raise click.ClickException(f"cannot serve {options.root}: {reason}") from None
        try:
            # Saved only now: if the start fails, another server may be running with this state.
            url = _save_url(options, credentials, address)
            shown = replace(url, token=None) if stdout_is_journal() else url
            click.echo(
                first_line(options.root, shown, open_to_all=options.open, state=options.state)
            )
            warn_of_exposure(server.addresses, plain=options.plain, open_to_all=options.open)

            def ready() -> None:
                nonlocal credentials
                if server.identity is not None and server.identity.pin != credentials.pin:
                    credentials = replace(credentials, identity=server.identity)
                    _register(registration, options, credentials, address)
                    _save_url(options, credentials, address)
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


def _listen(options: ServeOptions) -> list[ListeningSocket]:
    """Bind the port, or take the sockets that the service manager has passed."""
    datagrams = not options.no_udp
    try:
        if inherited := inherited_sockets():
            return adopt(inherited, datagrams=datagrams)
        return bind(options.host or ALL_INTERFACES, options.port, datagrams=datagrams)
    except ValueError as error:
        raise click.ClickException(
            f"cannot use the sockets of the service manager: {error}"
        ) from None
    except OSError as error:
        reason, port = error.strerror or str(error), options.port
        where = f"port {port}" if options.host is None else str(Address(options.host, port))
        raise click.ClickException(f"cannot listen on {where}: {reason}") from None


def _drop_privileges(
    account: Account, options: ServeOptions, sockets: Sequence[ListeningSocket]
) -> None:
    """Become ``account``, after creating its directories and giving it the sockets."""
    try:
        account.make_directory(options.root, 0o777)
        if options.state is not None:
            account.make_directory(options.state, 0o700)
        account.own(each.fileno() for bound in sockets for each in bound.sockets)
        account.become()
    except OSError as error:
        raise click.ClickException(f"--user {account.name}: {error.strerror or error}") from None


def _register(
    registration: contextlib.ExitStack,
    options: ServeOptions,
    credentials: Credentials,
    address: Address,
) -> None:
    """Let clients on this machine find the server, until ``registration`` is closed.

    An earlier registration is replaced without a gap.
    """
    earlier = registration.pop_all()
    url = credentials.url(address, plain=options.plain)
    state = None if credentials.state is None else credentials.state.path
    try:
        servers = LocalServers(local_servers_directory())
        registration.enter_context(
            servers.announce(url, root=os.path.abspath(options.root), state=state)
        )
    except LocalFileError as error:
        _logger.info("clients on this machine cannot find the server without --to: %s", error)
    earlier.close()


def _save_url(options: ServeOptions, credentials: Credentials, address: Address) -> Url:
    """Save the server's address for 'ftpkit token add'; return the login URL."""
    url = credentials.url(reachable(address), plain=options.plain)
    try:
        if credentials.state is not None:
            credentials.state.set_url(url)
    except LocalFileError as error:
        _logger.error(
            "could not save the server address; new login URLs will not contain it: %s", error
        )
    return url


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
    server: Server | Supervisor,
    old: ServeOptions,
    context: click.Context,
    done: Callable[[], None],
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
        _logger.info("settings reloaded")
        done()
    else:
        config = new.worker_config(identity or server.config.identity, server.config.tokens)
        server.change(config, done)
    return new
