"""The signals that tell a server to read its settings again, to end, or to end at once."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Final

RELOAD: Final = getattr(signal, "SIGHUP", None)


@contextlib.contextmanager
def heard() -> Iterator[Callable[[], int]]:
    """Give what waits for SIGHUP, or the first SIGTERM or SIGINT; the second ends the process.

    The numbers come through a socket, into which they are written before Python's own handlers
    run: one that comes just before the wait for a lock, or in another thread, would not end it.
    """

    def first(_number: int, _frame: object) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, second)

    def reload(_number: int, _frame: object) -> None:
        pass

    def second(number: int, _frame: object) -> None:
        os._exit(128 + number)

    arrived, told = socket.socketpair()

    def next_signal() -> int:
        return arrived.recv(1)[0]

    with arrived, told:
        told.setblocking(False)
        before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        try:
            for each in (signal.SIGTERM, signal.SIGINT):
                signal.signal(each, first)
            if RELOAD is not None:
                signal.signal(RELOAD, reload)
            yield next_signal
        finally:
            signal.set_wakeup_fd(before)
