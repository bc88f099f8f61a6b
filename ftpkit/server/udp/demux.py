"""One UDP port for several workers: who reads it hands on to each what is for its sessions."""

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

# The rest of a session's number is by chance. No two workers live that far apart.
_WORKER_BITS: Final = 12
_CHANCE_BITS: Final = 32 - _WORKER_BITS
_LONGEST: Final = 64 * 1024 + 256
_MOST_AT_ONCE: Final = 64
_WAIT_S: Final = 1.0


def session_of(number: int) -> int:
    """Return the number of a session, by chance, that shows which worker has it."""
    return number % 2**_WORKER_BITS << _CHANCE_BITS | secrets.randbits(_CHANCE_BITS)


def is_session_of(number: int, session: int) -> bool:
    """Whether that worker has this session, if anybody does."""
    return session >> _CHANCE_BITS == number % 2**_WORKER_BITS


class Demultiplexer:
    """Reads a port, in a thread; ``find`` tells where to hand on what is for a session."""

    def __init__(self, port: DatagramSocket, find: Callable[[int], socket.socket | None]) -> None:
        self.port, self._find = port, find
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ftpkit-relay", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the port."""
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
                        # One that is full, or closed just now: the datagram is lost.
                        with contextlib.suppress(OSError):
                            inbox.send(json.dumps(address).encode() + b"\0" + raw)


class DemultiplexedPort:
    """The port as a worker has it: it sends by itself, and finds in ``inbox`` what has arrived."""

    def __init__(self, port: DatagramSocket, inbox: socket.socket) -> None:
        self._port, self._inbox = port, inbox
        inbox.setblocking(False)
        self.send_to: Callable[[Parts, tuple[Any, ...], tuple[Any, ...]], None] = port.send_to

    def wait(self, seconds: float) -> bool:
        """Wait until something has arrived; False says that the time has passed."""
        return os_sockets.wait_readable(self._inbox, seconds)

    def receive(self) -> Iterator[tuple[memoryview, Any]]:
        """Yield what has arrived, and from where."""
        for _ in range(_MOST_AT_ONCE):
            try:
                packed = self._inbox.recv(_LONGEST)
            except OSError:
                return
            address, _, raw = packed.partition(b"\0")
            if address:
                yield memoryview(raw), tuple(json.loads(address))

    def shutdown(self) -> None:
        """Wake up who waits; safe from another thread."""
        with contextlib.suppress(OSError):
            self._inbox.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the port."""
        self._inbox.close()
        self._port.close()
