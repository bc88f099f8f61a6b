"""The server: listening sockets, a bounded number of sessions, and a clean stop."""

import contextlib
import errno
import logging
import os
import socket
import socketserver
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Self

from ftpkit import __version__, system
from ftpkit.errors import Code, RefusedError
from ftpkit.net.address import DEFAULT_PORT, Address
from ftpkit.net.buffers import Buffers
from ftpkit.net.stream import Stream
from ftpkit.protocol.conversation import ServerConversation
from ftpkit.server.admission import Admission
from ftpkit.server.context import Context
from ftpkit.server.door import Door
from ftpkit.server.jobs import Jobs
from ftpkit.server.session import Session
from ftpkit.storage import DirectoryStore
from ftpkit.storage.files import Files

# How long a connection that was not admitted stays open, so that its refusal is seen.
_REFUSED_S: Final = 1.0
_MOST_REFUSED: Final = 64
_PORT_TRIES: Final = 20
# How long to accept nobody when even the spare descriptor is gone.
_NO_DESCRIPTOR_S: Final = 0.05
_DAY_S: Final = 86_400.0
_SWEEP_S: Final = 3600.0
# WIRE.md promises the first answer again for at least a day.
_ANSWERS_KEPT_S: Final = 2 * _DAY_S

log = logging.getLogger("ftpkit.server")


class Server:
    """Serves the directory ``root`` over the ftpkit protocol, in background threads.

    ``host`` is an address or a name to listen on; None means this machine
    alone, "*" every interface; ``port`` 0 lets the system pick one, the same for
    TCP and, with ``datagrams``, UDP. Use it as a context manager, or call ``start``
    and ``stop``.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        host: str | None = None,
        port: int = DEFAULT_PORT,
        max_connections: int = 1024,
        max_connections_per_address: int = 1000,
        idle_timeout_s: float = 300.0,
        stall_timeout_s: float = 30.0,
        expire_uploads_s: float = 7 * _DAY_S,
        durable: bool = True,
        datagrams: bool = True,
    ) -> None:
        self._root, self._host, self._port = root, host, port
        self._idle_timeout_s, self._stall_timeout_s = idle_timeout_s, stall_timeout_s
        self._expire_uploads_s, self._durable = expire_uploads_s, durable
        self._datagrams = datagrams and system.HAS_SHARED_PORTS
        self.admission = Admission(max_connections, max_connections_per_address)
        self._lock = threading.Lock()
        self._sessions: dict[Session, threading.Thread] = {}
        self._listeners: list[_Listener] = []
        self._threads: list[threading.Thread] = []
        self._doors: list[Door] = []
        self._buffers = Buffers()
        self._jobs = Jobs()
        self._store: DirectoryStore | None = None
        self._stopping = threading.Event()

    @property
    def addresses(self) -> list[Address]:
        """Where the server listens."""
        return [listener.address for listener in self._listeners]

    @property
    def address(self) -> Address:
        """The first address on which the server listens."""
        return self.addresses[0]

    def start(self) -> None:
        """Open the root, listen, and serve; OSError says why that is impossible."""
        self._jobs = Jobs()
        self._stopping.clear()
        self._store = DirectoryStore(self._root, Files(durable=self._durable))
        try:
            self._listeners = _listen(self, self._host, self._port, datagrams=self._datagrams)
        except BaseException:
            self._store.close()
            raise
        self._run("ftpkit-sweep", self._sweep)
        for listener in self._listeners:
            self._run("ftpkit-accept", listener.serve_forever)
        self._doors = [listener.door for listener in self._listeners if listener.door]
        for door in self._doors:
            door.start()
        addresses = [str(address) for address in self.addresses]
        log.info("listening", extra={"fields": {"addresses": addresses}})

    def stop(self, grace_s: float = 30.0) -> None:
        """Accept nobody, let running transfers go on for ``grace_s``, then end what is left.

        What is unfinished then is checkpointed, to be continued another time.
        """
        self._stopping.set()
        for listener in self._listeners:
            listener.shutdown()
            listener.server_close()
        for thread in self._threads:
            thread.join()
        self._listeners, self._threads = [], []
        # Whoever was admitted has a session now, or is about to.
        self.admission.wait_for(lambda count: count == len(self._running()))
        deadline = time.monotonic() + grace_s
        for session in self._running():
            session.stop(now=False)
        for thread in self._running().values():
            thread.join(max(0.0, deadline - time.monotonic()))
        for session, thread in self._running().items():
            session.stop(now=True)
            thread.join()
        # Running transfers may have needed them until now.
        for door in self._doors:
            door.close()
        self._doors = []
        self._jobs.stop()
        if self._store is not None:
            self._store.close()
            self._store = None
        log.info("stopped", extra={"fields": {}})

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def serve(self, sock: socket.socket, peer: str, door: Door | None) -> None:
        """Serve one connection that was admitted, in this thread, until it ends."""
        if self._store is None:
            return
        stream = Stream(
            sock, stall_timeout_s=self._stall_timeout_s, idle_timeout_s=self._idle_timeout_s
        )
        context = Context(
            self._store,
            self._jobs,
            self._buffers,
            stream,
            agent=f"ftpkit/{__version__}",
            door=door,
        )
        session = Session(stream, context, peer)
        with self._lock:
            self._sessions[session] = threading.current_thread()
        self.admission.notify()
        try:
            session.run()
        finally:
            with self._lock:
                del self._sessions[session]

    def pause(self, seconds: float) -> None:
        """Do nothing for a while, or until the server is to stop."""
        self._stopping.wait(seconds)

    def _running(self) -> dict[Session, threading.Thread]:
        with self._lock:
            return dict(self._sessions)

    def _run(self, name: str, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _sweep(self) -> None:
        """Remove what has expired, now and every hour."""
        store = self._store
        while store is not None:
            try:
                store.sweep(uploads_s=self._expire_uploads_s, publications_s=_ANSWERS_KEPT_S)
            except OSError:
                log.exception("error", extra={"fields": {"sweep": str(self._root)}})
            if self._stopping.wait(_SWEEP_S):
                return


class _Connection(socketserver.BaseRequestHandler):
    """What socketserver makes in a thread of its own for each connection."""

    server: "_Listener"

    def handle(self) -> None:
        listener = self.server
        listener.owner.serve(self.request, _peer(self.client_address), listener.door)


class _Listener(socketserver.ThreadingTCPServer):
    """One listening socket of a server."""

    # The default of 5 refuses connections as soon as a few arrive together.
    request_queue_size = 1024
    allow_reuse_address = os.name == "posix"
    # Otherwise every accept looks through all threads; sessions are joined by their server.
    daemon_threads = True

    def __init__(
        self, owner: Server, family: int, address: tuple[Any, ...], *, datagrams: bool
    ) -> None:
        self.owner = owner
        self.door: Door | None = None
        self.address_family = family
        self._refused: deque[tuple[float, socket.socket]] = deque()
        self._spare = socket.socket()
        super().__init__(address, _Connection, bind_and_activate=False)
        try:
            if family == socket.AF_INET6:
                both = address[0] == "::"
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
            self.server_bind()
            self.server_activate()
            if datagrams:
                self.door = _door(family, self.socket.getsockname())
        except BaseException:
            self.server_close()
            raise

    @property
    def address(self) -> Address:
        """Where it listens."""
        host, port = self.socket.getsockname()[:2]
        return Address(host, port)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Admit a connection, or tell it that the server is full."""
        return self.owner.admission.enter(client_address[0])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the thread of a connection that was admitted."""
        try:
            super().process_request(request, client_address)
        except BaseException:
            self.owner.admission.leave(client_address[0])
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection that was admitted, in its own thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.owner.admission.leave(client_address[0])

    def shutdown_request(self, request: Any) -> None:
        """Close a connection; one that was not served is told why, and closed a little later."""
        if request.fileno() < 0:
            return
        refusal = RefusedError(
            Code.TOO_MANY_CONNECTIONS, "the server has too many connections; try again later"
        )
        with contextlib.suppress(OSError):
            request.setblocking(False)
            request.send(ServerConversation().refuse(refusal, close=True))
            request.shutdown(socket.SHUT_WR)
        self._refused.append((time.monotonic() + _REFUSED_S, request))
        if len(self._refused) > _MOST_REFUSED:
            self._refused.popleft()[1].close()

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection; with no descriptor left, at least take it out of the queue.

        Otherwise it would stay there, and the loop would run hot.
        """
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away()
            raise

    def _turn_away(self) -> None:
        """Accept a connection with the spare descriptor, and close it."""
        self._spare.close()
        with contextlib.suppress(OSError):
            self.socket.accept()[0].close()
        try:
            self._spare = socket.socket()
        except OSError:
            # Somebody was quicker: wait a moment, or the loop would run hot until one is free.
            self.owner.pause(_NO_DESCRIPTOR_S)
        log.warning("error", extra={"fields": {"error": "too many open files"}})

    def shutdown(self) -> None:
        """Stop accepting, at once where a listening socket can be woken, else after a moment."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        super().shutdown()

    def service_actions(self) -> None:
        """Close what was refused a while ago; called between accepts."""
        while self._refused and self._refused[0][0] < time.monotonic():
            self._refused.popleft()[1].close()

    def server_close(self) -> None:
        super().server_close()
        self._spare.close()
        while self._refused:
            self._refused.popleft()[1].close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.exception("error", extra={"fields": {"peer": _peer(client_address)}})


def _peer(address: Any) -> str:
    return str(Address(*address[:2])).partition("//")[2]


def _door(family: int, address: tuple[Any, ...]) -> Door:
    """Open the UDP port beside a TCP port; OSError names UDP, for TCP would have been free."""
    try:
        return Door(family, address)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error}, for UDP") from None


def _listen(owner: Server, host: str | None, port: int, *, datagrams: bool) -> list[_Listener]:
    """Listen on every address of ``host``; with port 0 all get the same one."""
    for _ in range(_PORT_TRIES):
        listeners: list[_Listener] = []
        try:
            for family, address in _targets(host):
                chosen = listeners[0].address.port if listeners else port
                try:
                    listeners.append(
                        _Listener(owner, family, (address, chosen), datagrams=datagrams)
                    )
                except OSError as error:
                    # The second address may not exist here: no IPv6, say.
                    missing = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
                    if not listeners or error.errno not in missing:
                        raise
            return listeners
        except OSError as error:
            for listener in listeners:
                listener.server_close()
                if listener.door is not None:
                    listener.door.close()
            # A port that is free for TCP on one address may be taken on another, or for UDP.
            if port or error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, "no port is free on all addresses")


def _targets(host: str | None) -> list[tuple[int, str]]:
    if host is None:
        return [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
    if host == "*":
        if socket.has_dualstack_ipv6():
            return [(socket.AF_INET6, "::")]
        return [(socket.AF_INET, "")]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError:  # what IDNA says of an empty part, or one of over 63 letters
        raise OSError(errno.EINVAL, "no such host name is possible") from None
    return list(dict.fromkeys((family, str(address[0])) for family, *_, address in found))
