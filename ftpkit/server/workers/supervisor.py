"""The server of several processes: accepts connections, and dispatches them to workers."""

import contextlib
import json
import logging
import os
import queue
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial

from ftpkit.errors import ConnectionLostError, RefusedError
from ftpkit.net.address import DEFAULT_PORT, Address
from ftpkit.net.tls_identity import Identity
from ftpkit.protocol.frame import Header
from ftpkit.protocol.status import ServerStatus, decode_status, encode_status
from ftpkit.server.auth.shared_limits import LocalLimits
from ftpkit.server.handler import open_store, sweep_hourly, used_bytes_of
from ftpkit.server.listener import Listeners
from ftpkit.server.sockets import ListeningSocket
from ftpkit.server.udp.demux import Demultiplexer
from ftpkit.server.workers.limits_server import SharedLimitsServer
from ftpkit.server.workers.pool import WorkerHandle, WorkerPool
from ftpkit.server.workers.processes import WorkerProcesses
from ftpkit.server.workers.scheduler_server import SchedulerServer
from ftpkit.server.workers.status import StatusAggregator
from ftpkit.server.workers.worker import WorkerConfig
from ftpkit.storage.api import ShareableStore, Store, StoreLease

log = logging.getLogger("ftpkit.server")


class Supervisor:
    """Serves a store or a directory with several processes, as ``Server`` does with one.

    A ``Store`` that is passed in must be a ``ShareableStore``; it is not closed.

    This process serves no client: it accepts connections and hands each to a worker. All
    limits apply to the workers together.
    """

    def __init__(
        self,
        store: Store | str | os.PathLike[str],
        config: WorkerConfig,
        *,
        host: str | None = None,
        port: int = DEFAULT_PORT,
        durable: bool = True,
        datagrams: bool = True,
        sockets: Sequence[ListeningSocket] = (),
    ) -> None:
        self._given_store, self._durable = store, durable
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
        self._shared_limits = LocalLimits(lambda *args: used_bytes_of(self._store)(*args))
        self._pool = WorkerPool(self.connection_limiter, SharedLimitsServer(self._shared_limits))
        self._aggregator = StatusAggregator()
        self._scheduler = SchedulerServer(config.limits)
        self._processes = WorkerProcesses(
            config, self._pool, self._stopping, connect=self._connect, receive=self._receive
        )
        self._store: Store
        self._stack = contextlib.ExitStack()
        self._demultiplexers: list[Demultiplexer] = []

    @property
    def config(self) -> WorkerConfig:
        return self._processes.config

    @property
    def identity(self) -> Identity | None:
        return self.config.identity

    @property
    def addresses(self) -> list[Address]:
        return self._listeners.addresses

    @property
    def address(self) -> Address:
        return self._listeners.address

    def start(self) -> None:
        """Open the store, listen, and start the workers; raises OSError."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._listeners.close)
            store = stack.enter_context(open_store(self._given_store, durable=self._durable))
            if not isinstance(store, ShareableStore):
                raise TypeError(
                    "workers need a store that several processes can share, such as a directory"
                )
            stack.callback(self._shared_limits.quotas.close)
            self._store, self._stack = store, stack.pop_all()
        store.use_locks(self._pool)
        self._scheduler.start()
        self._stack.callback(self._scheduler.stop)
        try:
            self._demultiplexers = [
                Demultiplexer(port, partial(self._pool.inbox, index))
                for index, port in enumerate(self._listeners.open())
            ]
            for demultiplexer in self._demultiplexers:
                self._stack.callback(demultiplexer.close)
            # Connections that arrive now wait until there are workers.
            self._listeners.accept()
            started = queue.SimpleQueue[bool]()
            self._processes.replace(self.config, started.put)
            self._listeners.start_thread("ftpkit-workers", partial(self._processes.run, store))
            if not started.get():
                raise OSError("the worker processes did not start; the log says why")
        except BaseException:
            self._stop(0.0)
            raise
        self._listeners.start_thread("ftpkit-sweep", partial(sweep_hourly, store, self._listeners))
        self._listeners.log_start(workers=self.config.workers)

    def stop(self, grace_s: float = 30.0) -> None:
        self._stop(grace_s)
        log.info("stopped", extra={"fields": {}})

    def _stop(self, grace_s: float) -> None:
        self._stopping.set()
        self._pool.stop()
        self._listeners.close()
        self._processes.stop(grace_s)
        self._listeners.join()
        self._stack.close()

    def change(self, config: WorkerConfig, done: Callable[[], None] = lambda: None) -> None:
        """Replace the workers by others with ``config``; no connection is refused meanwhile.

        It returns at once. If the new workers do not start, the present ones go on. In both
        cases ``done`` is called afterwards, in another thread.
        """

        def replaced(started: bool) -> None:
            if started:
                self._listeners.limits = config.limits
                self._scheduler.configure(config.limits)
                for worker in self._pool.workers():
                    worker.send("limits", limits=asdict(config.limits))
                log.info("reloaded", extra={"fields": {"workers": config.workers}})
            elif not self._stopping.is_set():
                log.error("error", extra={"fields": {"error": "the new workers did not start"}})
            done()

        self._processes.replace(config, replaced)

    def status(self) -> ServerStatus:
        """Return the status of all workers; RefusedError if none answers."""

        def request(worker: WorkerHandle, call: int) -> None:
            positions = list(self._scheduler.positions(worker).items())
            worker.send("status", body=json.dumps(positions).encode(), call=call)

        return self._aggregator.status(request)

    def _connect(self, worker: WorkerHandle, lease: StoreLease) -> None:
        """Send a worker the descriptors of its store and, for each UDP port, two sockets."""
        with contextlib.ExitStack() as stack:
            fds = list(lease.descriptors)
            for demultiplexer in self._demultiplexers:
                inbox, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
                inbox.setblocking(False)
                worker.inboxes.append(inbox)
                fds += [demultiplexer.port.fileno(), stack.enter_context(theirs).fileno()]
            worker.send("connect", fds=fds, store_fds=len(lease.descriptors))

    def _receive(self, worker: WorkerHandle) -> None:
        try:
            while True:
                self._handle(worker, *worker.channel.receive())
        except ConnectionLostError:
            pass
        except Exception:  # of this worker; the others are served
            log.exception("error", extra={"fields": {"worker": worker.number}})
        self._aggregator.leave(worker)
        self._scheduler.leave(worker)

    def _handle(self, worker: WorkerHandle, header: Header, body: bytes, fds: list[int]) -> None:
        match header["op"]:
            case "server_status":
                # Not in this thread: it has to receive the status of this worker.
                args = (worker, header["call"])
                threading.Thread(target=self._send_status, args=args, daemon=True).start()
            case "worker_status":
                self._aggregator.receive(worker, header["call"], decode_status(body))
            case "schedule":
                self._scheduler.receive(worker, header)
            case op:
                if op == "ready":
                    self._aggregator.join(worker)
                self._pool.receive(worker, header, body, fds)

    def _send_status(self, worker: WorkerHandle, call: int) -> None:
        try:
            worker.send("reply", body=encode_status(self.status()), call=call)
        except RefusedError as refusal:
            worker.send("reply", call=call, refused=str(refusal))
