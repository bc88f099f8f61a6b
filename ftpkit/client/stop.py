"""A transfer is told to end by another thread, whatever it waits for."""

import contextlib
import socket
import threading


class Stopped(Exception):  # noqa: N818  nothing went wrong
    """Ends a transfer that was cancelled; whoever runs it makes of it what its callers expect."""


class Stop:
    """Ends the waits of one transfer: for its connection, or for the next try.

    ``set`` may be called from any thread, the rest from that of the transfer.
    """

    def __init__(self) -> None:
        self._set = threading.Event()
        self._turn = threading.Lock()
        self._sock: socket.socket | None = None

    def set(self) -> None:
        """End them, and those to come; the connection is of no use then."""
        with self._turn:
            self._set.set()
            if self._sock is not None:
                with contextlib.suppress(OSError):  # it may not be connected yet, or no longer
                    self._sock.shutdown(socket.SHUT_RDWR)

    def is_set(self) -> bool:
        """Whether the transfer is to end."""
        return self._set.is_set()

    def check(self) -> None:
        """Raise Stopped if the transfer is to end."""
        if self._set.is_set():
            raise Stopped

    def watch(self, sock: socket.socket) -> None:
        """Break this connection, and no other, with ``set``; Stopped if that was already called."""
        with self._turn:
            self.check()
            self._sock = sock

    def release(self) -> None:
        """Leave the connection alone from now on."""
        with self._turn:
            self._sock = None

    def sleep(self, seconds: float) -> None:
        """Wait, or raise Stopped as soon as the transfer is to end."""
        if self._set.wait(seconds):
            raise Stopped
