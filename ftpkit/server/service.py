"""What serves connections, wherever they were accepted: a store, and the sessions of now."""

import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ftpkit import __version__
from ftpkit.net.buffers import Buffers
from ftpkit.net.stream import Stream
from ftpkit.server.admission import Admission
from ftpkit.server.context import Context
from ftpkit.server.door import Door
from ftpkit.server.jobs import Jobs
from ftpkit.server.session import Session
from ftpkit.storage.store import Store

DAY_S: Final = 86_400.0
_SWEEP_S: Final = 3600.0
# WIRE.md promises the first answer again for at least a day.
_ANSWERS_KEPT_S: Final = 2 * DAY_S

log = logging.getLogger("ftpkit.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What can change while a server runs."""

    max_connections: int = 1024
    max_connections_per_address: int = 1000
    idle_timeout_s: float = 300.0
    stall_timeout_s: float = 30.0
    expire_uploads_s: float = 7 * DAY_S


class Service:
    """Serves each connection in the thread that brings it, until ``stop``.

    Whoever brings one has entered it with ``admission`` before. New ``limits``
    hold for the connections that come after them.
    """

    def __init__(self, store: Store, admission: Admission, limits: Limits) -> None:
        self.store, self.limits = store, limits
        self.jobs = Jobs()
        self._admission = admission
        self._buffers = Buffers()
        self._lock = threading.Lock()
        self._sessions: dict[Session, threading.Thread] = {}

    def serve(self, sock: socket.socket, peer: str, door: Door | None) -> None:
        """Serve one connection, in this thread, until it ends."""
        stream = Stream(
            sock,
            stall_timeout_s=self.limits.stall_timeout_s,
            idle_timeout_s=self.limits.idle_timeout_s,
        )
        context = Context(
            self.store,
            self.jobs,
            self._buffers,
            stream,
            agent=f"ftpkit/{__version__}",
            door=door,
        )
        session = Session(stream, context, peer)
        with self._lock:
            self._sessions[session] = threading.current_thread()
        self._admission.notify()
        try:
            session.run()
        finally:
            with self._lock:
                del self._sessions[session]

    def sessions(self) -> dict[Session, threading.Thread]:
        """Return those that run, and in which thread each does."""
        with self._lock:
            return dict(self._sessions)

    def stop(self, grace_s: float) -> None:
        """Let running transfers go on for ``grace_s``, then end what is left.

        Nobody may be admitted any more.
        """
        # Whoever was admitted has a session now, or is about to.
        self._admission.wait_for(lambda count: count == len(self.sessions()))
        deadline = time.monotonic() + grace_s
        for session in self.sessions():
            session.stop(now=False)
        for thread in self.sessions().values():
            thread.join(max(0.0, deadline - time.monotonic()))
        for session, thread in self.sessions().items():
            session.stop(now=True)
            thread.join()

    def close(self) -> None:
        """Wait for the work that outlived its session, and close the store."""
        self.jobs.stop()
        self.store.close()


def sweep_hourly(store: Store, limits: Callable[[], Limits], stopping: threading.Event) -> None:
    """Remove what has expired, now and every hour, until ``stopping`` is set."""
    while True:
        try:
            store.sweep(uploads_s=limits().expire_uploads_s, publications_s=_ANSWERS_KEPT_S)
        except OSError:
            log.exception("error", extra={"fields": {"at": "sweep"}})
        if stopping.wait(_SWEEP_S):
            return
