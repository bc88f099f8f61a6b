"""What serves connections, wherever they were accepted: a store, and the sessions of now."""

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from ftpkit import __version__
from ftpkit.errors import Code, RefusedError
from ftpkit.net.buffer_pool import BufferPool
from ftpkit.net.frame_stream import FrameStream
from ftpkit.net.tls_identity import Identity
from ftpkit.net.transport import HANDSHAKE, PLAINTEXT
from ftpkit.protocol.status import ServerStatus
from ftpkit.scheduling.blocking import BlockingScheduler
from ftpkit.scheduling.remote import RemoteScheduler
from ftpkit.scheduling.scheduler import Scheduler
from ftpkit.server.auth.authenticator import CHECK_INTERVAL_S, Authenticator
from ftpkit.server.auth.quota import UsedBytes
from ftpkit.server.auth.shared_limits import LocalLimits, SharedLimits
from ftpkit.server.connection_limit import ConnectionLimiter
from ftpkit.server.context import Handoff, OtherWorkers, SessionContext
from ftpkit.server.jobs import Jobs
from ftpkit.server.limits import Limits
from ftpkit.server.session import Session
from ftpkit.server.status import told
from ftpkit.server.transfers.registry import TransferRegistry
from ftpkit.server.udp.listener import UdpListener
from ftpkit.storage.api import QuotaAwareStore, Store, SweepingStore
from ftpkit.tokens import Tokens

# For the first byte, and again for all of the handshake; nobody is known by then.
_HANDSHAKE_S: Final = 10.0
_SWEEP_S: Final = 3600.0
# WIRE.md promises the first answer again for at least a day.
_ANSWERS_KEPT_S: Final = 2 * 86_400.0

log = logging.getLogger("ftpkit.server")


class ConnectionHandler:
    """Serves each connection in the thread that brings it, until ``stop``.

    With an ``identity`` over TLS, and only so unless ``plain`` connections are admitted, too.

    Whoever brings one has entered it with ``admission``, and leaves when ``handle`` has
    returned. Where there are ``tokens`` only their holders are served, and ``shared_limits`` counts
    for all processes of the server what they do; without it, this is the only one.
    """

    def __init__(
        self,
        store: Store,
        connection_limiter: ConnectionLimiter,
        limits: Limits,
        schedule: Scheduler | RemoteScheduler | None = None,
        *,
        tokens: Tokens | None = None,
        shared_limits: SharedLimits | None = None,
        identity: Identity | None = None,
        plain: bool = False,
    ) -> None:
        self.store = store
        self.identity, self._plain = identity, plain
        self._limits = limits
        self.registry = TransferRegistry(BlockingScheduler(schedule or limits.new_scheduler()))
        self.jobs = Jobs()
        self._connection_limiter = connection_limiter
        self._buffers = BufferPool()
        self._since = time.monotonic()
        self._lock = threading.Lock()
        self._sessions: set[Session] = set()
        self._stopping = self._now = False
        self._leaving, self._closed = threading.Event(), threading.Event()
        self._before_close = contextlib.ExitStack()
        self._authenticator = None if tokens is None else self._guarded(tokens, shared_limits)

    def _guarded(self, tokens: Tokens, shared_limits: SharedLimits | None) -> Authenticator:
        """Let only holders of ``tokens`` in, and no longer than they are that."""
        if shared_limits is None:
            shared_limits = LocalLimits(_counter_of(self.store))
            self._before_close.callback(shared_limits.close)
        watch = threading.Thread(target=self._check, name="ftpkit-tokens", daemon=True)
        watch.start()
        self._before_close.callback(watch.join)
        self._before_close.callback(self._closed.set)
        return Authenticator(tokens, shared_limits, self.store, self._leaving)

    @property
    def identity(self) -> Identity | None:
        """Who the server is, to those that connect from now on; nobody: no TLS is spoken."""
        return self._identity

    @identity.setter
    def identity(self, identity: Identity | None) -> None:
        tls = None if identity is None else identity.context()
        self._identity, self._tls = identity, tls

    def change(self, limits: Limits) -> None:
        """Let other limits hold: timeouts for new connections, and the rest for all."""
        self._limits = limits
        self.registry.scheduler.configure(
            limits.policy,
            slots=limits.slots,
            bytes_per_s=limits.bytes_per_s_by_direction,
        )

    def handle(
        self,
        sock: socket.socket,
        peer: str,
        udp_listener: UdpListener | None,
        other_workers: OtherWorkers | None = None,
        moved: Handoff | None = None,
    ) -> None:
        """Serve one connection, in this thread, until it ends or one of ``siblings`` has it."""
        stream = FrameStream(
            sock,
            stall_timeout_s=self._limits.stall_timeout_s,
            idle_timeout_s=self._limits.idle_timeout_s,
        )
        context = SessionContext(
            self.store,
            self.jobs,
            self._buffers,
            stream,
            agent=f"ftpkit/{__version__}",
            status=self.status if other_workers is None else other_workers.status,
            registry=self.registry,
            udp_listener=udp_listener,
            other_workers=other_workers,
            authenticator=self._authenticator,
        )
        if self._authenticator is None:  # else the user has one, whatever his name and where he is
            context.account = self.registry.account(peer.rpartition(":")[0])
        open_up = self._open_up if moved is None else None
        session = Session(stream, context, peer, moved, open_up)
        with self._lock:
            self._sessions.add(session)
            stopping, now = self._stopping, self._now
        if stopping:
            session.stop(now=now)
        try:
            session.run()
        finally:
            with self._lock:
                self._sessions.remove(session)

    def _open_up(self, stream: FrameStream) -> None:
        """Speak TLS with who begins with it; RefusedError for a plain frame, unless admitted.

        What is neither goes on to be refused as no frame.
        """
        tls, limit_s = self._tls, min(self._limits.stall_timeout_s, _HANDSHAKE_S)
        if tls is None:
            return
        first = stream.peek(limit_s)
        if first == HANDSHAKE:
            stream.start_tls(tls, limit_s)
        elif first == PLAINTEXT and not self._plain:
            raise RefusedError(
                Code.TLS_REQUIRED,
                "this server speaks TLS only: ftpkit login LINK, with the link that it printed",
            )

    def status(self) -> ServerStatus:
        """Tell what is going on here; WIRE.md, section 6, has the keys."""
        limits, now = self._limits, time.monotonic()
        uptime_s = round(now - self._since, 3)
        with self._lock:
            connections = sum(not session.handed_over for session in self._sessions)
        shaped = self.registry.scheduler.has_limits
        return {
            "version": __version__,
            "uptime_s": uptime_s,
            "connections": connections,
            "max_connections": limits.max_connections,
            "policy": limits.schedule if shaped else None,
            "slots": limits.slots,
            "rate_bps": limits.bytes_per_s,
            "workers": [
                {"number": 1, "pid": os.getpid(), "uptime_s": uptime_s, "connections": connections}
            ],
            "totals": self.registry.ended.totals(),
            "transfers": [told(each, now) for each in self.registry.scheduler.snapshot()],
        }

    def sessions(self) -> set[Session]:
        """Return those that run."""
        with self._lock:
            return set(self._sessions)

    def stop(self, grace_s: float) -> None:
        """Let running transfers go on for ``grace_s``, then end what is left."""
        self._end(now=False)
        if not self._connection_limiter.wait_for(lambda count: count == 0, grace_s):
            self._end(now=True)
            self._connection_limiter.wait_for(lambda count: count == 0)

    def _check(self) -> None:
        """End the sessions whose tokens are good no longer, until ``close``."""
        while not self._closed.wait(CHECK_INTERVAL_S):
            for session in self.sessions():
                try:
                    session.check()
                except Exception:  # of one session, or of a file that cannot be read now
                    log.exception("error", extra={"fields": {"peer": session.peer}})

    def _end(self, *, now: bool) -> None:
        self._leaving.set()
        with self._lock:
            self._stopping, self._now = True, now
            sessions = set(self._sessions)
        for session in sessions:
            session.stop(now=now)

    def close(self) -> None:
        """Wait for the work that outlived its session, and close the store."""
        self.jobs.stop()
        self._before_close.close()
        self.store.close()


def _counter_of(store: Store) -> UsedBytes:
    """Return what counts stored bytes; nobody has a quota where the store counts none."""
    return store.used_bytes if isinstance(store, QuotaAwareStore) else lambda name, go_on: 0


def sweep_hourly(store: Store, limits: Callable[[], Limits], stopping: threading.Event) -> None:
    """Delete what has expired, now and every hour, until ``stopping`` is set."""
    if not isinstance(store, SweepingStore):
        return
    while True:
        try:
            store.sweep(uploads_s=limits().expire_uploads_s, publications_s=_ANSWERS_KEPT_S)
        except OSError:
            log.exception("error", extra={"fields": {"at": "sweep"}})
        if stopping.wait(_SWEEP_S):
            return
