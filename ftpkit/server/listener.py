"""Listening sockets: who is let in, who is turned away, and the UDP port beside each."""

import contextlib
import errno
import logging
import os
import socket
import socketserver
import time
from collections import deque
from typing import Any, Final, Protocol

from ftpkit.errors import Code, RefusedError
from ftpkit.net.address import Address
from ftpkit.net.datagrams import DatagramSocket
from ftpkit.protocol.conversation import ServerConversation
from ftpkit.server.admission import Admission
from ftpkit.server.door import bound

# How long a connection that was not admitted stays open, so that its refusal is seen.
_REFUSED_S: Final = 1.0
_MOST_REFUSED: Final = 64
_PORT_TRIES: Final = 20
# How long to accept nobody when even the spare descriptor is gone.
_NO_DESCRIPTOR_S: Final = 0.05

log = logging.getLogger("ftpkit.server")


class Owner(Protocol):
    """What listening sockets accept connections for."""

    admission: Admission

    def serve(self, sock: socket.socket, address: tuple[Any, ...], at: int) -> None:
        """Serve a connection from ``address`` that listening socket number ``at`` accepted."""

    def pause(self, seconds: float) -> None:
        """Do nothing for a while, or until the server is to stop."""


class _Connection(socketserver.BaseRequestHandler):
    """What socketserver makes in a thread of its own for each connection."""

    server: "Listener"

    def handle(self) -> None:
        listener = self.server
        listener.owner.serve(self.request, self.client_address, listener.number)


class Listener(socketserver.ThreadingTCPServer):
    """One listening socket of a server."""

    # The default of 5 refuses connections as soon as a few arrive together.
    request_queue_size = 1024
    allow_reuse_address = os.name == "posix"
    # Otherwise every accept looks through all threads; sessions are joined by their server.
    daemon_threads = True

    def __init__(
        self, owner: Owner, number: int, family: int, address: tuple[Any, ...], *, datagrams: bool
    ) -> None:
        self.owner, self.number = owner, number
        self.port: DatagramSocket | None = None
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
                self.port = _port(family, self.socket.getsockname())
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
        log.exception("error", extra={"fields": {"peer": peer_name(client_address)}})


def peer_name(address: Any) -> str:
    """Return what the log calls the peer at a socket's address."""
    return str(Address(*address[:2])).partition("//")[2]


def _port(family: int, address: tuple[Any, ...]) -> DatagramSocket:
    """Open the UDP port beside a TCP port; OSError names UDP, for TCP would have been free."""
    try:
        return DatagramSocket(bound(family, address))
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error}, for UDP") from None


def listen(
    owner: Owner,
    host: str | None,
    port: int,
    *,
    datagrams: bool,
    kind: type[Listener] = Listener,
) -> list[Listener]:
    """Listen on every address of ``host``; with port 0 all get the same one."""
    for _ in range(_PORT_TRIES):
        listeners: list[Listener] = []
        try:
            for family, address in _targets(host):
                chosen = listeners[0].address.port if listeners else port
                try:
                    listeners.append(
                        kind(owner, len(listeners), family, (address, chosen), datagrams=datagrams)
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
                if listener.port is not None:
                    listener.port.close()
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
