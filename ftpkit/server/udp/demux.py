"""Reads a UDP port, and shares it among workers: each gets the datagrams of its own sessions."""

import contextlib
import json
import logging
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from ftpkit.errors import ConnectionLostError
from ftpkit.net.udp_socket import DatagramSocket, Parts
from ftpkit.osapi import sockets as os_sockets
from ftpkit.protocol.udp.packet import read_header

# A session id begins with the worker's number modulo 4096, and no two running workers are that
# far apart; the rest is random.
_WORKER_BITS: Final = 12
_RANDOM_BITS: Final = 32 - _WORKER_BITS
_MAX_DATAGRAM: Final = 64 * 1024 + 256
_MAX_BATCH: Final = 64
_WAIT_S: Final = 1.0

SocketAddress = tuple[Any, ...]
"""A socket address, as the socket module has it."""

log = logging.getLogger("ftpkit.server")


def session_of(number: int) -> int:
    """Return a random session id that names worker ``number``."""
    return number % 2**_WORKER_BITS << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)


def is_session_of(number: int, session: int) -> bool:
    """Whether the session id names worker ``number``."""
    return session >> _RANDOM_BITS == number % 2**_WORKER_BITS


class UdpPort(Protocol):
    """Receives the datagrams that are not for the socket of a session."""

    def wait(self, seconds: float) -> bool:
        """Wait for a datagram; False after ``seconds``."""

    def receive(self) -> Iterator[tuple[memoryview, SocketAddress]]:
        """Yield the datagrams that have arrived, with their source addresses."""

    def shutdown(self) -> None:
        """End a ``wait``; any thread may call this."""

    def close(self) -> None: ...

    @property
    def send_to(self) -> Callable[[Parts, SocketAddress, SocketAddress], None]:
        """Send one datagram to the first address, from the second."""


class PortReader:
    """Calls ``receive`` for each datagram of a port, in a thread, until ``close``."""

    def __init__(
        self, port: UdpPort, receive: Callable[[memoryview, SocketAddress], None], name: str
    ) -> None:
        self._port, self._receive = port, receive
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._port.shutdown()
        self._thread.join()
        self._port.close()

    def _run(self) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(ConnectionLostError):
                self._port.wait(_WAIT_S)
                for raw, address in self._port.receive():
                    try:
                        self._receive(raw, address)
                    except Exception:  # of one session; the port serves the others
                        log.exception("error", extra={"fields": {"peer": repr(address)}})


class Demultiplexer:
    """Reads a UDP port; ``find`` returns the socket for the datagrams of a session."""

    def __init__(self, port: DatagramSocket, find: Callable[[int], socket.socket | None]) -> None:
        self.port, self._find = port, find
        self.close = PortReader(port, self._receive, "ftpkit-demux").close

    def _receive(self, raw: memoryview, address: SocketAddress) -> None:
        header = read_header(raw)
        inbox = self._find(header.session) if header else None
        if inbox is not None:
            # Full, or just closed: the datagram is lost, as UDP allows.
            with contextlib.suppress(OSError):
                inbox.send(json.dumps(address).encode() + b"\0" + raw)


class DemultiplexedPort:
    """The ``UdpPort`` of a worker: sends directly, and receives from ``inbox``."""

    def __init__(self, port: DatagramSocket, inbox: socket.socket) -> None:
        self._port, self._inbox = port, inbox
        inbox.setblocking(False)
        self.send_to = port.send_to

    def wait(self, seconds: float) -> bool:
        return os_sockets.wait_readable(self._inbox, seconds)

    def receive(self) -> Iterator[tuple[memoryview, SocketAddress]]:
        for _ in range(_MAX_BATCH):
            try:
                packed = self._inbox.recv(_MAX_DATAGRAM)
            except OSError:
                return
            source, _, raw = packed.partition(b"\0")
            if source:
                yield memoryview(raw), tuple(json.loads(source))

    def shutdown(self) -> None:
        with contextlib.suppress(OSError):
            self._inbox.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._inbox.close()
        self._port.close()
