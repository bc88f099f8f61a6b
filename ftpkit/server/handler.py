"""Serves accepted connections: opens their transport, runs their sessions, and stops them."""

import contextlib
import logging
import os
import socket
import threading
import time
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
from ftpkit.server.context import Handoff, OtherWorkers, PausedLists, SessionContext
from ftpkit.server.jobs import Jobs
from ftpkit.server.limits import Limits
from ftpkit.server.listener import Listeners
from ftpkit.server.session import Session
from ftpkit.server.status import transfer_status
from ftpkit.server.transfers.registry import TransferRegistry
from ftpkit.server.udp.listener import UdpListener
from ftpkit.storage import DirectoryStore
from ftpkit.storage.api import QuotaAwareStore, Store, SweepingStore
from ftpkit.tokens import Tokens

# For the first byte, and again for the whole handshake; no client has authenticated yet.
_HANDSHAKE_S: Final = 10.0
_SWEEP_S: Final = 3600.0
# WIRE.md promises the reply to a repeated commit for at least a day.
_PUBLICATIONS_S: Final = 2 * 86_400.0

log = logging.getLogger("ftpkit.server")


class ConnectionHandler:
    """Serves the connections of one process, each in the thread that calls ``handle``.

    With an ``identity`` it requires TLS, unless ``plain`` also accepts unencrypted connections.
    The caller acquires a place of ``connection_limiter`` for each connection before ``handle``,
    and releases it afterwards. With ``tokens`` clients must authenticate; ``shared_limits`` counts
    for all workers of the server, and is made here without other workers.
    """

    def __init__(
        self,
        store: Store,
        connection_limiter: ConnectionLimiter,
        limits: Limits,
        scheduler: Scheduler | RemoteScheduler | None = None,
        *,
        tokens: Tokens | None = None,
        shared_limits: SharedLimits | None = None,
        identity: Identity | None = None,
        plain: bool = False,
    ) -> None:
        self.store = store
        self._tls = identity.context() if identity else None
        self._plain, self._limits = plain, limits
        self.registry = TransferRegistry(BlockingScheduler(scheduler or limits.new_scheduler()))
        self.jobs = Jobs()
        self._open_uploads = ConnectionLimiter()
        self._paused_lists = PausedLists()
        self._connection_limiter = connection_limiter
        self._buffers = BufferPool()
        self._since = time.monotonic()
        self._lock = threading.Lock()
        self._sessions: set[Session] = set()
        self._now = False
        self._stopping, self._closed = threading.Event(), threading.Event()
        self._before_close = contextlib.ExitStack()
        self._authenticator: Authenticator | None = None
        if tokens is not None:
            if shared_limits is None:
                shared_limits = LocalLimits(used_bytes_of(store))
                self._before_close.callback(shared_limits.quotas.close)
            self._authenticator = Authenticator(tokens, shared_limits, store, self._stopping)
            thread = threading.Thread(target=self._check_tokens, name="ftpkit-tokens", daemon=True)
            thread.start()
            self._before_close.callback(thread.join)
            self._before_close.callback(self._closed.set)

    def change(self, limits: Limits, identity: Identity | None = None) -> None:
        """Apply other limits, and an ``identity`` for new connections, as ``Server`` does."""
        self._limits = limits
        self._tls = identity.context() if identity else self._tls
        scheduler = self.registry.scheduler
        scheduler.configure(limits.policy, slots=limits.slots, bytes_per_s=limits.rates)

    def handle(
        self,
        sock: socket.socket,
        peer: str,
        udp_listener: UdpListener | None,
        other_workers: OtherWorkers | None = None,
        handoff: Handoff | None = None,
    ) -> None:
        """Serve one connection in this thread, until it ends or another worker continues it."""
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
            status=self.status if other_workers is None else other_workers.status,
            authenticator=self._authenticator,
            peer=peer,
            registry=self.registry,
            paused_lists=self._paused_lists,
            udp_listener=udp_listener,
            other_workers=other_workers,
            open_uploads=self._open_uploads,
        )
        if self._authenticator is None:  # otherwise accounts belong to users, not to addresses
            context.account = self.registry.account(peer.rpartition(":")[0])
        session = Session(context, handoff, None if handoff else self._open_transport)
        with self._lock:
            self._sessions.add(session)
            stopping, now = self._stopping.is_set(), self._now
        if stopping:
            session.stop(now=now)
        try:
            session.run()
        finally:
            with self._lock:
                self._sessions.remove(session)

    def _open_transport(self, stream: FrameStream) -> None:
        """Start TLS if the client does; RefusedError for a plaintext frame unless ``plain``.

        A first byte that is neither stays unread: the session refuses it as an invalid frame.
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
                "this server requires TLS; log in with the URL that it printed: ftpkit login URL",
            )

    def status(self) -> ServerStatus:
        """Return the status of this process; WIRE.md section 6 lists the keys."""
        limits, now = self._limits, time.monotonic()
        uptime_s = round(now - self._since, 3)
        with self._lock:
            connections = sum(not session.handed_over for session in self._sessions)
        return {
            "version": __version__,
            "uptime_s": uptime_s,
            "connections": connections,
            "max_connections": limits.max_connections,
            "policy": limits.schedule if self.registry.scheduler.has_limits else None,
            "slots": limits.slots,
            "rate_bps": limits.bytes_per_s,
            "workers": [
                {"number": 1, "pid": os.getpid(), "uptime_s": uptime_s, "connections": connections}
            ],
            "totals": self.registry.ended.totals,
            "transfers": [
                transfer_status(each, now) for each in self.registry.scheduler.snapshot()
            ],
        }

    def sessions(self) -> set[Session]:
        with self._lock:
            return set(self._sessions)

    def stop(self, grace_s: float) -> None:
        """Wait up to ``grace_s`` for running transfers, then interrupt the rest."""
        self._stop_sessions(now=False)
        if not self._connection_limiter.wait_for(lambda count: count == 0, grace_s):
            self._stop_sessions(now=True)
            self._connection_limiter.wait_for(lambda count: count == 0)

    def close(self) -> None:
        """Wait for jobs that outlived their session; nothing uses the store afterwards."""
        self.jobs.stop()
        self._before_close.close()

    def _stop_sessions(self, *, now: bool) -> None:
        with self._lock:
            self._stopping.set()
            self._now = now
        for session in self.sessions():
            session.stop(now=now)

    def _check_tokens(self) -> None:
        """End the sessions whose token has become invalid, until ``close``."""
        while not self._closed.wait(CHECK_INTERVAL_S):
            for session in self.sessions():
                try:
                    session.check_token()
                except Exception:  # the other sessions must still be checked
                    log.exception("error", extra={"fields": {"peer": session.peer}})


def open_store(
    store: Store | str | os.PathLike[str], *, durable: bool
) -> contextlib.AbstractContextManager[Store]:
    """Return a context with ``store``, or with the default store in that directory."""
    if isinstance(store, str | os.PathLike):
        return DirectoryStore(store, durable=durable)
    return contextlib.nullcontext(store)


def used_bytes_of(store: Store) -> UsedBytes:
    """Return the function that counts stored bytes; a store without one accepts no quotas."""
    return store.used_bytes if isinstance(store, QuotaAwareStore) else lambda *args: 0


def sweep_hourly(store: Store, listeners: Listeners) -> None:
    """Delete expired uploads and publications, now and every hour, until ``listeners`` stop."""
    if not isinstance(store, SweepingStore):
        return
    while True:
        try:
            store.sweep(uploads_s=listeners.limits.expire_uploads_s, publications_s=_PUBLICATIONS_S)
        except OSError:
            log.exception("error", extra={"fields": {"at": "sweep"}})
        if listeners.stopping.wait(_SWEEP_S):
            return
