"""The signals that tell a server to read its settings again, to end, or to end at once."""

import os
import queue
import signal
from typing import Final

RELOAD: Final = getattr(signal, "SIGHUP", None)


def heard() -> "queue.SimpleQueue[int]":
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
    if RELOAD is not None:
        signal.signal(RELOAD, reload)
    return arrived
