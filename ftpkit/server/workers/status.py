"""What all workers do, in one status: each is asked for its part."""

import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Final

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.status import ServerStatus
from ftpkit.server.status import added, merged, nothing
from ftpkit.server.workers.pool import WorkerHandle

# One that has not answered by then is left out.
_PATIENCE_S: Final = 2.0


class StatusAggregator:
    """Gathers the status of a server from its workers; what those counted that end is kept."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._changed = threading.Condition()
        self._last: dict[WorkerHandle, ServerStatus | None] = {}
        self._before = nothing()
        self._calls = count()
        self._asked: dict[int, dict[WorkerHandle, ServerStatus | None]] = {}

    def join(self, worker: WorkerHandle) -> None:
        """Ask this worker from now on."""
        with self._changed:
            self._last[worker] = None

    def leave(self, worker: WorkerHandle) -> None:
        """Ask it no more: it has ended."""
        with self._changed:
            last = self._last.pop(worker, None)
            if last is not None:
                self._before = added(self._before, last["totals"])
            for parts in self._asked.values():
                parts.pop(worker, None)
            self._changed.notify_all()

    def heard(self, worker: WorkerHandle, call: int | None, part: ServerStatus) -> None:
        """Take what a worker tells of itself; unasked, without ``call``, before it ends."""
        with self._changed:
            if worker in self._last:
                self._last[worker] = part
            if call in self._asked and worker in self._asked[call]:
                self._asked[call][worker] = part
                self._changed.notify_all()

    def status(self, ask: Callable[[WorkerHandle, int], None]) -> ServerStatus:
        """Return the status of the whole; ``ask`` passes on the number of a call to a worker.

        RefusedError says that none answers.
        """
        with self._changed:
            call, parts = (
                next(self._calls),
                dict[WorkerHandle, ServerStatus | None].fromkeys(self._last),
            )
            self._asked[call] = parts
        for worker in list(parts):
            ask(worker, call)
        with self._changed:
            self._changed.wait_for(lambda: None not in parts.values(), _PATIENCE_S)
            del self._asked[call]
            heard = {worker.number: part for worker, part in parts.items() if part is not None}
            before = self._before
        if not heard:
            raise RefusedError(Code.BUSY, "no process of the server tells what it does")
        return merged(heard, uptime_s=round(time.monotonic() - self._since, 3), before=before)
