"""What holds for all workers together: who is connected, who serves whom, who has which upload."""

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

# The number of the supervisor itself, which only ever has uploads to sweep them.
SUPERVISOR: Final = 0
# In place of a host: the connection has its place where its keys are.
_LENT: Final = ""

log = logging.getLogger("ftpkit.server")


class State(Enum):
    """What may be given to a worker."""

    STARTING = auto()
    SERVING = auto()
    LEAVING = auto()  # it finishes what it has, and gets what belongs to that
    ENDED = auto()


class WorkerHandle:
    """A worker as the broker knows it."""

    def __init__(self, number: int, channel: IpcChannel) -> None:
        self.number, self.channel = number, channel
        self.inboxes: list[socket.socket] = []
        """Where datagrams for its sessions go, one for each port."""
        self.state = State.STARTING
        self.settled = threading.Event()
        """Set when it serves, or never will."""
        self.connections = 0
        self.hosts: Counter[str] = Counter()

    def count(self, host: str, change: int) -> None:
        """Note a connection that has come, or gone."""
        self.connections += change
        self.hosts[host] += change
        if not self.hosts[host]:
            del self.hosts[host]

    def tell(self, op: str, **message: Any) -> None:
        """Send a message; that it is gone, who receives from it will find."""
        with contextlib.suppress(ConnectionLostError):
            self.channel.send(op=op, **message)

    def offer(self, op: str, **message: Any) -> bool:
        """Send a message as ``tell`` does, if that takes no wait; False says that it would."""
        try:
            return self.channel.offer(op=op, **message)
        except ConnectionLostError:
            return True

    def close(self) -> None:
        """Close what leads to it."""
        self.channel.close()
        for inbox in self.inboxes:
            inbox.close()


class WorkerPool:
    """Hands connections to workers, and answers what they ask about each other.

    Every new connection goes to the worker that has fewest. One that names an upload
    which another worker has open is passed on to that one.
    """

    def __init__(
        self, connection_limiter: ConnectionLimiter, limits_server: SharedLimitsServer
    ) -> None:
        self._connection_limiter, self._limits_server = connection_limiter, limits_server
        self._changed = threading.Condition()
        self._members: dict[int, WorkerHandle] = {}
        self._holders: dict[str, int] = {}
        self._waiting: list[tuple[str, int, int]] = []
        self._stopping = False

    def join(self, worker: WorkerHandle) -> None:
        """Receive from a worker that starts."""
        self._limits_server.join(worker.number)
        with self._changed:
            self._members[worker.number] = worker

    def replace(self, workers: list[WorkerHandle]) -> None:
        """Let these alone get new connections; the others finish what they have."""
        with self._changed:
            old = [each for each in self.serving() if each not in workers]
            for worker in old:
                worker.state = State.LEAVING
        for worker in old:
            worker.tell("leave")
            self._let_end(worker)

    def serving(self) -> list[WorkerHandle]:
        """Return the workers that get new connections, or soon will."""
        with self._changed:
            return [
                worker
                for worker in self._members.values()
                if worker.state in (State.STARTING, State.SERVING)
            ]

    def stop(self) -> None:
        """Hand out nothing more, and let nobody wait for a worker."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            workers = list(self._members.values())
        for worker in workers:
            worker.settled.set()

    def dispatch(self, sock: socket.socket, address: tuple[Any, ...], at: int) -> None:
        """Give a connection that was admitted to a worker; without any, wait for one."""
        host = address[0]
        with sock:
            while (worker := self._next(host)) is not None:
                with contextlib.suppress(ConnectionLostError):
                    worker.channel.send(
                        op="serve", fds=[sock.fileno()], peer=peer_name(address), host=host, at=at
                    )
                    return
                if not self._take_back(worker, host):
                    return
        self._connection_limiter.release(host)

    def receive(self, worker: WorkerHandle, header: Header, body: bytes, fds: list[int]) -> None:
        """Do what a worker asks for."""
        match header["op"]:
            case "ready":
                with self._changed:
                    if worker.state is State.STARTING:
                        worker.state = State.SERVING
                    self._changed.notify_all()
                worker.settled.set()
            case "claim":
                self._answer(header["key"], worker.number, header["call"])
            case "give_up":
                self.give_up(worker.number, header["key"])
            case "shared_limits":
                answer = partial(worker.tell, "answer", call=header.get("call"))
                self._limits_server.receive(worker.number, header, answer)
            case "pass":
                self._pass(worker, header, body, fds)
            case "left":
                if self._take_back(worker, header["host"]):
                    self._leave(header["host"])
        self._let_end(worker)

    def reap(self, worker: WorkerHandle) -> None:
        """Forget a worker whose process has ended, and all that it had."""
        with self._changed:
            del self._members[worker.number]
            worker.state = State.ENDED
            hosts, worker.hosts, worker.connections = worker.hosts, Counter(), 0
            free = [key for key, holder in self._holders.items() if holder == worker.number]
            for key in free:
                del self._holders[key]
        for host in hosts.elements():
            self._leave(host)
        self._limits_server.leave(worker.number)
        for key in free:
            self._answer_waiting(key)

    def inbox(self, at: int, session: int) -> socket.socket | None:
        """Return where datagrams for a session go that arrived at port number ``at``."""
        with self._changed:
            for worker in self._members.values():
                if is_session_of(worker.number, session):
                    return worker.inboxes[at]
        return None

    def claim(self, number: int, key: str) -> int | None:
        """Return which worker has an upload from now on; None is told as soon as one is free."""
        with self._changed:
            holder = self._holders.get(key)
            if holder is not None:
                ended = holder != SUPERVISOR and self._members[holder].state is State.ENDED
                return None if ended or holder == SUPERVISOR != number else holder
            worker = self._members.get(number)
            if worker is not None and worker.state is State.LEAVING:
                successor = self._fewest()
                if successor is not None:
                    return successor.number
            self._holders[key] = number
            return number

    def give_up(self, number: int, key: str) -> None:
        """Note that an upload is open in no worker."""
        with self._changed:
            if self._holders.get(key) == number:
                del self._holders[key]
        self._answer_waiting(key)

    def _answer(self, key: str, number: int, call: int) -> None:
        with self._changed:
            holder = self.claim(number, key)
            if holder is None:
                self._waiting.append((key, number, call))
                return
            worker = self._members.get(number)
        if worker is not None:
            worker.tell("answer", call=call, holder=holder)

    def _answer_waiting(self, key: str) -> None:
        with self._changed:
            found = [each for each in self._waiting if each[0] == key]
            self._waiting = [each for each in self._waiting if each[0] != key]
        for each in found:
            self._answer(*each)

    def _next(self, host: str) -> WorkerHandle | None:
        """Return who gets the next connection, and count it there; None while we stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._fewest() is not None)
            worker = None if self._stopping else self._fewest()
            if worker is not None:
                worker.count(host, 1)
            return worker

    def _fewest(self) -> WorkerHandle | None:
        serving = [each for each in self._members.values() if each.state is State.SERVING]
        return min(serving, key=lambda worker: worker.connections, default=None)

    def _take_back(self, worker: WorkerHandle, host: str) -> bool:
        """Count a connection at a worker no more; False: that was done when it was buried."""
        with self._changed:
            if not worker.hosts[host]:
                return False
            worker.count(host, -1)
            return True

    def _pass(self, worker: WorkerHandle, header: Header, body: bytes, fds: list[int]) -> None:
        """Give a connection that one worker had to another; one that is lent stays there, too."""
        host = _LENT if header["lent"] else header["host"]
        with self._changed:
            if not header["lent"]:
                worker.count(host, -1)
            successor = self._members.get(header["to"])
            if successor is None or successor.state not in (State.SERVING, State.LEAVING):
                successor = self._fewest()
            if successor is not None:
                successor.count(host, 1)
            if header["user"]:
                # Before the heir can be buried, or say that the connection has ended.
                self._limits_server.move(
                    header["user"], worker.number, successor.number if successor else None
                )
        if successor is None:
            self._leave(host)
        else:
            rest = {key: header[key] for key in ("peer", "at", "moved")}
            successor.tell("serve", body=body, fds=fds, host=host, **rest)
        close_all(fds)

    def _leave(self, host: str) -> None:
        """Give the place of a connection free, if it has one of its own."""
        if host != _LENT:
            self._connection_limiter.release(host)

    def _let_end(self, worker: WorkerHandle) -> None:
        """Tell a worker that was to leave to end, once it serves nobody."""
        with self._changed:
            if worker.state is not State.LEAVING or worker.connections:
                return
            worker.state = State.ENDED
        worker.tell("stop", grace_s=0.0)


class SupervisorLocks:
    """The upload locks of the supervisor itself."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool

    def acquire(self, key: str) -> None:
        """Lock an upload, unless a worker has it."""
        holder = self._pool.claim(SUPERVISOR, key)
        if holder != SUPERVISOR:
            raise WrongWorkerError(holder or SUPERVISOR)

    def release(self, key: str) -> None:
        """Unlock an upload."""
        self._pool.give_up(SUPERVISOR, key)
