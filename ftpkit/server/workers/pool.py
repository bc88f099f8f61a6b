"""The workers of a server: which gets the next connection, and which has which upload."""

import contextlib
import logging
import socket
import threading
from collections import Counter
from enum import Enum, auto
from functools import partial
from typing import Any, Final

from ftpkit.errors import ConnectionLostError, WrongWorkerError
from ftpkit.protocol.frame import Header
from ftpkit.server.connection_limit import ConnectionLimiter
from ftpkit.server.listener import peer_name
from ftpkit.server.udp.demux import is_session_of
from ftpkit.server.workers.ipc import IpcChannel, close_all
from ftpkit.server.workers.limits_server import SharedLimitsServer

# The number of the supervisor itself, which holds uploads only to sweep them.
SUPERVISOR: Final = 0
# In place of a host: the worker with the TLS keys of a proxied connection counts it.
_PROXIED: Final = ""

log = logging.getLogger("ftpkit.server")


class WorkerState(Enum):
    """What may be dispatched to a worker."""

    STARTING = auto()
    SERVING = auto()
    DRAINING = auto()  # only connections that belong to its uploads
    ENDED = auto()


class WorkerHandle:
    """A worker as the supervisor sees it."""

    def __init__(self, number: int, channel: IpcChannel) -> None:
        self.number, self.channel = number, channel
        self.inboxes: list[socket.socket] = []
        """Where datagrams for its sessions are sent, one socket for each port."""
        self.state = WorkerState.STARTING
        self.started = threading.Event()
        """Set when it serves, or when its start has failed."""
        self.connections = 0
        self.hosts: Counter[str] = Counter()

    def count(self, host: str, change: int) -> None:
        self.connections += change
        self.hosts[host] += change
        if not self.hosts[host]:
            del self.hosts[host]

    def send(self, op: str, **message: Any) -> None:
        """Send a message; the thread that receives from the worker notices if it has ended."""
        with contextlib.suppress(ConnectionLostError):
            self.channel.send(op=op, **message)

    def try_send(self, op: str, **message: Any) -> bool:
        """Send a message as ``send`` does, unless that would block; False if it was not sent."""
        try:
            return self.channel.try_send(op=op, **message)
        except ConnectionLostError:
            return True

    def close(self) -> None:
        self.channel.close()
        for inbox in self.inboxes:
            inbox.close()


class WorkerPool:
    """Dispatches connections to workers, and handles what they ask about each other.

    A new connection goes to the worker with the fewest. One that names an upload which
    another worker has open is handed over to that worker. It is the ``UploadLocks`` of the
    supervisor itself.
    """

    def __init__(
        self, connection_limiter: ConnectionLimiter, limits_server: SharedLimitsServer
    ) -> None:
        self._connection_limiter, self._limits_server = connection_limiter, limits_server
        self._changed = threading.Condition()
        self._workers: dict[int, WorkerHandle] = {}
        self._uploads: dict[str, int] = {}
        self._waiting: dict[str, list[tuple[int, int]]] = {}
        self._stopping = False

    def join(self, worker: WorkerHandle) -> None:
        self._limits_server.join(worker.number)
        with self._changed:
            self._workers[worker.number] = worker

    def replace(self, workers: list[WorkerHandle]) -> None:
        """Dispatch new connections to ``workers`` alone; the others drain, and end."""
        with self._changed:
            old = [each for each in self.serving() if each not in workers]
            for worker in old:
                worker.state = WorkerState.DRAINING
        for worker in old:
            worker.send("drain")
            self._stop_if_drained(worker)

    def workers(self) -> list[WorkerHandle]:
        """Return all workers that were not reaped."""
        with self._changed:
            return list(self._workers.values())

    def serving(self) -> list[WorkerHandle]:
        """Return the workers that get new connections, or will when they have started."""
        states = (WorkerState.STARTING, WorkerState.SERVING)
        return [each for each in self.workers() if each.state in states]

    def stop(self) -> None:
        """Dispatch nothing more, and wake the threads that wait for a worker."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for worker in self.workers():
            worker.started.set()

    def dispatch(self, sock: socket.socket, address: tuple[Any, ...], index: int) -> None:
        """Send a connection that listener ``index`` accepted to a worker; wait for one if needed.

        It was counted by the connection limiter, which it leaves when it is closed.
        """
        host = address[0]
        origin: dict[str, Any] = {"host": host, "peer": peer_name(address), "index": index}
        with sock:
            while (worker := self._next(host)) is not None:
                with contextlib.suppress(ConnectionLostError):
                    worker.channel.send(op="serve", fds=[sock.fileno()], **origin)
                    return
                if not self._uncount(worker, host):
                    return
        self._connection_limiter.release(host)

    def receive(self, worker: WorkerHandle, header: Header, body: bytes, fds: list[int]) -> None:
        match header["op"]:
            case "ready":
                with self._changed:
                    if worker.state is WorkerState.STARTING:
                        worker.state = WorkerState.SERVING
                    self._changed.notify_all()
                worker.started.set()
            case "acquire_upload":
                self._reply_holder(header["key"], worker.number, header["call"])
            case "release_upload":
                self.release_upload(worker.number, header["key"])
            case "shared_limits":
                reply = partial(worker.send, "reply", call=header.get("call"))
                self._limits_server.receive(worker.number, header, reply)
            case "handoff":
                self._hand_over(worker, header, body, fds)
            case "closed":
                if self._uncount(worker, header["host"]):
                    self._release(header["host"])
        self._stop_if_drained(worker)

    def reap(self, worker: WorkerHandle) -> None:
        """Remove a worker whose process has ended, and release all that it had."""
        with self._changed:
            del self._workers[worker.number]
            worker.state = WorkerState.ENDED
            hosts, worker.hosts, worker.connections = worker.hosts, Counter(), 0
            keys = [key for key, holder in self._uploads.items() if holder == worker.number]
            for key in keys:
                del self._uploads[key]
        for host in hosts.elements():
            self._release(host)
        self._limits_server.leave(worker.number)
        for key in keys:
            self._reply_waiting(key)

    def inbox(self, index: int, session: int) -> socket.socket | None:
        """Return where to send a datagram of a UDP session that arrived at port ``index``."""
        with self._changed:
            for worker in self._workers.values():
                if is_session_of(worker.number, session):
                    return worker.inboxes[index]
        return None

    def acquire(self, key: str) -> None:
        holder = self.acquire_upload(SUPERVISOR, key)
        if holder != SUPERVISOR:
            raise WrongWorkerError(holder or SUPERVISOR)

    def release(self, key: str) -> None:
        self.release_upload(SUPERVISOR, key)

    def acquire_upload(self, number: int, key: str) -> int | None:
        """Return the worker that now has an upload; None if it is known only later."""
        with self._changed:
            holder = self._uploads.get(key)
            if holder is not None:
                ended = holder != SUPERVISOR and self._workers[holder].state is WorkerState.ENDED
                return None if ended or holder == SUPERVISOR != number else holder
            worker = self._workers.get(number)
            if worker is not None and worker.state is WorkerState.DRAINING:
                successor = self._least_loaded()
                if successor is not None:
                    return successor.number
            self._uploads[key] = number
            return number

    def release_upload(self, number: int, key: str) -> None:
        """Note that worker ``number`` has closed an upload."""
        with self._changed:
            if self._uploads.get(key) == number:
                del self._uploads[key]
        self._reply_waiting(key)

    def _reply_holder(self, key: str, number: int, call: int) -> None:
        with self._changed:
            holder = self.acquire_upload(number, key)
            if holder is None:
                self._waiting.setdefault(key, []).append((number, call))
                return
            worker = self._workers.get(number)
        if worker is not None:
            worker.send("reply", call=call, holder=holder)

    def _reply_waiting(self, key: str) -> None:
        with self._changed:
            waiting = self._waiting.pop(key, [])
        for number, call in waiting:
            self._reply_holder(key, number, call)

    def _next(self, host: str) -> WorkerHandle | None:
        """Return the worker for a connection, which is counted there; None while stopping."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._least_loaded() is not None)
            worker = None if self._stopping else self._least_loaded()
            if worker is not None:
                worker.count(host, 1)
            return worker

    def _least_loaded(self) -> WorkerHandle | None:
        serving = [each for each in self._workers.values() if each.state is WorkerState.SERVING]
        return min(serving, key=lambda worker: worker.connections, default=None)

    def _uncount(self, worker: WorkerHandle, host: str) -> bool:
        """Count a connection of a worker less; False if ``reap`` has done it."""
        with self._changed:
            if not worker.hosts[host]:
                return False
            worker.count(host, -1)
            return True

    def _hand_over(self, worker: WorkerHandle, header: Header, body: bytes, fds: list[int]) -> None:
        """Send a connection of one worker to another; a proxied one stays with both."""
        host = _PROXIED if header["proxied"] else header["host"]
        with self._changed:
            if not header["proxied"]:
                worker.count(host, -1)
            successor = self._workers.get(header["to"])
            usable = (WorkerState.SERVING, WorkerState.DRAINING)
            if successor is None or successor.state not in usable:
                successor = self._least_loaded()
            if successor is not None:
                successor.count(host, 1)
            if header["user"]:
                # Before the successor can be reaped, or report that the connection was closed.
                self._limits_server.move(
                    header["user"], worker.number, successor.number if successor else None
                )
        if successor is None:
            self._release(host)
        else:
            rest = {key: header[key] for key in ("peer", "index", "handoff")}
            successor.send("serve", body=body, fds=fds, host=host, **rest)
        close_all(fds)

    def _release(self, host: str) -> None:
        """Release a connection in the limiter, unless another worker does it."""
        if host != _PROXIED:
            self._connection_limiter.release(host)

    def _stop_if_drained(self, worker: WorkerHandle) -> None:
        with self._changed:
            if worker.state is not WorkerState.DRAINING or worker.connections:
                return
            worker.state = WorkerState.ENDED
        worker.send("stop", grace_s=0.0)
