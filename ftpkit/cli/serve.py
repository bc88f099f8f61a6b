"""serve: run a server until a signal."""

import ipaddress
import logging
import os
import queue
import signal
import socket
from typing import Final

import click

from ftpkit import __version__
from ftpkit.cli.display import shown
from ftpkit.cli.failures import DONE, FAILED, complain
from ftpkit.cli.logs import log_to_stderr
from ftpkit.cli.settings import COUNT, DURATION, PORT, TIMEOUT, config_option, setting, variable
from ftpkit.cli.units import format_duration
from ftpkit.net.address import DEFAULT_PORT, Address

_logger: Final = logging.getLogger("ftpkit.cli")

EVERY_INTERFACE: Final = "*"


@click.command()
@click.argument("root", envvar=variable("root"), default="inbox")
@setting(
    "host",
    "--host",
    metavar="HOST",
    show_default="this machine alone; with --plain --open, every interface",
    help="The name or address to listen on.",
)
@setting(
    "port",
    "--port",
    type=PORT,
    metavar="PORT",
    default=str(DEFAULT_PORT),
    show_default=True,
    help="0 picks a free one.",
)
@setting("plain", "--plain", is_flag=True, help="Speak without TLS (there is none yet).")
@setting("open", "--open", is_flag=True, help="Admit clients without a token (there are none yet).")
@setting(
    "max-connections",
    "--max-connections",
    type=COUNT,
    metavar="N",
    default="1024",
    show_default=True,
    help="Turn further clients away.",
)
@setting(
    "max-connections-per-address",
    "--max-connections-per-address",
    type=COUNT,
    metavar="N",
    default="1000",
    show_default=True,
    help="Turn further clients of the same address away.",
)
@setting(
    "idle-timeout",
    "--idle-timeout",
    type=TIMEOUT,
    metavar="TIME",
    default="5m",
    show_default=True,
    help="Close a connection that asks for nothing for so long.",
)
@setting(
    "stall-timeout",
    "--stall-timeout",
    type=TIMEOUT,
    metavar="TIME",
    default="30s",
    show_default=True,
    help="Give up on a transfer that moves no byte for so long.",
)
@setting(
    "expire-uploads",
    "--expire-uploads",
    type=DURATION,
    metavar="TIME",
    default="7d",
    show_default=True,
    help="Remove an unfinished upload that nobody went on with for so long.",
)
@setting(
    "no-fsync",
    "--no-fsync",
    is_flag=True,
    help="Acknowledge before stable storage: for scratch data that a power cut may take.",
)
@setting("no-udp", "--no-udp", is_flag=True, help="Take no datagrams on the UDP port.")
@setting(
    "grace",
    "--grace",
    type=DURATION,
    metavar="TIME",
    default="30s",
    show_default=True,
    help="Let running transfers finish for so long when the server is told to stop.",
)
@setting("verbose", "-v", "--verbose", is_flag=True, help="Log more.")
@setting("quiet", "-q", "--quiet", is_flag=True, help="Log warnings and errors only.")
@setting("log-json", "--log-json", is_flag=True, help="Log JSON, one object a line.")
@config_option("FTPKIT_SERVER_CONFIG")
def serve(
    root: str,
    host: str | None,
    port: int,
    plain: bool,
    open: bool,  # noqa: A002  (the flag's name is the setting's)
    max_connections: int,
    max_connections_per_address: int,
    idle_timeout: float,
    stall_timeout: float,
    expire_uploads: float,
    no_fsync: bool,
    no_udp: bool,
    grace: float,
    verbose: bool,
    quiet: bool,
    log_json: bool,
) -> int:
    """Receive files and hand them out.

    ROOT is the directory that they are in; it is made if missing.  [default: inbox]

    Until there is access control, only this machine can connect, unless both --plain and --open
    are given. SIGTERM and Ctrl-C end it once running transfers have finished; again, at once.

    \b
    Example:  ftpkit serve /srv/inbox --plain --open
    """
    # A client's command has no use for it, and should start at once.
    from ftpkit.server import Server

    host = _where(host, admit_all=plain and open)
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    log_to_stderr(level=level, as_json=log_json)
    signals = _signals()
    try:
        os.makedirs(root, exist_ok=True)
        server = Server(
            root,
            host=host,
            port=port,
            max_connections=max_connections,
            max_connections_per_address=max_connections_per_address,
            idle_timeout_s=idle_timeout,
            stall_timeout_s=stall_timeout,
            expire_uploads_s=expire_uploads,
            durable=not no_fsync,
            datagrams=not no_udp,
        )
        server.start()
    except OSError as error:
        complain(_start_fault(root, host, port, error))
        return FAILED
    try:
        click.echo(first_line(root, server.address))
        _say_who_is_admitted(server.address)
        signals.get()
        _logger.info(
            "stopping: running transfers have %s, a second signal ends them at once",
            format_duration(grace),
        )
    finally:
        server.stop(grace_s=grace)
    return DONE


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
    """Return where the first SIGTERM or SIGINT arrives; the second ends the process.

    Of all that could wait for a signal, SimpleQueue.put is the one that is
    documented to be safe in a handler: an Event's lock is not reentrant.
    """
    arrived: queue.SimpleQueue[int] = queue.SimpleQueue()

    def first(number: int, _frame: object) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, second)
        arrived.put(number)

    def second(number: int, _frame: object) -> None:
        os._exit(128 + number)

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, first)
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
