"""The status of all workers as one."""

import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Final

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.status import ServerStatus
from ftpkit.server.status import NO_TOTALS, merge_status, sum_totals
from ftpkit.server.workers.pool import WorkerHandle

# A worker that has not replied by then is left out.
_TIMEOUT_S: Final = 2.0

Replies = dict[WorkerHandle, ServerStatus | None]


class StatusAggregator:
    """Merges the statuses of the workers, and keeps the totals of those that ended."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._changed = threading.Condition()
        self._latest: Replies = {}
        self._ended = NO_TOTALS
        self._calls = count()
        self._pending: dict[int, Replies] = {}

    def join(self, worker: WorkerHandle) -> None:
        with self._changed:
            self._latest[worker] = None

    def leave(self, worker: WorkerHandle) -> None:
        """Remove a worker that has ended; keep its latest totals."""
        with self._changed:
            latest = self._latest.pop(worker, None)
            if latest is not None:
                self._ended = sum_totals(self._ended, latest["totals"])
            for replies in self._pending.values():
                replies.pop(worker, None)
            self._changed.notify_all()

    def receive(self, worker: WorkerHandle, call: int | None, status: ServerStatus) -> None:
        """Accept the status of a worker, in reply to ``call``; None is the one before it ends."""
        with self._changed:
            if worker in self._latest:
                self._latest[worker] = status
            if call in self._pending and worker in self._pending[call]:
                self._pending[call][worker] = status
                self._changed.notify_all()

    def status(self, request: Callable[[WorkerHandle, int], None]) -> ServerStatus:
        """Return the merged status; ``request`` sends the number of a call to a worker.

        RefusedError if no worker replies within 2 seconds.
        """
        with self._changed:
            call, replies = next(self._calls), Replies.fromkeys(self._latest)
            self._pending[call] = replies
        for worker in list(replies):
            request(worker, call)
        with self._changed:
            self._changed.wait_for(lambda: None not in replies.values(), _TIMEOUT_S)
            del self._pending[call]
            found = {worker.number: each for worker, each in replies.items() if each is not None}
            ended = self._ended
        if not found:
            raise RefusedError(Code.BUSY, "no worker process answers; try again")
        return merge_status(found, uptime_s=round(time.monotonic() - self._since, 3), before=ended)
