"""A worker process: serves the connections that the supervisor sends it."""

import contextlib
import json
import logging
import multiprocessing
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
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
from ftpkit.server.limits import DEFAULT_LIMITS, Limits
from ftpkit.server.udp.demux import DemultiplexedPort, session_of
from ftpkit.server.udp.listener import UdpListener
from ftpkit.server.workers.ipc import IpcChannel, close_all
from ftpkit.server.workers.limits_server import RemoteLimits
from ftpkit.storage.api import OpenStore
from ftpkit.tokens import Tokens, decode_grant, encode_grant

# More than the supervisor waits for all workers, and less than a client waits.
_STATUS_TIMEOUT_S: Final = 3.0

log = logging.getLogger("ftpkit.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """The number of workers, and their settings; ``Server`` explains those that it has, too.

    ``tokens`` is the path of a token file. ``on_start`` must be picklable, and is called in
    each worker before it serves.
    """

    workers: int
    limits: Limits = DEFAULT_LIMITS
    identity: Identity | None = None
    plain: bool = False
    tokens: str | None = None
    on_start: Callable[[], None] | None = None


def run_worker(
    sock: socket.socket, number: int, open_store: OpenStore, config: WorkerConfig
) -> None:
    """Run a worker process from its start to its end; ``sock`` is the channel to the supervisor.

    It ignores the signals of its process group, which the supervisor handles, and ends with it.
    """
    for each in os_process.GROUP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        os_process.die_with_parent(parent.pid)
    if config.on_start is not None:
        config.on_start()
    Worker(IpcChannel(sock), number, open_store, config).run()


class Worker:
    """Serves what the supervisor sends; it is the ``UploadLocks`` of its own store."""

    def __init__(
        self, channel: IpcChannel, number: int, open_store: OpenStore, config: WorkerConfig
    ) -> None:
        self._channel, self._number = channel, number
        self._replies: dict[int, queue.SimpleQueue[tuple[Header, bytes]]] = {}
        self._calls = count()
        self._ended = False
        self.draining = False
        self.connection_limiter = ConnectionLimiter()
        self._scheduler = RemoteScheduler(
            config.limits.new_scheduler(), partial(self.send, "schedule")
        )
        header, _, fds = channel.receive()
        store_fds, port_fds = fds[: header["store_fds"]], fds[header["store_fds"] :]
        tokens = None if config.tokens is None else Tokens(config.tokens)
        self.handler = ConnectionHandler(
            open_store(store_fds, self),
            self.connection_limiter,
            config.limits,
            self._scheduler,
            tokens=tokens,
            shared_limits=RemoteLimits(
                lambda **message: self._request("shared_limits", **message)[0],
                partial(self.send, "shared_limits"),
                lambda: tokens is not None and tokens.has_quotas,
            ),
            identity=config.identity,
            plain=config.plain,
        )
        self.udp_listeners: list[UdpListener] = []
        sockets = [socket.socket(fileno=fd) for fd in port_fds]
        for port, inbox in zip(sockets[::2], sockets[1::2], strict=True):
            demultiplexed = DemultiplexedPort(DatagramSocket(port), inbox)
            self.udp_listeners.append(UdpListener(demultiplexed, lambda: session_of(number)))

    def run(self) -> None:
        """Serve until the supervisor says to stop, or ends."""
        self.send("ready")
        while True:
            try:
                self._handle(*self._channel.receive())
            except ConnectionLostError:
                if self._ended:
                    self._channel.close()
                    return
                os._exit(1)

    def acquire(self, key: str) -> None:
        header, _ = self._request("acquire_upload", key=key)
        if header["holder"] != self._number:
            raise WrongWorkerError(header["holder"])

    def release(self, key: str) -> None:
        self.send("release_upload", key=key)

    def status(self) -> ServerStatus:
        """Return the status of all workers; RefusedError if there is no reply in time."""
        try:
            header, body = self._request("server_status", timeout_s=_STATUS_TIMEOUT_S)
        except queue.Empty:
            raise RefusedError(Code.BUSY, "the supervisor does not answer; try again") from None
        if "refused" in header:
            raise RefusedError(Code.BUSY, header["refused"])
        return decode_status(body)

    def send(self, op: str, **message: Any) -> None:
        """Send a message; if the supervisor has ended, this process is about to end, too."""
        with contextlib.suppress(ConnectionLostError):
            self._channel.send(op=op, **message)

    def _request(
        self, op: str, timeout_s: float | None = None, **message: Any
    ) -> tuple[Header, bytes]:
        """Send a message and return the reply; queue.Empty if none comes within ``timeout_s``."""
        call, reply = next(self._calls), queue.SimpleQueue[tuple[Header, bytes]]()
        self._replies[call] = reply
        try:
            self.send(op, call=call, **message)
            return reply.get(timeout=timeout_s)
        finally:
            del self._replies[call]

    def _handle(self, header: Header, body: bytes, fds: list[int]) -> None:
        match header["op"]:
            case "serve":
                self._start(_WorkerConnection(self, header, body), fds)
            case "reply":
                reply = self._replies.get(header["call"])
                if reply is not None:
                    reply.put((header, body))
            case "status":
                # Not in this thread, which has to receive while a long message is sent.
                self._scheduler.positions = {int(order): at for order, at in json.loads(body)}
                args = (header["call"],)
                threading.Thread(target=self._send_status, args=args, name="ftpkit-status").start()
            case "grant":
                self._scheduler.granted(header["flow"], header["quantum"])
                self.handler.registry.scheduler.grant_due()
            case "limits":
                self.handler.change(Limits(**header["limits"]))
            case "drain":
                self.draining = True
            case "stop":
                args = (header["grace_s"],)
                threading.Thread(target=self._stop, args=args, name="ftpkit-stop").start()

    def _start(self, connection: "_WorkerConnection", fds: list[int]) -> None:
        self.connection_limiter.acquire(connection.host)
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
            connection.drop()

    def _send_status(self, call: int | None = None) -> None:
        self.send("worker_status", body=encode_status(self.handler.status()), call=call)

    def _stop(self, grace_s: float) -> None:
        self.handler.stop(grace_s)
        self._send_status()
        for udp_listener in self.udp_listeners:
            udp_listener.close()
        self.handler.close()
        self.handler.store.close()
        self._ended = True
        self._channel.interrupt()


class _WorkerConnection:
    """A connection while this worker serves it; the ``OtherWorkers`` of its session."""

    def __init__(self, worker: Worker, header: Header, body: bytes) -> None:
        self._origin = {key: header[key] for key in ("host", "peer", "index")}
        self.host, self.peer, self._index = self._origin.values()
        self._worker, self.status = worker, worker.status
        self._handoff = unpack(header["handoff"], body) if "handoff" in header else None
        self._handed_over = False

    @property
    def draining(self) -> bool:
        return self._worker.draining

    def run(self, fd: int) -> None:
        try:
            udp_listeners = self._worker.udp_listeners
            with socket.socket(fileno=fd) as sock:
                udp_listener = udp_listeners[self._index] if udp_listeners else None
                self._worker.handler.handle(sock, self.peer, udp_listener, self, self._handoff)
        except Exception:  # of this connection; the others are served
            log.exception("error", extra={"fields": {"peer": self.peer}})
        finally:
            self._close()

    def drop(self) -> None:
        if self._handoff is not None and self._handoff.grant is not None:
            self._worker.send("shared_limits", what="release", user=self._handoff.grant.user)
        self._close()

    def hand_over(self, sock: socket.socket, handoff: Handoff, to: int, *, proxied: bool) -> None:
        self._handed_over = not proxied
        size, body = pack(handoff)
        self._worker.send(
            "handoff",
            body=body,
            fds=[sock.fileno()],
            to=to,
            proxied=proxied,
            user=handoff.grant.user if handoff.grant else "",
            handoff=size,
            **self._origin,
        )

    def _close(self) -> None:
        if not self._handed_over:
            self._worker.send("closed", host=self.host)
        self._worker.connection_limiter.release(self.host)


def pack(handoff: Handoff) -> tuple[int, bytes]:
    """Return a handoff as bytes that begin with so many bytes of JSON."""
    grant = handoff.grant and encode_grant(handoff.grant)
    values = {**asdict(handoff), "grant": grant, "ahead": None}
    data = json.dumps(values).encode()
    return len(data), data + handoff.ahead


def unpack(size: int, body: bytes) -> Handoff:
    values = json.loads(body[:size])
    family, address = values["local"]
    grant = values["grant"] and decode_grant(values["grant"])
    own = {"grant": grant, "local": (family, tuple(address)), "ahead": body[size:]}
    return Handoff(**{**values, **own})
