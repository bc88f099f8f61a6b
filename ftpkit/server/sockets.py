"""Opens the sockets that a server listens on, or adopts sockets that are open already."""

import errno
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ftpkit.net.address import Address
from ftpkit.osapi import sockets as os_sockets
from ftpkit.server.udp.listener import bind_shared

# The default of 5 refuses connections as soon as a few arrive together.
_BACKLOG: Final = 1024
_PORT_TRIES: Final = 20

log = logging.getLogger("ftpkit.server")


@dataclass(frozen=True, slots=True)
class ListeningSocket:
    """A listening TCP socket and the UDP socket of its port; all of a server have one, or none.

    ``shared`` sockets are used by another process, too, which keeps them when the server ends.
    """

    tcp: socket.socket
    udp: socket.socket | None
    shared: bool = False

    @property
    def address(self) -> Address:
        return Address(*self.tcp.getsockname()[:2])

    @property
    def sockets(self) -> list[socket.socket]:
        return [self.tcp] if self.udp is None else [self.tcp, self.udp]

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


def bind(host: str | None, port: int, *, datagrams: bool) -> list[ListeningSocket]:
    """Listen on every address of ``host``; with ``port`` 0 all get the same free port.

    None is the loopback interface, "*" every interface. Raises OSError.
    """
    for _ in range(_PORT_TRIES):
        opened: list[ListeningSocket] = []
        try:
            for family, address in _targets(host):
                chosen = opened[0].address.port if opened else port
                try:
                    opened.append(_open(family, (address, chosen), datagrams=datagrams))
                except OSError as error:
                    # The second address may not exist on this machine, for example without IPv6.
                    missing = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
                    if not opened or error.errno not in missing:
                        raise
            return opened
        except OSError as error:
            for each in opened:
                each.close()
            # A port that is free for TCP on one address may be in use on another, or for UDP.
            if port or error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, "no port is free on all addresses")


def adopt(sockets: Sequence[socket.socket], *, datagrams: bool) -> list[ListeningSocket]:
    """Return ``sockets`` as ListeningSockets: listening TCP sockets, and UDP sockets beside them.

    UDP sockets that are missing are opened. If one cannot be used, the server does without UDP,
    and logs why. ValueError: a socket is of another kind.
    """
    listening, given = list[socket.socket](), dict[tuple[Any, ...], socket.socket]()
    for sock in sockets:
        inet = sock.family in (socket.AF_INET, socket.AF_INET6)
        if inet and sock.type == socket.SOCK_DGRAM:
            given[_endpoint(sock)] = sock
        elif inet and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            # A thread in accept, for a client that has gone meanwhile, could not be woken.
            sock.setblocking(False)
            listening.append(sock)
        else:
            raise ValueError(f"descriptor {sock.fileno()} is not a listening TCP socket")
    if not listening:
        raise ValueError("none of them is a listening TCP socket")
    ports = list[socket.socket]()
    if datagrams:
        try:
            for sock in listening:
                ports.append(_udp_beside(sock, given.pop(_endpoint(sock), None)))
        except OSError as error:
            fields = {"address": str(Address(*sock.getsockname()[:2])), "error": str(error)}
            log.warning("no datagrams", extra={"fields": fields})
            while ports:
                ports.pop().close()
    for sock in given.values():
        sock.close()
    return [
        ListeningSocket(sock, ports[index] if ports else None, shared=True)
        for index, sock in enumerate(listening)
    ]


def _open(family: int, address: tuple[str, int], *, datagrams: bool) -> ListeningSocket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        sock.bind(address)
        sock.listen(_BACKLOG)
        wanted = datagrams and os_sockets.HAS_SHARED_PORTS
        return ListeningSocket(sock, _open_udp(family, sock.getsockname()) if wanted else None)
    except BaseException:
        sock.close()
        raise


def _open_udp(family: int, address: tuple[Any, ...]) -> socket.socket:
    """Open the UDP socket of a TCP port; OSError names UDP, because TCP had the port free."""
    try:
        return bind_shared(family, address)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error}, for UDP") from None


def _udp_beside(tcp: socket.socket, udp: socket.socket | None) -> socket.socket:
    """Return ``udp`` if it can be shared, or a new socket beside ``tcp``; raises OSError."""
    if not os_sockets.HAS_SHARED_PORTS:
        raise OSError("this system does not support sockets that share a port")
    if udp is None:
        return _open_udp(tcp.family, tcp.getsockname())
    try:
        os_sockets.share_port(udp)
        # Each session binds a socket there, which only the account that opened this one can do.
        bind_shared(udp.family, udp.getsockname()).close()
    except OSError:
        udp.close()
        raise
    return udp


def _endpoint(sock: socket.socket) -> tuple[Any, ...]:
    return (sock.family, *sock.getsockname()[:2])


def _targets(host: str | None) -> list[tuple[int, str]]:
    if host is None:
        return [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
    if host == "*":
        return [(socket.AF_INET6, "::") if socket.has_dualstack_ipv6() else (socket.AF_INET, "")]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError:  # from IDNA: a label is empty or longer than 63 characters
        raise OSError(errno.EINVAL, "invalid host name") from None
    return list(dict.fromkeys((family, str(address[0])) for family, *_, address in found))
