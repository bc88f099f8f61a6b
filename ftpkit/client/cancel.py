"""A transfer is told to end by another thread, whatever it waits for."""

import contextlib
import socket
import threading


class Cancelled(Exception):  # noqa: N818  nothing went wrong
    """Ends a transfer that was cancelled; whoever runs it makes of it what its callers expect."""


class CancelToken:
    """Ends the waits of one transfer: for its connection, or for the next try.

    ``set`` may be called from any thread, the rest from that of the transfer.
    """

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None

    def cancel(self) -> None:
        """End them, and those to come; the connection is of no use then."""
        with self._lock:
            self._cancelled.set()
            if self._sock is not None:
                with contextlib.suppress(OSError):  # it may not be connected yet, or no longer
                    self._sock.shutdown(socket.SHUT_RDWR)

    def is_cancelled(self) -> bool:
        """Whether the transfer is to end."""
        return self._cancelled.is_set()

    def check(self) -> None:
        """Raise Stopped if the transfer is to end."""
        if self._cancelled.is_set():
            raise Cancelled

    def attach(self, sock: socket.socket) -> None:
        """Break this connection, and no other, with ``set``; Stopped if that was already called."""
        with self._lock:
            self.check()
            self._sock = sock

    def detach(self) -> None:
        """Leave the connection alone from now on."""
        with self._lock:
            self._sock = None

    def sleep(self, seconds: float) -> None:
        """Wait, or raise Stopped as soon as the transfer is to end."""
        if self._cancelled.wait(seconds):
            raise Cancelled
