"""A worker: a process that serves the connections which its supervisor hands to it."""

import contextlib
import json
import logging
import multiprocessing
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, Final

from ftpkit.errors import Code, ConnectionLostError, RefusedError, WrongWorkerError
from ftpkit.net.tls_identity import Identity
from ftpkit.net.udp_socket import DatagramSocket
from ftpkit.osapi import process as os_process
from ftpkit.protocol.frame import Header
from ftpkit.protocol.status import ServerStatus, decode_status, encode_status
from ftpkit.scheduling.remote import RemoteScheduler
from ftpkit.server.connection_limit import ConnectionLimiter
from ftpkit.server.context import Handoff
from ftpkit.server.handler import ConnectionHandler
from ftpkit.server.limits import Limits
from ftpkit.server.udp.demux import DemultiplexedPort, session_of
from ftpkit.server.udp.listener import UdpListener
from ftpkit.server.workers.ipc import IpcChannel, close_all
from ftpkit.server.workers.limits_server import RemoteLimits
from ftpkit.storage.api import OpenStore
from ftpkit.tokens import Tokens, decode_grant, encode_grant

# Longer than the supervisor waits for all workers, and less than a client does.
_STATUS_S: Final = 3.0

log = logging.getLogger("ftpkit.server")


def work(
    sock: socket.socket, number: int, open_store: OpenStore, on_start: Callable[[], None]
) -> None:
    """Do what a worker process does, from its start to its end; ``sock`` leads to the supervisor.

    A signal to the whole group of processes is the supervisor's to answer, which then
    tells us; should it die, so do we.
    """
    for each in os_process.GROUP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        os_process.die_with_parent(parent.pid)
    on_start()
    Worker(IpcChannel(sock), number, open_store).run()


class Worker:
    """Follows what the supervisor says, and asks it what concerns the other workers."""

    def __init__(self, channel: IpcChannel, number: int, open_store: OpenStore) -> None:
        self.channel, self.number = channel, number
        self._open_store = open_store
        self.leaving = False
        self.doors: list[UdpListener] = []
        self._connection_limiter = ConnectionLimiter(sys.maxsize, sys.maxsize)
        self._remote = RemoteScheduler(Limits().new_scheduler(), partial(self.tell, "schedule"))
        self._calls: dict[int, queue.SimpleQueue[tuple[Header, bytes]]] = {}
        self._numbers = count()
        self._ended = False

    def run(self) -> None:
        """Serve until we are told to end, or the supervisor is gone."""
        config, secrets, fds = self.channel.receive()
        shared = config["descriptors"]
        store = self._open_store(fds[:shared], self)
        limits = Limits(**config["limits"])
        size = config["certificate"]
        tokens = None if config["tokens"] is None else Tokens(config["tokens"])
        service = ConnectionHandler(
            store,
            self._connection_limiter,
            limits,
            self._remote,
            tokens=tokens,
            shared_limits=RemoteLimits(
                self._request_limits,
                partial(self.tell, "shared_limits"),
                lambda: tokens is not None and tokens.has_quotas,
            ),
            identity=None if size is None else Identity(secrets[:size], secrets[size:]),
            plain=config["plain"],
        )
        service.change(limits)
        sockets = [socket.socket(fileno=fd) for fd in fds[shared:]]
        for port, inbox in zip(sockets[::2], sockets[1::2], strict=True):
            relayed = DemultiplexedPort(DatagramSocket(port), inbox)
            self.doors.append(UdpListener(relayed, lambda: session_of(self.number)))
        for udp_listener in self.doors:
            udp_listener.start()
        self.tell("ready")
        while True:
            try:
                header, body, fds = self.channel.receive()
            except ConnectionLostError:
                if self._ended:
                    self.channel.close()
                    return
                os._exit(1)
            self._follow(service, header, body, fds)

    def acquire(self, key: str) -> None:
        """Lock an upload for this worker; WrongWorkerError says which worker has it."""
        header, _ = self._ask("claim", key=key)
        if header["holder"] != self.number:
            raise WrongWorkerError(header["holder"])

    def release(self, key: str) -> None:
        """Unlock an upload."""
        self.tell("give_up", key=key)

    def status(self) -> ServerStatus:
        """Tell what all workers do."""
        try:
            header, body = self._ask("status", timeout_s=_STATUS_S)
        except queue.Empty:
            raise RefusedError(Code.BUSY, "the server does not tell what it does") from None
        if "refused" in header:
            raise RefusedError(Code.BUSY, header["refused"])
        return decode_status(body)

    def tell(self, op: str, **message: Any) -> None:
        """Send a message; where nobody takes it any more, this process is about to end."""
        with contextlib.suppress(ConnectionLostError):
            self.channel.send(op=op, **message)

    def _ask(self, op: str, timeout_s: float | None = None, **message: Any) -> tuple[Header, bytes]:
        """Send a message and return the answer to it; queue.Empty says that none came."""
        call, answer = next(self._numbers), queue.SimpleQueue[tuple[Header, bytes]]()
        self._calls[call] = answer
        try:
            self.tell(op, call=call, **message)
            return answer.get(timeout=timeout_s)
        finally:
            del self._calls[call]

    def _request_limits(self, **message: Any) -> Header:
        return self._ask("shared_limits", **message)[0]

    def _follow(
        self, service: ConnectionHandler, header: Header, body: bytes, fds: list[int]
    ) -> None:
        match header["op"]:
            case "serve":
                self._start(_WorkerConnection(self, service, header, body), fds)
            case "answer":
                answer = self._calls.get(header["call"])
                if answer is not None:
                    answer.put((header, body))
            case "status":
                # Not in this thread: it must go on receiving while a long message leaves.
                self._remote.positions = {int(order): at for order, at in json.loads(body)}
                args = (service, header["call"])
                threading.Thread(target=self._tell_part, args=args, name="ftpkit-status").start()
            case "grant":
                self._remote.granted(header["flow"], header["quantum"])
                service.registry.scheduler.grant_due()
            case "limits":
                service.change(Limits(**header["limits"]))
            case "leave":
                self.leaving = True
            case "stop":
                stop = (service, header["grace_s"])
                threading.Thread(target=self._stop, args=stop, name="ftpkit-stop").start()

    def _start(self, connection: "_WorkerConnection", fds: list[int]) -> None:
        self._connection_limiter.acquire(connection.host)
        try:
            if not fds:
                raise OSError("too many open files")
            thread = threading.Thread(
                target=connection.run, args=fds, name="ftpkit-connection", daemon=True
            )
            thread.start()
        except (OSError, RuntimeError) as error:
            log.warning("error", extra={"fields": {"error": str(error), "peer": connection.peer}})
            close_all(fds)
            connection.turn_away()

    def leave(self, host: str) -> None:
        """Note that a connection has gone from here."""
        self._connection_limiter.release(host)

    def _tell_part(self, service: ConnectionHandler, call: int | None = None) -> None:
        self.tell("part", body=encode_status(service.status()), call=call)

    def _stop(self, service: ConnectionHandler, grace_s: float) -> None:
        service.stop(grace_s)
        self._tell_part(service)
        for udp_listener in self.doors:
            udp_listener.close()
        service.close()
        self._ended = True
        self.channel.interrupt()


class _WorkerConnection:
    """A connection while this worker has it."""

    def __init__(
        self, worker: Worker, service: ConnectionHandler, header: Header, body: bytes
    ) -> None:
        self.host, self.peer, self._at = header["host"], header["peer"], header["at"]
        self._worker, self._service = worker, service
        self._moved = unpack(header["moved"], body) if "moved" in header else None
        self._handed_over = False

    @property
    def leaving(self) -> bool:
        """Whether the others are to serve what is not begun here."""
        return self._worker.leaving

    def run(self, fd: int) -> None:
        """Serve it."""
        try:
            doors = self._worker.doors
            with socket.socket(fileno=fd) as sock:
                udp_listener = doors[self._at] if doors else None
                self._service.handle(sock, self.peer, udp_listener, self, self._moved)
        except Exception:  # of which the other connections of this worker must hear nothing
            log.exception("error", extra={"fields": {"peer": self.peer}})
        finally:
            self.leave()

    def turn_away(self) -> None:
        """Leave unserved, and let another connection of its user have its place."""
        if self._moved is not None and self._moved.grant is not None:
            self._worker.tell("shared_limits", what="release", user=self._moved.grant.user)
        self.leave()

    def hand_over(self, sock: socket.socket, moved: Handoff, to: int, *, lent: bool) -> None:
        """Let another worker go on with it."""
        self._handed_over = not lent
        fields, body = pack(moved)
        self._worker.tell(
            "pass",
            body=body,
            fds=[sock.fileno()],
            to=to,
            lent=lent,
            user=moved.grant.user if moved.grant else "",
            host=self.host,
            peer=self.peer,
            at=self._at,
            moved=fields,
        )

    def status(self) -> ServerStatus:
        """Tell what all workers do."""
        return self._worker.status()

    def leave(self) -> None:
        """Let its place be free."""
        if not self._handed_over:
            self._worker.tell("left", host=self.host)
        self._worker.leave(self.host)


def pack(moved: Handoff) -> tuple[dict[str, Any], bytes]:
    """Return what can travel as a header, and what is too much for one."""
    header, grant = json.dumps(moved.header).encode(), moved.grant
    fields = {
        "header": len(header),
        "grant": grant and encode_grant(grant),
        "algorithm": moved.algorithm,
        "requests": moved.requests,
        "since": moved.since,
        "local": moved.local,
    }
    return fields, header + moved.ahead


def unpack(fields: dict[str, Any], body: bytes) -> Handoff:
    """Return what was packed."""
    size, grant, (family, address) = fields["header"], fields["grant"], fields["local"]
    own = {
        "header": json.loads(body[:size]),
        "grant": grant and decode_grant(grant),
        "local": (family, tuple(address)),
    }
    return Handoff(**{**fields, **own}, ahead=body[size:])
