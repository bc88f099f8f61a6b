"""The sockets that a server listens on: opened here, or handed over by whoever started it."""

import errno
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ftpkit.net.address import Address
from ftpkit.osapi import sockets as os_sockets
from ftpkit.server.udp.listener import bound

# The default of 5 refuses connections as soon as a few arrive together.
_QUEUE: Final = 1024
_PORT_TRIES: Final = 20

log = logging.getLogger("ftpkit.server")


@dataclass(frozen=True, slots=True)
class ListeningSocket:
    """A TCP socket that listens, and the UDP socket of its port: all of a server have one, or none.

    Where they are ``shared``, whoever handed them over goes on with them when we have ended.
    """

    tcp: socket.socket
    udp: socket.socket | None
    shared: bool = False

    @property
    def address(self) -> Address:
        """Where it listens."""
        return Address(*self.tcp.getsockname()[:2])

    @property
    def sockets(self) -> list[socket.socket]:
        """Both, or the one that there is."""
        return [self.tcp] if self.udp is None else [self.tcp, self.udp]

    def close(self) -> None:
        """Close both; safe to call twice."""
        for sock in self.sockets:
            sock.close()


def bind(host: str | None, port: int, *, datagrams: bool) -> list[ListeningSocket]:
    """Listen on every address of ``host``; with port 0 all get the same one.

    None is this machine alone, "*" every interface. OSError says why it is impossible.
    """
    for _ in range(_PORT_TRIES):
        opened: list[ListeningSocket] = []
        try:
            for family, address in _targets(host):
                chosen = opened[0].address.port if opened else port
                try:
                    opened.append(_open(family, (address, chosen), datagrams=datagrams))
                except OSError as error:
                    # The second address may not exist here: no IPv6, say.
                    missing = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
                    if not opened or error.errno not in missing:
                        raise
            return opened
        except OSError as error:
            for each in opened:
                each.close()
            # A port that is free for TCP on one address may be taken on another, or for UDP.
            if port or error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, "no port is free on all addresses")


def adopt(sockets: Sequence[socket.socket], *, datagrams: bool) -> list[ListeningSocket]:
    """Return what to listen on, where all of ``sockets`` are open already.

    They are TCP sockets that listen, and perhaps UDP sockets of the same addresses; those
    that are missing are opened. Where one of them cannot be used, none is: the log says so.
    ValueError says that a socket is of another kind.
    """
    listening, given = list[socket.socket](), dict[tuple[Any, ...], socket.socket]()
    for sock in sockets:
        inet = sock.family in (socket.AF_INET, socket.AF_INET6)
        if inet and sock.type == socket.SOCK_DGRAM:
            given[_place(sock)] = sock
        elif inet and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            # Whoever waited there for a client that has gone meanwhile could not be woken.
            sock.setblocking(False)
            listening.append(sock)
        else:
            raise ValueError(f"descriptor {sock.fileno()} is no TCP socket that listens")
    if not listening:
        raise ValueError("there is no TCP socket that listens among them")
    ports = list[socket.socket]()
    if datagrams:
        try:
            for sock in listening:
                ports.append(_beside(sock, given.pop(_place(sock), None)))
        except OSError as error:
            fields = {"address": str(Address(*sock.getsockname()[:2])), "error": str(error)}
            log.warning("no datagrams", extra={"fields": fields})
            while ports:
                ports.pop().close()
    for sock in given.values():
        sock.close()
    return [
        ListeningSocket(sock, ports[at] if ports else None, shared=True)
        for at, sock in enumerate(listening)
    ]


def _open(family: int, address: tuple[str, int], *, datagrams: bool) -> ListeningSocket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        sock.bind(address)
        sock.listen(_QUEUE)
        udp = None
        if datagrams and os_sockets.HAS_SHARED_PORTS:
            udp = _port(family, sock.getsockname())
        return ListeningSocket(sock, udp)
    except BaseException:
        sock.close()
        raise


def _port(family: int, address: tuple[Any, ...]) -> socket.socket:
    """Open the UDP port beside a TCP port; OSError names UDP, for TCP would have been free."""
    try:
        return bound(family, address)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error}, for UDP") from None


def _beside(tcp: socket.socket, udp: socket.socket | None) -> socket.socket:
    """Return ``udp``, or else what is opened beside ``tcp``; OSError says that it cannot serve."""
    if not os_sockets.HAS_SHARED_PORTS:
        raise OSError("several sockets cannot share a port here")
    if udp is None:
        return _port(tcp.family, tcp.getsockname())
    try:
        os_sockets.share_port(udp)
        # Each session has a socket of its own there: for the account that opened this one alone.
        bound(udp.family, udp.getsockname()).close()
    except OSError:
        udp.close()
        raise
    return udp


def _place(sock: socket.socket) -> tuple[Any, ...]:
    return (sock.family, *sock.getsockname()[:2])


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
