"""System calls on sockets, with portable fallbacks."""

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
# Wakes up less often while a large body arrives.
MSG_WAITALL: Final = getattr(socket, "MSG_WAITALL", 0)
MSG_CMSG_CLOEXEC: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
# Whether sockets can be sent to another process (SCM_RIGHTS).
HAS_FD_PASSING: Final = hasattr(socket, "send_fds")

# Several datagrams in one call; Python has no names for these options of Linux.
HAS_UDP_SEGMENTS: Final = sys.platform == "linux" and hasattr(socket, "SOL_UDP")
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


def send_all(
    sock: socket.socket, data: bytes | memoryview, seconds: float, *, more: bool = False
) -> None:
    """Send all of ``data``; BlockingIOError if the peer makes no room for ``seconds``.

    A send(2) that blocks would count the bytes that only filled the buffer as progress.
    """
    if sock.gettimeout() is not None:  # Python itself waits
        sock.sendall(data, MSG_MORE if more else 0)
        return
    view = memoryview(data)
    while view:
        try:
            view = view[send_now(sock, view, more=more) :]
        except BlockingIOError:
            if not wait_writable(sock, seconds):
                raise


def send_file(sock: socket.socket, fd: int, offset: int, count: int, seconds: float) -> int:
    """Send up to ``count`` bytes of a file; return how many, 0 at its end.

    Raises BlockingIOError if the peer makes no room for ``seconds``.
    """
    if not _has_sendfile(sock):
        data = _read_copy(fd, offset, count)
        send_all(sock, data, seconds)
        return len(data)
    while True:
        try:
            return send_file_now(sock, fd, offset, count)
        except BlockingIOError:
            if not wait_writable(sock, seconds):
                raise


def send_file_now(sock: socket.socket, fd: int, offset: int, count: int) -> int:
    """As ``send_file``, but raise BlockingIOError instead of waiting.

    sendfile(2), or a read and a send of up to 256 KiB.
    """
    if not _has_sendfile(sock):
        data = _read_copy(fd, offset, count)
        return send_now(sock, data) if data else 0
    # sendfile has no flag for it.
    os.set_blocking(sock.fileno(), False)
    try:
        return os.sendfile(sock.fileno(), fd, offset, count)
    finally:
        os.set_blocking(sock.fileno(), True)


def _has_sendfile(sock: socket.socket) -> bool:
    # With a timeout in Python the descriptor is non-blocking.
    return hasattr(os, "sendfile") and sock.gettimeout() is None


def _read_copy(fd: int, offset: int, count: int) -> memoryview:
    buffer = memoryview(bytearray(min(count, _COPY)))
    return buffer[: read_at(fd, buffer, offset)]


def send_now(sock: socket.socket, data: memoryview, *, more: bool = False) -> int:
    """Send what is possible, or raise BlockingIOError: MSG_DONTWAIT, or a writable socket."""
    return sock.send(data, getattr(socket, "MSG_DONTWAIT", 0) | (MSG_MORE if more else 0))


def receive_now(sock: socket.socket, view: memoryview) -> int:
    """Receive what has arrived, or raise BlockingIOError: recv(2) with MSG_DONTWAIT, or a poll."""
    # With a timeout Python itself would wait.
    if sock.gettimeout() is not None and not wait_readable(sock, 0):
        raise BlockingIOError
    return sock.recv_into(view, 0, getattr(socket, "MSG_DONTWAIT", 0))


def set_socket_timeout(sock: socket.socket, seconds: float) -> None:
    """Make calls that move no byte for ``seconds`` raise BlockingIOError or TimeoutError.

    SO_RCVTIMEO and SO_SNDTIMEO, which keep the descriptor blocking for sendfile(2), or
    Python's timeout.
    """
    if _HAS_TIMEO:
        sock.settimeout(None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(seconds))
        set_send_timeout(sock, seconds)
    else:
        sock.settimeout(seconds)


def set_send_timeout(sock: socket.socket, seconds: float) -> None:
    """As ``set_socket_timeout``, for sending only: SO_SNDTIMEO; nothing without it."""
    if _HAS_TIMEO:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(seconds))


def _timeval(seconds: float) -> bytes:
    whole = int(seconds)
    return _TIMEVAL.pack(whole, max(int((seconds - whole) * 1e6), 0 if whole else 1))


def wait_readable(sock: socket.socket, seconds: float) -> bool:
    """Wait until data, or the end, can be read; False after ``seconds``: poll(2), or select."""
    return _wait(sock, seconds, to_write=False)


def wait_writable(sock: socket.socket, seconds: float) -> bool:
    """Wait until data can be sent, or fails to; False after ``seconds``: poll(2), or select."""
    return _wait(sock, seconds, to_write=True)


def _wait(sock: socket.socket, seconds: float, *, to_write: bool) -> bool:
    if sock.fileno() < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    if hasattr(select, "poll"):  # unlike select, for descriptors over 1023 too
        poll = select.poll()
        poll.register(sock, select.POLLOUT if to_write else select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    ready = select.select([] if to_write else [sock], [sock] if to_write else [], [], seconds)
    return any(ready)


def wait_any(
    readers: list[socket.socket], writers: list[socket.socket], seconds: float | None
) -> set[socket.socket]:
    """Wait for any socket; return the ready and failed readers: poll(2); if HAS_FD_PASSING.

    Raises TimeoutError after ``seconds``.
    """
    poll = select.poll()
    for sock in {*readers, *writers}:
        poll.register(sock, select.POLLIN * (sock in readers) | select.POLLOUT * (sock in writers))
    ready = poll.poll(None if seconds is None else seconds * 1000)
    if not ready:
        raise TimeoutError
    found = {fd for fd, seen in ready if seen != select.POLLOUT}
    return {sock for sock in readers if sock.fileno() in found}


def keep_alive(sock: socket.socket) -> None:
    """Detect dead peers after about 30 s: SO_KEEPALIVE, and its intervals where they can be set."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def segment_ancillary(size: int) -> list[tuple[int, int, bytes]]:
    """Return the ancillary data that makes sendmsg(2) split into ``size`` bytes: UDP_SEGMENT."""
    return [(socket.SOL_UDP, _UDP_SEGMENT, _U16.pack(size))]


def segment_size(ancillary: list[tuple[int, int, bytes]]) -> int:
    """Return the size of the datagrams that recvmsg(2) joined (UDP_GRO); 0 for a single one."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_UDP, _UDP_GRO):
            return int(_INT.unpack_from(data)[0])
    return 0


def join_segments(sock: socket.socket) -> None:
    """Receive datagrams of equal size joined: UDP_GRO; nothing without it."""
    if HAS_UDP_SEGMENTS:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_UDP, _UDP_GRO, 1)


def disable_fragmentation(sock: socket.socket) -> None:
    """Drop datagrams larger than the path's MTU: IP_MTU_DISCOVER, Linux only."""
    if sys.platform == "linux":
        for level, option in _IP_MTU_DISCOVER.items():
            with contextlib.suppress(OSError):
                sock.setsockopt(level, option, _PMTUDISC_PROBE)


def path_mtu(sock: socket.socket) -> int:
    """Return the MTU of a connected socket's route: IP_MTU, Linux only; 0 if unknown."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return sock.getsockopt(*_IP_MTU[sock.family])
    return 0


def source_ancillary(family: int, address: tuple[Any, ...]) -> list[tuple[int, int, bytes]]:
    """Return the ancillary data that sets sendmsg(2)'s source: IP_PKTINFO; empty without it."""
    if sys.platform != "linux":
        return []
    raw = socket.inet_pton(family, address[0].partition("%")[0])
    if family == socket.AF_INET6:
        return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, raw + _INT.pack(0))]
    return [(socket.IPPROTO_IP, _IP_PKTINFO, _INT.pack(0) + raw + bytes(4))]


def share_port(sock: socket.socket) -> None:
    """Let several sockets of this user bind to one port: SO_REUSEPORT; if HAS_SHARED_PORTS."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
