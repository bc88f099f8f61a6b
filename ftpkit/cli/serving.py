"""Running a server: until a signal ends it, with the settings as they are then."""

import ipaddress
import logging
import os
import queue
import signal
import socket
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import click

from ftpkit import __version__, system
from ftpkit.cli.display import shown
from ftpkit.cli.failures import DONE, FAILED, complain
from ftpkit.cli.logs import log_to_stderr
from ftpkit.cli.settings import Rereadable
from ftpkit.cli.units import format_duration
from ftpkit.net.address import Address
from ftpkit.server import Server
from ftpkit.server.service import Limits
from ftpkit.server.workers import Plan, Supervisor

_logger: Final = logging.getLogger("ftpkit.cli")

EVERY_INTERFACE: Final = "*"
_RELOAD: Final = getattr(signal, "SIGHUP", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the options of ``serve`` say."""

    root: str
    host: str | None
    port: int
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
            rate_bps=self.rate,
        )

    def plan(self) -> Plan:
        """Return what workers are to do."""
        return Plan(
            workers=self.workers,
            limits=self.limits(),
            durable=not self.no_fsync,
            on_start=self.logging(),
        )

    def logging(self) -> "partial[None]":
        """Return what begins to log."""
        level = logging.DEBUG if self.verbose else logging.WARNING if self.quiet else logging.INFO
        return partial(log_to_stderr, level=level, as_json=self.log_json)


def serve_until_told(settings: Settings, context: click.Context) -> int:
    """Run a server until a signal; return the exit code."""
    host = _where(settings.host, admit_all=settings.plain and settings.open)
    settings.logging()()
    signals = _signals()
    try:
        os.makedirs(settings.root, exist_ok=True)
        server = _server(settings, host)
        server.start()
    except OSError as error:
        complain(_start_fault(settings.root, host, settings.port, error))
        return FAILED
    try:
        click.echo(first_line(settings.root, server.address))
        _say_who_is_admitted(server.address)
        while signals.get() == _RELOAD:
            settings = _reload(server, settings, context)
        _logger.info(
            "stopping: running transfers have %s, a second signal ends them at once",
            format_duration(settings.grace),
        )
    finally:
        server.stop(grace_s=settings.grace)
    return DONE


def _server(settings: Settings, host: str | None) -> Server | Supervisor:
    datagrams = not settings.no_udp
    if settings.workers > 1:
        if not system.HAS_HANDING_OVER:
            raise click.UsageError("--workers: this system cannot hand connections to processes")
        return Supervisor(
            settings.root, settings.plan(), host=host, port=settings.port, datagrams=datagrams
        )
    server = Server(
        settings.root,
        host=host,
        port=settings.port,
        durable=not settings.no_fsync,
        datagrams=datagrams,
    )
    server.change(settings.limits())
    return server


def _reload(server: Server | Supervisor, old: Settings, context: click.Context) -> Settings:
    """Let what can change while it runs be as the settings say now; return them."""
    try:
        new = Settings(**Rereadable.read_again(context))
    except click.ClickException as error:
        _logger.error("the settings stay as they are: %s", error.format_message())
        return old
    fixed = ["root", "host", "port", "plain", "open", "no_udp"]
    if isinstance(server, Server):
        fixed += ["no_fsync", "workers"]
    for name in fixed:
        if getattr(new, name) != getattr(old, name):
            _logger.warning("%s changes with the next start only", name.replace("_", "-"))
    new.logging()()
    if isinstance(server, Server):
        server.change(new.limits())
        _logger.info("the settings were read again")
    else:
        server.change(new.plan())
    return replace(new, **{name: getattr(old, name) for name in fixed})


def first_line(root: str, address: Address) -> str:
    """Return what listens where, and what a client types to send a file there."""
    url = Address(_reachable(address.host), address.port)
    return (
        f"ftpkit {__version__} serves {shown(os.path.abspath(root))} at {url}"
        f" - send a file with: ftpkit put FILE --to {url}"
    )


def _where(host: str | None, *, admit_all: bool) -> str | None:
    """Return the host to listen on; without access control the network has to be asked for."""
    if admit_all:
        return EVERY_INTERFACE if host is None else host
    if host is not None and not _is_loopback(host):
        raise click.UsageError(
            f"--host {host} would admit the network, without encryption and without tokens: "
            "add --plain and --open if that is what you want",
            click.get_current_context(),
        )
    return host


def _say_who_is_admitted(address: Address) -> None:
    if _is_loopback(address.host):
        _logger.info("only this machine can connect; --plain --open admits the network")
    else:
        _logger.warning(
            "whoever reaches this port can read, change and delete; nothing is encrypted"
        )


def _signals() -> "queue.SimpleQueue[int]":
    """Return where SIGHUP and the first SIGTERM or SIGINT arrive; the second ends the process.

    Of all that could wait for a signal, SimpleQueue.put is the one that is
    documented to be safe in a handler: an Event's lock is not reentrant.
    """
    arrived: queue.SimpleQueue[int] = queue.SimpleQueue()

    def first(number: int, _frame: object) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, second)
        arrived.put(number)

    def reload(number: int, _frame: object) -> None:
        arrived.put(number)

    def second(number: int, _frame: object) -> None:
        os._exit(128 + number)

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, first)
    if _RELOAD is not None:
        signal.signal(_RELOAD, reload)
    return arrived


def _is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach ``host``; what cannot be resolved is not."""
    try:
        found = socket.getaddrinfo(host or None, None, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return False
    return all(_ip(str(address[0])).is_loopback for *_, address in found)


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(text.partition("%")[0])


def _reachable(host: str) -> str:
    """Return what others call this machine, where ``host`` stands for all of its addresses."""
    if not _ip(host).is_unspecified:
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Connecting a datagram socket sends nothing: it asks which address would be used.
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return socket.gethostname()
        return str(probe.getsockname()[0])


def _start_fault(root: str, host: str | None, port: int, error: OSError) -> str:
    reason = error.strerror or str(error)
    # Listening does not block: that the root is in use does, and it names no file.
    of_root = FileExistsError | NotADirectoryError | BlockingIOError
    if error.filename is not None or isinstance(error, of_root):
        return f"cannot serve {root}: {reason}"
    return f"cannot listen on {Address(host or 'localhost', port)}: {reason}"
