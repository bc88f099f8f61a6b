"""Runs work that may take longer than a client should wait for a reply."""

import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, Final

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.messages import Pending

# WIRE.md promises a reply within 5 seconds.
_PATIENCE_S: Final = 4.0
# How long the result of a finished job is kept for the client.
_KEPT_S: Final = 300.0
# Each job is a thread, which continues even if its client is gone.
_MAX_JOBS: Final = 4096

Work = Callable[[Callable[[int, int], None]], Any]


class Jobs:
    """Runs work in threads; the same work requested again waits for the running job.

    A client that received ``pending`` repeats its request, possibly over another connection,
    and gets the result of the first.
    """

    def __init__(self, patience_s: float = _PATIENCE_S, max_running: int = _MAX_JOBS) -> None:
        self._patience_s, self._max_running = patience_s, max_running
        self._lock = threading.Lock()
        self._jobs: dict[Hashable, _Job] = {}
        self._stopped = False

    def run(self, key: Hashable, work: Work) -> Any:
        """Return what ``work`` returns, raise what it raises, or return Pending while it runs."""
        now = time.monotonic()
        with self._lock:
            self._jobs = {
                key: job for key, job in self._jobs.items() if now - job.finished_at < _KEPT_S
            }
            job = self._jobs.get(key)
            if job is None:
                if self._stopped:
                    raise RefusedError(Code.SHUTTING_DOWN, "the server is stopping")
                running = sum(not each.finished.is_set() for each in self._jobs.values())
                if running >= self._max_running:
                    raise RefusedError(Code.BUSY, "too many jobs are running; try again later")
                job = self._jobs[key] = _Job(work)
                job.thread.start()
        if not job.finished.wait(self._patience_s):
            return Pending(done=job.done, total=job.total)
        with self._lock:
            if self._jobs.get(key) is job:
                del self._jobs[key]
        if job.error is not None:
            raise job.error
        return job.result

    def forget(self, key: Hashable) -> None:
        """Drop the result of a finished job that no client has fetched yet."""
        with self._lock:
            job = self._jobs.get(key)
            if job is not None and job.finished.is_set():
                del self._jobs[key]

    def stop(self) -> None:
        """Refuse new work, and wait for running jobs."""
        with self._lock:
            self._stopped = True
            jobs = list(self._jobs.values())
        for job in jobs:
            job.thread.join()


class _Job:
    def __init__(self, work: Work) -> None:
        self.done, self.total = 0, 0
        self.result: Any = None
        self.error: BaseException | None = None
        self.finished = threading.Event()
        self.finished_at = float("inf")
        self._work = work
        self.thread = threading.Thread(target=self._run, name="ftpkit-job", daemon=True)

    def _run(self) -> None:
        try:
            self.result = self._work(self._progress)
        except BaseException as error:  # noqa: BLE001  raised again in ``run``
            self.error = error
        self.finished_at = time.monotonic()
        self.finished.set()

    def _progress(self, done: int, total: int) -> None:
        self.done, self.total = done, total
