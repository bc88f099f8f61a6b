"""Running a server: until a signal ends it, with the settings as they are then."""

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import click

from ftpkit.cli.exit_codes import DONE
from ftpkit.cli.format import escaped
from ftpkit.cli.output.units import format_duration
from ftpkit.cli.paths import default_state, running_directory
from ftpkit.cli.serve.banner import first_line, is_loopback, reachable, warn_of_strangers
from ftpkit.cli.serve.logs import log_to_stderr
from ftpkit.cli.serve.run_as import Account
from ftpkit.cli.serve.signals import RELOAD, heard
from ftpkit.cli.serve.state_dir import State
from ftpkit.cli.serve.systemd import Manager, handed_over, shown_to_the_journal
from ftpkit.cli.settings import Rereadable
from ftpkit.client.known_hosts import LocalServers
from ftpkit.errors import LocalFileError
from ftpkit.net.address import Address, Url
from ftpkit.net.tls_identity import Identity
from ftpkit.osapi import sockets as os_sockets
from ftpkit.server import Server
from ftpkit.server.limits import Limits
from ftpkit.server.sockets import ListeningSocket, adopt, bind
from ftpkit.server.workers.supervisor import Supervisor
from ftpkit.server.workers.worker import WorkerConfig
from ftpkit.tokens import Tokens

_logger: Final = logging.getLogger("ftpkit.cli")

EVERY_INTERFACE: Final = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the options of ``serve`` say."""

    root: str
    host: str | None
    port: int
    user: str | None
    state: str | None
    cert: str | None
    key: str | None
    plain: bool
    open: bool
    max_connections: int
    max_connections_per_address: int
    idle_timeout: float
    stall_timeout: float
    expire_uploads: float
    no_fsync: bool
    no_udp: bool
    rate: float | None
    slots: int | None
    schedule: str
    workers: int
    grace: float
    verbose: bool
    quiet: bool
    log_json: bool

    def limits(self) -> Limits:
        """Return what can change while a server runs."""
        return Limits(
            max_connections=self.max_connections,
            max_connections_per_address=self.max_connections_per_address,
            idle_timeout_s=self.idle_timeout,
            stall_timeout_s=self.stall_timeout,
            expire_uploads_s=self.expire_uploads,
            schedule=self.schedule,
            slots=self.slots,
            bytes_per_s=self.rate,
        )

    def account(self) -> Account | None:
        """Return which account to go on under, if not ours."""
        if self.user is None:
            return None
        try:
            return Account.find(self.user)
        except ValueError as error:
            raise click.UsageError(f"--user: {error}") from None

    def identity(self) -> Identity | None:
        """Return the key and certificate that were named, if they were."""
        if self.cert is None and self.key is None:
            return None
        if self.cert is None or self.key is None:
            raise click.UsageError("--cert and --key go together")
        try:
            return Identity.read(self.cert, self.key)
        except OSError as error:
            raise click.ClickException(f"{error.filename}: {error.strerror}") from None
        except ValueError as error:
            raise click.ClickException(str(error)) from None

    def plan(self, identity: Identity | None, tokens: str | None) -> WorkerConfig:
        """Return what workers are to do."""
        return WorkerConfig(
            workers=self.workers,
            limits=self.limits(),
            identity=identity,
            plain=self.plain,
            tokens=tokens,
            on_start=self.logging(),
        )

    def logging(self) -> "partial[None]":
        """Return what begins to log."""
        level = logging.DEBUG if self.verbose else logging.WARNING if self.quiet else logging.INFO
        return partial(log_to_stderr, level=level, as_json=self.log_json)


@dataclass(frozen=True, slots=True)
class Access:
    """How clients get in: where they find which key, with which tokens, or without."""

    state: State | None
    identity: Identity | None
    tokens: Tokens | None
    first_token: str | None
    plain: bool

    @classmethod
    def of(cls, settings: Settings, named: Identity | None) -> "Access":
        """Return what the state directory has; with the key that was ``named``, if one was."""
        try:
            state = State(settings.state or default_state())
            identity = named or state.identity()
            tokens = None if settings.open else state.tokens()
            first = None if settings.open else state.first_token()
        except LocalFileError as error:
            if settings.plain and settings.open:
                # Who is let in without either needs no place for a key and tokens.
                _logger.info("TLS is not spoken: %s", error)
                return cls(None, None, None, None, settings.plain)
            raise click.ClickException(f"{error}; --state names another directory") from None
        return cls(state, identity, tokens, first, settings.plain)

    @property
    def pin(self) -> str | None:
        """What clients know the key by, if there is one."""
        return None if self.identity is None else self.identity.pin

    def url(self, address: Address) -> Url:
        """Return what a client has to know."""
        if not self.plain:
            return Url(address, pin=self.pin, token=self.first_token)
        # On this machine a client goes without TLS by itself, but not where it has a token.
        plain = self.first_token is not None or not is_loopback(address.host)
        return Url(address, token=self.first_token, plain=plain)


def serve_until_told(settings: Settings, context: click.Context) -> int:
    """Run a server until a signal; return the exit code."""
    settings.logging()()
    if settings.workers > 1 and not os_sockets.HAS_FD_PASSING:
        raise click.UsageError("--workers: this system cannot hand connections to processes")
    manager = Manager()
    with contextlib.ExitStack() as stack:
        signalled = stack.enter_context(heard())
        account, named = settings.account(), settings.identity()
        sockets = _listen(settings)
        for each in sockets:
            stack.callback(each.close)
        if account is not None:
            _become(account, settings, sockets)
        access = Access.of(settings, named)
        told = stack.enter_context(contextlib.ExitStack())
        address = sockets[0].address
        _tell_here(told, settings, access, address)
        server = _server(settings, access, sockets)
        try:
            os.makedirs(settings.root, exist_ok=True)
            server.start()
        except OSError as error:
            reason = error.strerror or str(error)
            raise click.ClickException(f"cannot serve {settings.root}: {reason}") from None
        try:
            # Not before: where a start fails, another server is perhaps reached as it says there.
            url = _tell_links(access, address)
            said = replace(url, token=None) if shown_to_the_journal() else url
            click.echo(
                first_line(settings.root, said, open_to_all=settings.open, state=settings.state)
            )
            warn_of_strangers(server.addresses, plain=settings.plain, open_to_all=settings.open)

            def ready() -> None:
                nonlocal access
                if server.identity is not None and server.identity.pin != access.pin:
                    access = replace(access, identity=server.identity)
                    _tell_here(told, settings, access, address)
                    _tell_links(access, address)
                    _logger.warning("the key is another: links that name the old one are refused")
                manager.ready(f"serves {escaped(settings.root)} at {url}")

            ready()
            while signalled() == RELOAD:
                manager.reloading()
                settings = _reload(server, settings, context, ready)
            manager.stopping(settings.grace)
            _logger.info(
                "stopping: running transfers have %s, a second signal ends them at once",
                format_duration(settings.grace),
            )
        finally:
            server.stop(grace_s=settings.grace)
    return DONE


def _listen(settings: Settings) -> list[ListeningSocket]:
    """Listen, or take what was opened for us."""
    datagrams = not settings.no_udp
    try:
        if handed := handed_over():
            return adopt(handed, datagrams=datagrams)
        return bind(settings.host or EVERY_INTERFACE, settings.port, datagrams=datagrams)
    except ValueError as error:
        raise click.ClickException(f"cannot listen on what was handed over: {error}") from None
    except OSError as error:
        reason, port = error.strerror or str(error), settings.port
        where = f"port {port}" if settings.host is None else str(Address(settings.host, port))
        raise click.ClickException(f"cannot listen on {where}: {reason}") from None


def _become(account: Account, settings: Settings, sockets: Sequence[ListeningSocket]) -> None:
    """Give up root's rights, now that nothing needs them any more."""
    try:
        account.make_directory(settings.root, 0o777)
        if settings.state is not None:
            account.make_directory(settings.state, 0o700)
        account.own(each.fileno() for bound in sockets for each in bound.sockets)
        account.become()
    except OSError as error:
        raise click.ClickException(f"--user {account.name}: {error.strerror or error}") from None


def _tell_here(
    told: contextlib.ExitStack, settings: Settings, access: Access, address: Address
) -> None:
    """Let clients on this machine find the server, until ``told`` ends.

    What they were told before ends when they have been told this.
    """
    before = told.pop_all()
    try:
        running = LocalServers(running_directory())
        root = os.path.abspath(settings.root)
        state = None if access.state is None else access.state.path
        telling = running.announce(access.url(address), root=root, state=state)
        told.enter_context(telling)
    except LocalFileError as error:
        _logger.info("clients on this machine have to be told where it is: %s", error)
    before.close()


def _tell_links(access: Access, address: Address) -> Url:
    """Let links that are made later say how the server is reached; return that."""
    url = access.url(reachable(address))
    try:
        if access.state is not None:
            access.state.set_url(url)
    except LocalFileError as error:
        _logger.error("links that are made do not know how it is reached: %s", error)
    return url


def _server(
    settings: Settings, access: Access, sockets: Sequence[ListeningSocket]
) -> Server | Supervisor:
    if settings.workers > 1:
        tokens = None if access.tokens is None else access.tokens.path
        plan = settings.plan(access.identity, tokens)
        return Supervisor(settings.root, plan, durable=not settings.no_fsync, sockets=sockets)
    return Server(
        settings.root,
        identity=access.identity,
        plain=settings.plain,
        tokens=access.tokens,
        limits=settings.limits(),
        durable=not settings.no_fsync,
        sockets=sockets,
    )


def _reload(
    server: Server | Supervisor,
    old: Settings,
    context: click.Context,
    done: Callable[[], None],
) -> Settings:
    """Let what can change while it runs be as the settings say now; return them.

    When it is so, ``done`` is called, perhaps in another thread.
    """
    try:
        new = Settings(**Rereadable.read_again(context))
    except click.ClickException as error:
        _logger.error("the settings stay as they are: %s", error.format_message())
        done()
        return old
    identity = None
    try:
        identity = new.identity()
    except click.ClickException as error:
        _logger.error("the certificate stays as it is: %s", error.format_message())
    fixed = ["root", "host", "port", "user", "state", "plain", "open", "no_fsync", "no_udp"]
    if isinstance(server, Server):
        fixed += ["workers"]
    for name in fixed:
        if getattr(new, name) != getattr(old, name):
            _logger.warning("%s changes with the next start only", name.replace("_", "-"))
    new = replace(new, **{name: getattr(old, name) for name in fixed})
    new.logging()()
    if isinstance(server, Server):
        server.change(new.limits(), identity)
        _logger.info("the settings were read again")
        done()
    else:
        plan = new.plan(identity or server.config.identity, server.config.tokens)
        server.change(plan, done)
    return new
