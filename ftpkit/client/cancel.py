"""Cancel a transfer from another thread, whatever it is waiting for."""

import contextlib
import socket
import threading


class Cancelled(Exception):  # noqa: N818  nothing went wrong
    """Raised in the thread of a transfer that was cancelled."""


class CancelToken:
    """Interrupts what one transfer waits for: its connection, or the next retry.

    ``cancel`` may be called from any thread, the other methods from that of the transfer.
    """

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None

    def cancel(self) -> None:
        """Interrupt this and every later wait; the attached connection can no longer be used."""
        with self._lock:
            self._cancelled.set()
            if self._sock is not None:
                with contextlib.suppress(OSError):  # not connected yet, or no longer
                    self._sock.shutdown(socket.SHUT_RDWR)

    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def check(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled

    def attach(self, sock: socket.socket) -> None:
        """Have ``cancel`` shut down ``sock``; raise Cancelled if it was already called."""
        with self._lock:
            self.check()
            self._sock = sock

    def detach(self) -> None:
        with self._lock:
            self._sock = None

    def sleep(self, seconds: float) -> None:
        """Wait ``seconds``; raise Cancelled as soon as ``cancel`` is called."""
        if self._cancelled.wait(seconds):
            raise Cancelled
