"""A listening socket at work: who is let in, and who is turned away."""

import contextlib
import errno
import logging
import socket
import socketserver
import time
from collections import deque
from typing import Any, Final, Protocol

from ftpkit.errors import Code, RefusedError
from ftpkit.net.address import Address
from ftpkit.net.udp_socket import DatagramSocket
from ftpkit.protocol.state import ServerProtocol
from ftpkit.server.connection_limit import ConnectionLimiter
from ftpkit.server.sockets import ListeningSocket

# How long a connection that was not admitted stays open, so that its refusal is seen.
_REFUSED_S: Final = 1.0
_MOST_REFUSED: Final = 64
# How long to accept nobody when even the spare descriptor is gone.
_NO_DESCRIPTOR_S: Final = 0.05

log = logging.getLogger("ftpkit.server")


class Owner(Protocol):
    """What listening sockets accept connections for."""

    connection_limiter: ConnectionLimiter

    def serve(self, sock: socket.socket, address: tuple[Any, ...], at: int) -> None:
        """Serve a connection from ``address`` that listening socket number ``at`` accepted."""

    def pause(self, seconds: float) -> None:
        """Do nothing for a while, or until the server is to stop."""


class _Handler(socketserver.BaseRequestHandler):
    """What socketserver makes in a thread of its own for each connection."""

    server: "Listener"

    def handle(self) -> None:
        listener = self.server
        listener.owner.serve(self.request, self.client_address, listener.number)


class Listener(socketserver.ThreadingTCPServer):
    """One listening socket of a server."""

    # Otherwise every accept looks through all threads; sessions are joined by their server.
    daemon_threads = True

    def __init__(self, owner: Owner, number: int, bound: ListeningSocket) -> None:
        super().__init__(bound.tcp.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = bound.tcp
        self.owner, self.number, self.address = owner, number, bound.address
        self.port = DatagramSocket(bound.udp, shared=bound.shared) if bound.udp else None
        self._shared = bound.shared
        self._refused: deque[tuple[float, socket.socket]] = deque()
        self._spare = socket.socket()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Admit a connection, or tell it that the server is full."""
        return self.owner.connection_limiter.acquire(client_address[0])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the thread of a connection that was admitted."""
        try:
            super().process_request(request, client_address)
        except BaseException:
            self.owner.connection_limiter.release(client_address[0])
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection that was admitted, in its own thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.owner.connection_limiter.release(client_address[0])

    def shutdown_request(self, request: Any) -> None:
        """Close a connection; one that was not served is told why, and closed a little later."""
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
        if not self._shared:  # with others, it would stop listening for them as well
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
        log.exception("error", extra={"fields": {"peer": peer_name(client_address)}})


def peer_name(address: Any) -> str:
    """Return what the log calls the peer at a socket's address."""
    host, port = address[:2]
    # How a socket for IPv6 sees who comes over IPv4.
    return str(Address(host.removeprefix("::ffff:"), port)).partition("//")[2]
