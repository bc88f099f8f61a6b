"""Listening sockets: accept connections up to the limits, and refuse the others."""

import contextlib
import errno
import logging
import socket
import socketserver
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from ftpkit.errors import Code, RefusedError
from ftpkit.net.address import Address
from ftpkit.net.udp_socket import DatagramSocket
from ftpkit.protocol.state import ServerProtocol
from ftpkit.server.connection_limit import ConnectionLimiter
from ftpkit.server.limits import Limits
from ftpkit.server.sockets import ListeningSocket, bind

# How long a refused connection stays open, so that the client can read the refusal.
_REFUSED_S: Final = 1.0
_MAX_REFUSED: Final = 64
# How long to pause when even the spare descriptor is gone.
_NO_DESCRIPTOR_S: Final = 0.05

Handle = Callable[[socket.socket, tuple[Any, ...], int], None]
"""Handles an accepted connection: its socket, the peer's address, the listener's index."""

log = logging.getLogger("ftpkit.server")


class Listeners:
    """The listening sockets of a server, and its background threads.

    Each connection gets a thread to call ``handle`` in, which closes the socket; if not
    ``threaded``, the accepting thread calls it, and the caller releases the ``connection_limiter``.
    ``sockets`` replace ``host`` and ``port`` at the first ``open``. ``limits`` can be replaced;
    open connections stay open.
    """

    def __init__(
        self,
        host: str | None,
        port: int,
        limits: Limits,
        handle: Handle,
        *,
        datagrams: bool,
        sockets: Sequence[ListeningSocket],
        threaded: bool = True,
    ) -> None:
        self._host, self._port, self._datagrams = host, port, datagrams
        self._sockets = sockets
        self.handle, self.threaded = handle, threaded
        self.limits = limits
        self.connection_limiter = ConnectionLimiter()
        self.stopping = threading.Event()
        self._listeners: list[Listener] = []
        self._accepting = False
        self._threads: list[threading.Thread] = []

    @property
    def addresses(self) -> list[Address]:
        return [listener.address for listener in self._listeners]

    @property
    def address(self) -> Address:
        if not self._listeners:
            raise RuntimeError("the server was not started")
        return self._listeners[0].address

    def open(self) -> list[DatagramSocket]:
        """Bind the sockets; return the UDP sockets, which the caller closes. Raises OSError."""
        self.stopping.clear()
        sockets = self._sockets or bind(self._host, self._port, datagrams=self._datagrams)
        self._sockets = ()
        self._listeners = [Listener(self, index, bound) for index, bound in enumerate(sockets)]
        return [DatagramSocket(each.udp, shared=each.shared) for each in sockets if each.udp]

    def accept(self) -> None:
        self._accepting = True
        for listener in self._listeners:
            self.start_thread("ftpkit-accept", listener.serve_forever)

    def start_thread(self, name: str, target: Callable[[], None]) -> None:
        """Start a thread that ``join`` waits for; it ends when ``stopping`` is set."""
        thread = threading.Thread(target=target, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def close(self) -> None:
        """Stop accepting, and close the listening sockets, also those that were never opened."""
        self.stopping.set()
        for sock in self._sockets:
            sock.close()
        self._sockets = ()
        for listener in self._listeners:
            if self._accepting:
                listener.shutdown()
            listener.server_close()
        self._listeners, self._accepting = [], False

    def join(self) -> None:
        for thread in self._threads:
            thread.join()
        self._threads = []

    def log_start(self, **fields: object) -> None:
        addresses = [str(address) for address in self.addresses]
        log.info("listening", extra={"fields": {"addresses": addresses, **fields}})


class Listener(socketserver.ThreadingTCPServer):
    """One listening socket; ``owner`` handles its connections."""

    # Otherwise every accept looks through all threads; their sessions are waited for elsewhere.
    daemon_threads = True

    def __init__(self, owner: Listeners, index: int, bound: ListeningSocket) -> None:
        super().__init__(
            bound.tcp.getsockname(), socketserver.BaseRequestHandler, bind_and_activate=False
        )
        self.socket.close()
        self.socket = bound.tcp
        self.address = bound.address
        self._owner, self._index, self._shared = owner, index, bound.shared
        self._refused: deque[tuple[float, socket.socket]] = deque()
        self._spare = socket.socket()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        limits = self._owner.limits
        return self._owner.connection_limiter.acquire(
            client_address[0], limits.max_connections_per_address, limits.max_connections
        )

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._owner.threaded:
            self.finish_request(request, client_address)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._owner.connection_limiter.release(client_address[0])
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._owner.connection_limiter.release(client_address[0])

    def finish_request(self, request: Any, client_address: Any) -> None:
        self._owner.handle(request, client_address, self._index)

    def shutdown_request(self, request: Any) -> None:
        """Refuse a connection that is still open, and close it a little later."""
        if request.fileno() < 0:
            return
        refusal = RefusedError(
            Code.TOO_MANY_CONNECTIONS, "the server has too many connections; try again later"
        )
        with contextlib.suppress(OSError):
            request.setblocking(False)
            request.send(ServerProtocol().refuse(refusal, close=True))
            request.shutdown(socket.SHUT_WR)
        self._refused.append((time.monotonic() + _REFUSED_S, request))
        if len(self._refused) > _MAX_REFUSED:
            self._refused.popleft()[1].close()

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection; without a free descriptor, remove it from the queue.

        Otherwise it would stay readable there, and the loop would spin.
        """
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._drop_request()
            raise

    def _drop_request(self) -> None:
        """Accept a connection with the spare descriptor, and close it."""
        self._spare.close()
        with contextlib.suppress(OSError):
            self.socket.accept()[0].close()
        try:
            self._spare = socket.socket()
        except OSError:
            # Another thread took the descriptor: the loop would spin until one is free.
            self._owner.stopping.wait(_NO_DESCRIPTOR_S)
        log.warning("error", extra={"fields": {"error": "too many open files"}})

    def shutdown(self) -> None:
        """Stop accepting: at once if the socket can be woken, else within the poll interval."""
        if not self._shared:  # other processes that have the socket would stop listening, too
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
        super().shutdown()

    def service_actions(self) -> None:
        """Close refused connections whose time is over; called between accepts."""
        while self._refused and self._refused[0][0] < time.monotonic():
            self._refused.popleft()[1].close()

    def server_close(self) -> None:
        super().server_close()
        self._spare.close()
        while self._refused:
            self._refused.popleft()[1].close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.exception("error", extra={"fields": {"peer": peer_name(client_address)}})


def peer_name(address: Any) -> str:
    """Return how the log names the peer at a socket address."""
    host, port = address[:2]
    # An IPv6 socket sees IPv4 peers as mapped addresses.
    return str(Address(host.removeprefix("::ffff:"), port)).partition("//")[2]
