"""The worker processes of a server: start, restart, replace and join them."""

import contextlib
import logging
import multiprocessing
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess
from typing import Final

from ftpkit.osapi import process as os_process
from ftpkit.server.workers.ipc import IpcChannel
from ftpkit.server.workers.pool import WorkerHandle, WorkerPool, WorkerState
from ftpkit.server.workers.worker import WorkerConfig, run_worker
from ftpkit.storage.api import ShareableStore, StoreLease

# How long a worker may take to end after its grace period, and to start.
_EXIT_TIMEOUT_S: Final = 5.0
_START_TIMEOUT_S: Final = 60.0
# A worker that ran for less probably failed of something that the next one fails of, too.
_HEALTHY_S: Final = 10.0
_MIN_DELAY_S: Final = 0.05
_MAX_DELAY_S: Final = 2.0

# A fork would copy locks that other threads hold, and every descriptor. A fork server would
# be the parent of the workers, and would have to be asked for their exit codes.
_SPAWN: Final = multiprocessing.get_context("spawn")

log = logging.getLogger("ftpkit.server")


def next_delay(delay_s: float, lived_s: float) -> float:
    """Return the delay before a worker replaces one that died after ``lived_s``."""
    if lived_s >= _HEALTHY_S:
        return 0.0
    return min(max(2 * delay_s, _MIN_DELAY_S), _MAX_DELAY_S)


class WorkerProcesses:
    """Keeps as many worker processes running as ``config`` says.

    All of them are started and joined in the thread of ``run``, as Linux ends a process with
    the thread that started it. Another thread calls ``receive`` for each worker, until that
    has closed its channel. ``connect`` sends a new worker its descriptors.
    """

    def __init__(
        self,
        config: WorkerConfig,
        pool: WorkerPool,
        stopping: threading.Event,
        *,
        connect: Callable[[WorkerHandle, StoreLease], None],
        receive: Callable[[WorkerHandle], None],
    ) -> None:
        self.config = config
        self._pool, self._stopping = pool, stopping
        self._connect, self._receive = connect, receive
        self._numbers = count(1)
        self._running: dict[WorkerHandle, _Process] = {}
        self._todo: queue.SimpleQueue[Callable[[ShareableStore], object]] = queue.SimpleQueue()
        self._ended = False
        self._delay_s, self._not_before = 0.0, 0.0

    def replace(self, config: WorkerConfig, done: Callable[[bool], None]) -> None:
        """Start workers with ``config``, and let the present ones finish; it returns at once.

        ``done`` is called in the thread of ``run``, with False if the new workers did not
        start, and the present ones go on.
        """
        self._todo.put(lambda store: done(self._replace(store, config)))

    def stop(self, grace_s: float) -> None:
        """Let all workers end within ``grace_s``; then ``run`` returns."""
        self._todo.put(partial(self._end, grace_s=grace_s))

    def run(self, store: ShareableStore) -> None:
        """Start and join processes, which share ``store``, until ``stop``."""
        resource_tracker.ensure_running()  # starting it later would unblock the signals
        # A new worker must not die of a Ctrl-C before it ignores that.
        signal.pthread_sigmask(signal.SIG_BLOCK, os_process.GROUP_SIGNALS)
        while not self._ended:
            try:
                step = self._todo.get(timeout=self._wait_s())
            except queue.Empty:
                step = partial(self._start, config=self.config)
            try:
                step(store)
            except Exception:  # of one process; the others need this thread
                self._not_before = time.monotonic() + _MAX_DELAY_S
                log.exception("error", extra={"fields": {}})

    def _wait_s(self) -> float | None:
        """Return the seconds until a missing worker is to be started; None if none is missing."""
        if self._stopping.is_set() or len(self._pool.serving()) >= self.config.workers:
            return None
        return max(0.0, self._not_before - time.monotonic())

    def _replace(self, store: ShareableStore, config: WorkerConfig) -> bool:
        if self._stopping.is_set():
            return False
        deadline, workers = time.monotonic() + _START_TIMEOUT_S, list[WorkerHandle]()
        try:
            for _ in range(config.workers):
                workers.append(self._start(store, config))
            for worker in workers:
                worker.started.wait(max(0.0, deadline - time.monotonic()))
        except OSError:
            log.exception("error", extra={"fields": {}})
        if [worker.state for worker in workers] != [WorkerState.SERVING] * config.workers:
            for worker in workers:
                self._running[worker].process.kill()
            return False
        self.config = config
        self._pool.replace(workers)
        return True

    def _start(self, store: ShareableStore, config: WorkerConfig) -> WorkerHandle:
        number = next(self._numbers)
        lease = store.lease(number)
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as undo, theirs:
            undo.callback(ours.close)
            args = (theirs, number, lease.open, config)
            process = _SPAWN.Process(target=run_worker, args=args, name=str(number), daemon=True)
            process.start()
            undo.pop_all()
        worker = WorkerHandle(number, IpcChannel(ours))
        self._connect(worker, lease)
        self._pool.join(worker)
        thread = threading.Thread(
            target=self._follow, args=(worker,), name="ftpkit-ipc", daemon=True
        )
        self._running[worker] = _Process(process, thread, time.monotonic())
        thread.start()
        return worker

    def _follow(self, worker: WorkerHandle) -> None:
        self._receive(worker)
        worker.channel.interrupt()
        worker.started.set()
        self._todo.put(partial(self._reap, worker=worker))

    def _reap(self, store: ShareableStore, worker: WorkerHandle) -> None:
        running = self._running.pop(worker)
        process = running.process
        process.join(_EXIT_TIMEOUT_S)
        if process.exitcode is None:
            process.kill()
            process.join()
        code = process.exitcode
        process.close()
        running.thread.join()
        worker.close()
        expected = worker.state is WorkerState.ENDED or self._stopping.is_set()
        self._pool.reap(worker)
        store.reclaim(worker.number)
        if not expected:
            now = time.monotonic()
            self._delay_s = next_delay(self._delay_s, now - running.since)
            self._not_before = now + self._delay_s
            log.warning("worker died", extra={"fields": {"number": worker.number, "exit": code}})

    def _end(self, store: ShareableStore, grace_s: float) -> None:
        for worker in self._running:
            worker.send("stop", grace_s=grace_s)
        deadline = time.monotonic() + grace_s + _EXIT_TIMEOUT_S
        while self._running:
            try:
                self._todo.get(timeout=max(0.0, deadline - time.monotonic()))(store)
            except queue.Empty:
                for running in self._running.values():
                    running.process.kill()
                deadline += _EXIT_TIMEOUT_S
        self._ended = True


@dataclass(frozen=True, slots=True)
class _Process:
    process: SpawnProcess
    thread: threading.Thread
    since: float
