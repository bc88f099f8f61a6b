"""Runs work that may take longer than a client should wait for a reply."""

import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, Final

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.messages import Pending

# WIRE.md promises a reply within 5 seconds; a client may have a shorter timeout.
_PATIENCE_S: Final = 2.0
# How long the result of a finished job is kept for the client.
_KEPT_S: Final = 300.0
# WIRE.md: a job that no request has waited for during this time ends.
_ABANDONED_S: Final = 10.0
# Jobs of one user that run while no request waits for them: each is a thread.
_MAX_UNATTENDED: Final = 64
# A job that waits for the disk has no bytes to count: its milliseconds count, but not for ever.
_MAX_FLUSH_MS: Final = 600_000

Work = Callable[[Callable[[int, int], None]], Any]
"""Is called with a function to report progress to, which raises RefusedError to end the work."""


class Jobs:
    """Runs work in threads; the same work requested again waits for the running job.

    A client that received ``pending`` asks again, possibly over another connection, and gets
    the result of the first request.
    """

    def __init__(
        self,
        patience_s: float = _PATIENCE_S,
        abandoned_s: float = _ABANDONED_S,
        max_unattended: int = _MAX_UNATTENDED,
    ) -> None:
        self._patience_s, self._abandoned_s = patience_s, abandoned_s
        self._max_unattended = max_unattended
        self._lock = threading.Lock()
        self._jobs: dict[Hashable, _Job] = {}
        self._stopped = False

    def run(
        self, key: Hashable, work: Work, *, user: Hashable = None, must_finish: bool = False
    ) -> Any:
        """Return what ``work`` returns, raise what it raises, or return Pending while it runs.

        Work that no request waits for any more ends at its next report of progress, unless it
        ``must_finish``. A ``user`` with too much of it gets no more: RefusedError ``busy``.
        """
        with self._lock:
            self._forget_old()
            job = self._jobs.get(key)
            if job is None or job.cancelled:
                self._check_allowed(user)
                job = _Job(work, user, self._check)
                job.must_finish = must_finish
                job.thread.start()
                self._jobs[key] = job
            job.waiting += 1
        reply = self._wait(job)
        if not isinstance(reply, Pending):
            with self._lock:
                if self._jobs.get(key) is job:
                    del self._jobs[key]
        return self._result(job, reply)

    def wait(self, key: Hashable) -> Any:
        """As ``run`` for a job that was begun; its result remains, for a reply may be lost.

        RefusedError ``not-found``: there is no such job.
        """
        with self._lock:
            self._forget_old()
            job = self._jobs.get(key)
            if job is None:
                raise RefusedError(
                    Code.NOT_FOUND, "there is no such job: send the first request again"
                )
            job.waiting += 1
        return self._result(job, self._wait(job))

    def forget(self, key: Hashable) -> None:
        """Drop the result of a finished job that no client has fetched yet."""
        with self._lock:
            job = self._jobs.get(key)
            if job is not None and job.finished.is_set():
                del self._jobs[key]

    def stop(self) -> None:
        """Refuse new work, end running jobs, and wait for what they cannot interrupt."""
        with self._lock:
            self._stopped = True
            jobs = list(self._jobs.values())
        for job in jobs:
            job.thread.join()

    def _wait(self, job: "_Job") -> Pending | None:
        """Wait for a job that the caller has counted itself in; None: it has finished."""
        finished = job.finished.wait(self._patience_s)
        with self._lock:
            job.waiting -= 1
            job.left_at = time.monotonic()
        return None if finished else job.pending()

    @staticmethod
    def _result(job: "_Job", pending: Pending | None) -> Any:
        if pending is not None:
            return pending
        if job.error is not None:
            raise job.error
        return job.result

    def _check(self, job: "_Job") -> None:
        """Raise RefusedError in the thread of a job that is to end."""
        with self._lock:
            if self._stopped:
                raise RefusedError(Code.SHUTTING_DOWN, "the server is stopping")
            unattended_s = 0.0 if job.waiting else time.monotonic() - job.left_at
            if unattended_s > self._abandoned_s and not job.must_finish:
                job.cancelled = True
                raise RefusedError(Code.TIMEOUT, "no request waited for the result any more")

    # The methods below are called with the lock held.

    def _check_allowed(self, user: Hashable) -> None:
        if self._stopped:
            raise RefusedError(Code.SHUTTING_DOWN, "the server is stopping")
        unattended = sum(
            job.user == user and not job.waiting and not job.finished.is_set()
            for job in self._jobs.values()
        )
        if unattended >= self._max_unattended:
            raise RefusedError(
                Code.BUSY, "too many operations of this user are running; try again later"
            )

    def _forget_old(self) -> None:
        now = time.monotonic()
        self._jobs = {
            key: job for key, job in self._jobs.items() if now - job.finished_at < _KEPT_S
        }


class _Job:
    def __init__(self, work: Work, user: Hashable, check: Callable[["_Job"], None]) -> None:
        self.user = user
        self.result: Any = None
        self.error: BaseException | None = None
        self.finished = threading.Event()
        self.finished_at = float("inf")
        self.must_finish = self.cancelled = False
        self.waiting = 0
        """How many requests wait for it."""
        self.left_at = 0.0
        """When the last of them was answered."""
        self._done, self._total, self._reported_at = 0, 0, time.monotonic()
        self._work, self._check = work, check
        self.thread = threading.Thread(target=self._run, name="ftpkit-job", daemon=True)

    def pending(self) -> Pending:
        """Return the reply to a request that cannot wait longer."""
        done, total = self._done, self._total
        if done >= total:
            flushing_s = time.monotonic() - self._reported_at
            done += min(int(flushing_s * 1000), _MAX_FLUSH_MS)
        return Pending(done=done, total=max(done, total))

    def _run(self) -> None:
        try:
            self.result = self._work(self._progress)
        except BaseException as error:  # noqa: BLE001  raised again in ``Jobs.run``
            self.error = error
        self.finished_at = time.monotonic()
        self.finished.set()

    def _progress(self, done: int, total: int) -> None:
        self._done, self._total, self._reported_at = done, total, time.monotonic()
        self._check(self)
