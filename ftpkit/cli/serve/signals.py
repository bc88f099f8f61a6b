"""The signals that reload, stop, or immediately stop a server."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Final

RELOAD: Final = getattr(signal, "SIGHUP", None)


@contextlib.contextmanager
def handled_signals() -> Iterator[Callable[[], int]]:
    """Return a function that waits for SIGHUP, SIGTERM or SIGINT and returns its number.

    A second SIGTERM or SIGINT ends the process. The numbers arrive through a socket
    (``signal.set_wakeup_fd``): waiting for a lock would miss a signal that arrives just before, or
    in another thread.
    """

    def first(_number: int, _frame: object) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, second)

    def reload(_number: int, _frame: object) -> None:
        pass

    def second(number: int, _frame: object) -> None:
        os._exit(128 + number)

    receiver, sender = socket.socketpair()

    def next_signal() -> int:
        return receiver.recv(1)[0]

    with receiver, sender:
        sender.setblocking(False)
        before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        try:
            for each in (signal.SIGTERM, signal.SIGINT):
                signal.signal(each, first)
            if RELOAD is not None:
                signal.signal(RELOAD, reload)
            yield next_signal
        finally:
            signal.set_wakeup_fd(before)
