"""Sockets: what the operating system offers beyond plain Python, with fallbacks."""

import contextlib
import errno
import os
import select
import socket
import struct
import sys
from typing import Any, Final

from ftpkit.osapi.files import read_at

MSG_MORE: Final = getattr(socket, "MSG_MORE", 0)
# Fewer wake-ups while a large body streams in.
MSG_WAITALL: Final = getattr(socket, "MSG_WAITALL", 0)
MSG_CMSG_CLOEXEC: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
# Connections can be handed to another process.
HAS_FD_PASSING: Final = hasattr(socket, "send_fds")

# Several datagrams in one call; Python does not name Linux's options.
HAS_UDP_SEGMENTS: Final = sys.platform == "linux" and hasattr(socket, "SOL_UDP")
# A second socket on a port, for one address alone.
HAS_SHARED_PORTS: Final = hasattr(socket, "SO_REUSEPORT")
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_IP_MTU_DISCOVER: Final = {socket.IPPROTO_IP: 10, socket.IPPROTO_IPV6: 23}
_IP_MTU: Final = {
    socket.AF_INET: (socket.IPPROTO_IP, 14),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 24),
}
_PMTUDISC_PROBE: Final = 3
_IP_PKTINFO: Final = 8
_U16: Final = struct.Struct("@H")
_INT: Final = struct.Struct("@i")
SEGMENT_ANCILLARY: Final = socket.CMSG_SPACE(_INT.size) if HAS_UDP_SEGMENTS else 0

_HAS_TIMEO: Final = hasattr(socket, "SO_RCVTIMEO") and os.name == "posix"
_TIMEVAL: Final = struct.Struct("@ll")
_COPY: Final = 256 * 1024


def send_file(sock: socket.socket, fd: int, offset: int, count: int) -> int:
    """Send up to ``count`` bytes of a file; return how many went out (0: the file has ended)."""
    if hasattr(os, "sendfile") and sock.gettimeout() is None:
        return os.sendfile(sock.fileno(), fd, offset, count)
    buffer = memoryview(bytearray(min(count, _COPY)))
    got = read_at(fd, buffer, offset)
    sock.sendall(buffer[:got])
    return got


def send_file_now(sock: socket.socket, fd: int, offset: int, count: int) -> int:
    """As ``send_file`` to a socket that is writable, but raise BlockingIOError and do not wait."""
    if not hasattr(os, "sendfile") or sock.gettimeout() is not None:
        buffer = memoryview(bytearray(min(count, _COPY)))
        got = read_at(fd, buffer, offset)
        return send_now(sock, buffer[:got]) if got else 0
    # A flag of the call would do, but sendfile has none.
    os.set_blocking(sock.fileno(), False)
    try:
        return os.sendfile(sock.fileno(), fd, offset, count)
    finally:
        os.set_blocking(sock.fileno(), True)


def send_now(sock: socket.socket, data: memoryview) -> int:
    """Send what a socket that is writable takes without waiting; BlockingIOError for nothing."""
    return sock.send(data, getattr(socket, "MSG_DONTWAIT", 0))


def receive_now(sock: socket.socket, view: memoryview) -> int:
    """Receive what is there without waiting; BlockingIOError for nothing."""
    # With a timeout Python itself would wait.
    if sock.gettimeout() is not None and not wait_readable(sock, 0):
        raise BlockingIOError
    return sock.recv_into(view, 0, getattr(socket, "MSG_DONTWAIT", 0))


def set_socket_timeout(sock: socket.socket, seconds: float) -> None:
    """Let a call that moves no byte for ``seconds`` fail with BlockingIOError or TimeoutError.

    The kernel's own timeouts keep the socket blocking underneath, as ``sendfile`` needs it.
    """
    if _HAS_TIMEO:
        sock.settimeout(None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(seconds))
        set_send_timeout(sock, seconds)
    else:
        sock.settimeout(seconds)


def set_send_timeout(sock: socket.socket, seconds: float) -> None:
    """Let sending alone fail where no byte leaves for ``seconds``, if the system can."""
    if _HAS_TIMEO:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(seconds))


def _timeval(seconds: float) -> bytes:
    whole = int(seconds)
    return _TIMEVAL.pack(whole, max(int((seconds - whole) * 1e6), 0 if whole else 1))


def wait_readable(sock: socket.socket, seconds: float) -> bool:
    """Wait until something, or the end, can be read; False says that ``seconds`` have passed."""
    return _wait(sock, seconds, to_write=False)


def wait_writable(sock: socket.socket, seconds: float) -> bool:
    """Wait until something can be sent, or has failed; False says that ``seconds`` have passed."""
    return _wait(sock, seconds, to_write=True)


def _wait(sock: socket.socket, seconds: float, *, to_write: bool) -> bool:
    if sock.fileno() < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    if hasattr(select, "poll"):  # unlike select, it takes any descriptor
        poll = select.poll()
        poll.register(sock, select.POLLOUT if to_write else select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    ready = select.select([] if to_write else [sock], [sock] if to_write else [], [], seconds)
    return any(ready)


def wait_any(readers: list[socket.socket], writers: list[socket.socket]) -> set[socket.socket]:
    """Wait until one of them can go on, or is broken; return the readers that can.

    For systems on which connections can be handed over.
    """
    poll = select.poll()
    for sock in {*readers, *writers}:
        poll.register(sock, select.POLLIN * (sock in readers) | select.POLLOUT * (sock in writers))
    found = {fd for fd, seen in poll.poll() if seen != select.POLLOUT}
    return {sock for sock in readers if sock.fileno() in found}


def keep_alive(sock: socket.socket) -> None:
    """Let the kernel probe an idle peer, and end the connection of one that is gone."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def segment_ancillary(size: int) -> list[tuple[int, int, bytes]]:
    """Return what tells sendmsg that its bytes are a row of datagrams of ``size`` bytes."""
    return [(socket.SOL_UDP, _UDP_SEGMENT, _U16.pack(size))]


def segment_size(ancillary: list[tuple[int, int, bytes]]) -> int:
    """Return of what size the datagrams are that recvmsg gave in one; 0 if it was a single one."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_UDP, _UDP_GRO):
            return int(_INT.unpack_from(data)[0])
    return 0


def join_segments(sock: socket.socket) -> None:
    """Let datagrams of one size arrive joined, where the system can."""
    if HAS_UDP_SEGMENTS:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_UDP, _UDP_GRO, 1)


def disable_fragmentation(sock: socket.socket) -> None:
    """Let datagrams that are too large for the path be lost, where the system can."""
    if sys.platform == "linux":
        for level, option in _IP_MTU_DISCOVER.items():
            with contextlib.suppress(OSError):
                sock.setsockopt(level, option, _PMTUDISC_PROBE)


def path_mtu(sock: socket.socket) -> int:
    """Return how long a packet a connected socket's first device carries; 0 if unknown."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return sock.getsockopt(*_IP_MTU[sock.family])
    return 0


def from_address(family: int, address: tuple[Any, ...]) -> list[tuple[int, int, bytes]]:
    """Return what tells sendmsg which of our addresses to send from, where the system can."""
    if sys.platform != "linux":
        return []
    raw = socket.inet_pton(family, address[0].partition("%")[0])
    if family == socket.AF_INET6:
        return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, raw + _INT.pack(0))]
    return [(socket.IPPROTO_IP, _IP_PKTINFO, _INT.pack(0) + raw + bytes(4))]


def share_port(sock: socket.socket) -> None:
    """Let several sockets of this user be bound to one port."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
