"""Shares one UDP port among workers: each gets the datagrams of its own sessions."""

import contextlib
import json
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

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


def session_of(number: int) -> int:
    """Return a random session id that names worker ``number``."""
    return number % 2**_WORKER_BITS << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)


def is_session_of(number: int, session: int) -> bool:
    """Whether the session id names worker ``number``."""
    return session >> _RANDOM_BITS == number % 2**_WORKER_BITS


class Demultiplexer:
    """Reads a UDP port in a thread; ``find`` returns the socket for the datagrams of a session."""

    def __init__(self, port: DatagramSocket, find: Callable[[int], socket.socket | None]) -> None:
        self.port, self._find = port, find
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ftpkit-demux", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread and close the port."""
        self._closed.set()
        self.port.shutdown()
        self._thread.join()
        self.port.close()

    def _run(self) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(ConnectionLostError):
                self.port.wait(_WAIT_S)
                for raw, address in self.port.receive():
                    header = read_header(raw)
                    inbox = self._find(header.session) if header else None
                    if inbox is not None:
                        # Full, or just closed: the datagram is lost, as UDP allows.
                        with contextlib.suppress(OSError):
                            inbox.send(json.dumps(address).encode() + b"\0" + raw)


class DemultiplexedPort:
    """The port as a worker sees it: sends directly, and receives from ``inbox``."""

    def __init__(self, port: DatagramSocket, inbox: socket.socket) -> None:
        self._port, self._inbox = port, inbox
        inbox.setblocking(False)
        self.send_to: Callable[[Parts, tuple[Any, ...], tuple[Any, ...]], None] = port.send_to

    def wait(self, seconds: float) -> bool:
        """Wait for a datagram; False after ``seconds``."""
        return os_sockets.wait_readable(self._inbox, seconds)

    def receive(self) -> Iterator[tuple[memoryview, Any]]:
        """Yield the datagrams that have arrived, with their source addresses."""
        for _ in range(_MAX_BATCH):
            try:
                packed = self._inbox.recv(_MAX_DATAGRAM)
            except OSError:
                return
            source, _, raw = packed.partition(b"\0")
            if source:
                yield memoryview(raw), tuple(json.loads(source))

    def shutdown(self) -> None:
        """End a ``wait``; any thread may call this."""
        with contextlib.suppress(OSError):
            self._inbox.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close both sockets."""
        self._inbox.close()
        self._port.close()
