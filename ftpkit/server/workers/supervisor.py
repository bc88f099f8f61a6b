"""Several processes that serve one root: a supervisor starts, replaces and outlives them."""

import contextlib
import json
import logging
import multiprocessing
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess
from typing import Final

from ftpkit.errors import Code, ConnectionLostError, RefusedError
from ftpkit.net.address import DEFAULT_PORT, Address
from ftpkit.net.tls_identity import Identity
from ftpkit.osapi import process as os_process
from ftpkit.protocol.frame import Header
from ftpkit.protocol.status import ServerStatus, decode_status, encode_status
from ftpkit.server.auth.shared_limits import LocalLimits
from ftpkit.server.handler import sweep_hourly
from ftpkit.server.limits import DEFAULT_LIMITS, Limits
from ftpkit.server.listener import Listeners
from ftpkit.server.sockets import ListeningSocket
from ftpkit.server.udp.demux import Demultiplexer
from ftpkit.server.workers.ipc import IpcChannel
from ftpkit.server.workers.limits_server import SharedLimitsServer
from ftpkit.server.workers.pool import State, SupervisorLocks, WorkerHandle, WorkerPool
from ftpkit.server.workers.scheduler_server import SchedulerServer
from ftpkit.server.workers.status import StatusAggregator
from ftpkit.server.workers.worker import work
from ftpkit.storage import DirectoryStore
from ftpkit.storage.api import StoreLease

# A worker that has no more time to end, or to start.
_ENDING_S: Final = 5.0
_STARTING_S: Final = 60.0
# One that lived for less died of something that the next will die of, too.
_HEALTHY_S: Final = 10.0
_LEAST_DELAY_S: Final = 0.05
_MOST_DELAY_S: Final = 2.0

# A fork would copy the locks of our threads as they are just then, and every descriptor; a
# fork server would be the parent, and be asked for what has become of its children.
_SPAWN: Final = multiprocessing.get_context("spawn")

log = logging.getLogger("ftpkit.server")


def _nothing() -> None:
    """Do nothing."""


def next_delay(delay_s: float, lived_s: float) -> float:
    """Return how long to wait with the next worker, when one has died after ``lived_s``."""
    if lived_s >= _HEALTHY_S:
        return 0.0
    return min(max(2 * delay_s, _LEAST_DELAY_S), _MOST_DELAY_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """How many workers there are to be, and what they are told.

    ``tokens`` is the file that they are in; without, everybody is let in. ``on_start`` is
    called in each before it serves; it is pickled.
    """

    workers: int
    limits: Limits = DEFAULT_LIMITS
    identity: Identity | None = None
    plain: bool = False
    tokens: str | None = None
    durable: bool = True
    on_start: Callable[[], None] = _nothing


class Supervisor:
    """Serves the directory ``root`` with several processes, as ``Server`` does with one.

    This process serves no client: it accepts connections and hands each to a worker. The
    limits on connections hold for all workers together.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        config: WorkerConfig,
        *,
        host: str | None = None,
        port: int = DEFAULT_PORT,
        datagrams: bool = True,
        sockets: Sequence[ListeningSocket] = (),
    ) -> None:
        self._root, self._config = root, config
        self._listeners = Listeners(
            host,
            port,
            config.limits,
            lambda *connection: self._pool.dispatch(*connection),
            datagrams=datagrams,
            sockets=sockets,
            threaded=False,
        )
        self.connection_limiter = self._listeners.connection_limiter
        self._stopping = self._listeners.stopping
        self._shared_limits = LocalLimits(self._used)
        self._pool = WorkerPool(self.connection_limiter, SharedLimitsServer(self._shared_limits))
        self._aggregator = StatusAggregator()
        self._turns = SchedulerServer(config.limits)
        self._store: DirectoryStore | None = None
        self._relays: list[Demultiplexer] = []
        self._numbers = count(1)
        self._processes: dict[WorkerHandle, _Process] = {}
        self._todo: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._done = False
        self._delay_s, self._not_before = 0.0, 0.0

    @property
    def config(self) -> WorkerConfig:
        """What the workers were told."""
        return self._config

    @property
    def identity(self) -> Identity | None:
        """Who the server is, to those that connect from now on."""
        return self._config.identity

    @property
    def addresses(self) -> list[Address]:
        """Where the server listens."""
        return self._listeners.addresses

    @property
    def address(self) -> Address:
        """The first address on which the server listens."""
        return self.addresses[0]

    def start(self) -> None:
        """Listen, open the root, and serve; OSError says why that is impossible."""
        store = self._store = DirectoryStore(self._root, durable=self._config.durable)
        store.use_locks(SupervisorLocks(self._pool))
        self._turns.start()
        try:
            self._relays = [
                Demultiplexer(port, partial(self._pool.inbox, index))
                for index, port in enumerate(self._listeners.open())
            ]
            # Connections that arrive already wait until there are workers.
            self._listeners.accept()
            started = queue.SimpleQueue[bool]()
            # First, for the thread that finds nothing to do starts the workers that are missing.
            self._todo.put(lambda: started.put(self._replace(self._config)))
            self._listeners.start_thread("ftpkit-workers", self._supervise)
            if not started.get():
                raise OSError("the workers do not start")
        except BaseException:
            self._shut(0.0)
            raise
        self._listeners.start_thread(
            "ftpkit-sweep", lambda: sweep_hourly(store, lambda: self._config.limits, self._stopping)
        )
        self._listeners.log_start(workers=self._config.workers)

    def stop(self, grace_s: float = 30.0) -> None:
        """Accept nobody, let running transfers go on for ``grace_s``, then end what is left."""
        self._shut(grace_s)
        log.info("stopped", extra={"fields": {}})

    def _shut(self, grace_s: float) -> None:
        self._stopping.set()
        self._pool.stop()
        self._listeners.close()
        self._todo.put(partial(self._end, grace_s))
        self._listeners.join()
        self._turns.stop()
        for relay in self._relays:
            relay.close()
        self._shared_limits.close()
        self._relays = []
        if self._store is not None:
            self._store.close()
            self._store = None

    def change(self, config: WorkerConfig, done: Callable[[], None] = _nothing) -> None:
        """Replace the workers by others with ``config``; no connection is refused meanwhile.

        It returns at once. Where the new ones do not start, the old ones go on. Whichever it
        is, ``done`` is called in another thread then.
        """

        def change() -> None:
            self._change(config)
            done()

        self._todo.put(change)

    def status(self) -> ServerStatus:
        """Tell what all workers do; RefusedError says that none answers."""

        def ask(worker: WorkerHandle, call: int) -> None:
            positions = list(self._turns.positions(worker).items())
            worker.tell("status", body=json.dumps(positions).encode(), call=call)

        return self._aggregator.status(ask)

    def _used(self, name: str, go_on: Callable[[], bool]) -> int:
        if self._store is None:
            raise RefusedError(Code.SHUTTING_DOWN, "the server does not run")
        return self._store.used_bytes(name, go_on)

    # In the thread that starts and joins all processes: they end with it.

    def _supervise(self) -> None:
        resource_tracker.ensure_running()  # by itself it would unblock what we block
        # A worker that does not ignore them yet must not die of a Ctrl-C.
        signal.pthread_sigmask(signal.SIG_BLOCK, os_process.GROUP_SIGNALS)
        while not self._done:
            try:
                step = self._todo.get(timeout=self._wait_s())
            except queue.Empty:
                step = partial(self._start_worker, self._config)
            try:
                step()
            except Exception:  # no process could be started, say: the others need this thread
                self._not_before = time.monotonic() + _MOST_DELAY_S
                log.exception("error", extra={"fields": {}})

    def _wait_s(self) -> float | None:
        """Return after what time to start a worker, because one is missing."""
        if self._stopping.is_set() or len(self._pool.serving()) >= self._config.workers:
            return None
        return max(0.0, self._not_before - time.monotonic())

    def _replace(self, config: WorkerConfig) -> bool:
        """Start new workers; when they serve, the old ones finish and end, else they go on."""
        if self._stopping.is_set():
            return False
        deadline, workers = time.monotonic() + _STARTING_S, list[WorkerHandle]()
        try:
            for _ in range(config.workers):
                workers.append(self._start_worker(config))
            for worker in workers:
                worker.settled.wait(max(0.0, deadline - time.monotonic()))
        except OSError:
            log.exception("error", extra={"fields": {}})
        if [worker.state for worker in workers] != [State.SERVING] * config.workers:
            for worker in workers:
                self._processes[worker].process.kill()
            return False
        self._config = config
        self._pool.replace(workers)
        return True

    def _change(self, config: WorkerConfig) -> None:
        if self._replace(config):
            limits = config.limits
            self._listeners.change(limits)
            self._turns.configure(limits)
            for worker in self._processes:
                worker.tell("limits", limits=asdict(limits))
            log.info("reloaded", extra={"fields": {"workers": config.workers}})
        elif not self._stopping.is_set():
            log.error("error", extra={"fields": {"error": "the new workers do not start"}})

    def _start_worker(self, config: WorkerConfig) -> WorkerHandle:
        number = next(self._numbers)
        if self._store is None:
            raise RefusedError(Code.SHUTTING_DOWN, "the server does not run")
        lease = self._store.lease(number)
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as undo, theirs:
            undo.callback(ours.close)
            process = _SPAWN.Process(
                target=work,
                args=(theirs, number, lease.open, config.on_start),
                name=str(number),
                daemon=True,
            )
            process.start()
            undo.pop_all()
        worker = WorkerHandle(number, IpcChannel(ours))
        self._tell_plan(worker, config, lease)
        self._pool.join(worker)
        thread = threading.Thread(
            target=self._receive, args=(worker,), name="ftpkit-broker", daemon=True
        )
        self._processes[worker] = _Process(process, thread, time.monotonic())
        thread.start()
        return worker

    def _tell_plan(self, worker: WorkerHandle, config: WorkerConfig, lease: StoreLease) -> None:
        """Tell a worker what it is to do, and give it the lock and its side of each UDP port."""
        with contextlib.ExitStack() as stack:
            fds = list(lease.descriptors)
            for relay in self._relays:
                inbox, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
                inbox.setblocking(False)
                worker.inboxes.append(inbox)
                fds += [relay.port.fileno(), stack.enter_context(theirs).fileno()]
            identity = config.identity
            worker.tell(
                "plan",
                body=b"" if identity is None else identity.certificate + identity.key,
                fds=fds,
                descriptors=len(lease.descriptors),
                limits=asdict(config.limits),
                certificate=None if identity is None else len(identity.certificate),
                plain=config.plain,
                tokens=config.tokens,
            )

    def _receive(self, worker: WorkerHandle) -> None:
        """Do what a worker asks for, until it has ended."""
        try:
            while True:
                self._follow(worker, *worker.channel.receive())
        except ConnectionLostError:
            pass
        except Exception:  # of which the other workers must hear nothing
            log.exception("error", extra={"fields": {"worker": worker.number}})
        worker.channel.interrupt()
        worker.settled.set()
        self._aggregator.leave(worker)
        self._turns.leave(worker)
        self._todo.put(partial(self._reap, worker))

    def _follow(self, worker: WorkerHandle, header: Header, body: bytes, fds: list[int]) -> None:
        match header["op"]:
            case "status":
                # Not in this thread: it is to receive this worker's own part.
                args = (worker, header["call"])
                threading.Thread(target=self._answer_status, args=args, daemon=True).start()
            case "part":
                self._aggregator.heard(worker, header["call"], decode_status(body))
            case "schedule":
                self._turns.receive(worker, header)
            case op:
                if op == "ready":
                    self._aggregator.join(worker)
                self._pool.receive(worker, header, body, fds)

    def _answer_status(self, worker: WorkerHandle, call: int) -> None:
        try:
            worker.tell("answer", body=encode_status(self.status()), call=call)
        except RefusedError as refusal:
            worker.tell("answer", call=call, refused=str(refusal))

    def _reap(self, worker: WorkerHandle) -> None:
        """Join a worker that has ended, and tidy up behind it."""
        held = self._processes.pop(worker)
        held.process.join(_ENDING_S)
        if held.process.exitcode is None:
            held.process.kill()
            held.process.join()
        code = held.process.exitcode
        held.process.close()
        held.thread.join()
        worker.close()
        expected = worker.state is State.ENDED or self._stopping.is_set()
        self._pool.reap(worker)
        if self._store is not None:
            self._store.reclaim(worker.number)
        if not expected:
            now = time.monotonic()
            self._delay_s = next_delay(self._delay_s, now - held.since)
            self._not_before = now + self._delay_s
            log.warning("worker died", extra={"fields": {"number": worker.number, "exit": code}})

    def _end(self, grace_s: float) -> None:
        """Let all workers end, and end those that do not."""
        for worker in self._processes:
            worker.tell("stop", grace_s=grace_s)
        deadline = time.monotonic() + grace_s + _ENDING_S
        while self._processes:
            try:
                self._todo.get(timeout=max(0.0, deadline - time.monotonic()))()
            except queue.Empty:
                for held in self._processes.values():
                    held.process.kill()
                deadline += _ENDING_S
        self._done = True


@dataclass(frozen=True, slots=True)
class _Process:
    process: SpawnProcess
    thread: threading.Thread
    since: float
