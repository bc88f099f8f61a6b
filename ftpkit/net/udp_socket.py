"""Datagrams over a UDP socket, many per system call where possible, and the loop of a session."""

import contextlib
import errno
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any, Final

from ftpkit.net.cipher import DatagramCipher
from ftpkit.net.socket_errors import connection_lost
from ftpkit.osapi import sockets as os_sockets
from ftpkit.protocol.udp.packet import SAFE_DATAGRAM
from ftpkit.protocol.udp.session import DatagramSession

# Ethernet's MTU, the largest IP packet, and the headers of IP and UDP.
_ETHERNET: Final = 1500
_MAX_IP: Final = 65535
_HEADERS: Final = {socket.AF_INET: 28, socket.AF_INET6: 48}
_BUFFER: Final = 64 * 1024
# Limits of one UDP_SEGMENT call.
_MAX_SEGMENTS: Final = 64
_MAX_BATCH: Final = 65_000
_QUEUE_BYTES: Final = 4 * 1024 * 1024
# Receive calls before a session may send again.
_MAX_RECEIVES: Final = 64
_MAX_INJECTED: Final = 32

Parts = tuple[bytes, bytes | memoryview]

# Errors that mean no more than that a datagram is lost.
_LOSSES: Final = {
    errno.EMSGSIZE, errno.ENOBUFS, errno.EAGAIN, errno.ECONNREFUSED, errno.EHOSTUNREACH,
    errno.ENETUNREACH, errno.EPERM, errno.EHOSTDOWN, errno.ENETDOWN,
}  # fmt: skip


class DatagramSocket:
    """A UDP socket, connected or not; datagrams that it cannot send are lost.

    On Linux one call sends many datagrams of equal length (UDP_SEGMENT) and receives many
    (UDP_GRO); elsewhere each takes a call. A ``shared`` socket is also open in another process,
    which continues to use it. Methods raise ConnectionLostError if the socket fails.
    """

    def __init__(self, sock: socket.socket, *, shared: bool = False) -> None:
        self._sock, self._shared = sock, shared
        self._segments = os_sockets.HAS_UDP_SEGMENTS
        self._buffer = memoryview(bytearray(_BUFFER))
        self._injected: deque[tuple[bytes, Any]] = deque(maxlen=_MAX_INJECTED)
        sock.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, option, _QUEUE_BYTES)
        os_sockets.disable_fragmentation(sock)
        os_sockets.join_segments(sock)

    def fileno(self) -> int:
        return self._sock.fileno()

    def connect(self, address: tuple[Any, ...]) -> None:
        self._sock.connect(address)

    def sizes(self) -> list[int]:
        """Return the payload sizes that a connected socket's path may carry, largest first."""
        headers = _HEADERS[self._sock.family]
        mtu = min(os_sockets.path_mtu(self._sock) or _ETHERNET, _MAX_IP)
        return sorted({mtu - headers, min(mtu, _ETHERNET) - headers, SAFE_DATAGRAM}, reverse=True)

    def send(self, parts: Sequence[Parts]) -> None:
        for batch in _batches(parts) if self._segments and len(parts) > 1 else [parts]:
            if len(batch) < 2 or not self._segments or not self._send_segments(batch):
                for pair in batch:
                    with _losses():
                        self._sock.sendmsg(pair)

    def send_to(
        self, parts: Parts, address: tuple[Any, ...], local: tuple[Any, ...] | None = None
    ) -> None:
        """Send one datagram to ``address`` from an unconnected socket.

        ``local`` is the source address, on Linux only: elsewhere the system selects one, which
        on a machine of several addresses may not be the one that the peer sent to.
        """
        source = os_sockets.source_ancillary(self._sock.family, local) if local else []
        with _losses():
            self._sock.sendmsg(parts, source, 0, address)

    def inject(self, raw: bytes, address: Any) -> None:
        """Let ``raw`` be received as if from ``address``; safe from another thread."""
        self._injected.append((raw, address))

    def wait(self, seconds: float) -> bool:
        """Wait until something has arrived; False after ``seconds``."""
        return bool(self._injected) or os_sockets.wait_readable(self._sock, seconds)

    def receive(self, most: int | None = None) -> Iterator[tuple[memoryview, Any]]:
        """Yield what has arrived and its source; each view is valid until the next.

        Stops after ``most`` bytes, or a fixed number of calls; the rest stays queued.
        """
        received = 0
        while self._injected:
            raw, address = self._injected.popleft()
            yield memoryview(raw), address
        for _ in range(_MAX_RECEIVES):
            if most is not None and received >= most:
                return
            try:
                count, ancillary, _, address = self._sock.recvmsg_into(
                    [self._buffer], os_sockets.SEGMENT_ANCILLARY
                )
            except OSError as error:
                if error.errno == errno.ECONNREFUSED:
                    continue  # no listener there now; that may change
                if error.errno in _LOSSES:
                    return
                raise connection_lost(error) from None
            received += count
            segment = os_sockets.segment_size(ancillary) or max(count, 1)
            for start in range(0, count, segment):
                yield self._buffer[start : min(start + segment, count)], address

    def shutdown(self) -> None:
        """End every wait, unless the socket is shared; safe from another thread."""
        if not self._shared:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._sock.close()

    def _send_segments(self, batch: Sequence[Parts]) -> bool:
        """Send ``batch`` in one call; False if the device does not support it."""
        ancillary = os_sockets.segment_ancillary(len(batch[0][0]) + len(batch[0][1]))
        try:
            self._sock.sendmsg(list(chain.from_iterable(batch)), ancillary)
        except OSError as error:
            # Do not try again what the device does not support.
            self._segments = error.errno in _LOSSES
        return self._segments


def drive_session(
    sock: DatagramSocket,
    cipher: DatagramCipher,
    session: DatagramSession,
    *,
    should_continue: Callable[[float], bool],
    quantum: Callable[[], AbstractContextManager[int | None]] = contextlib.nullcontext,
) -> None:
    """Run ``session`` over ``sock`` while ``should_continue``, called with the time, returns True.

    Each round receives and sends within a ``quantum``, which yields how many bytes may be
    received, None for no limit. Raises ProtocolError if a peer that has the key sends what is
    not valid, ConnectionLostError if the socket fails.
    """
    while should_continue(time.monotonic()):
        with quantum() as most:
            now = time.monotonic()
            for raw, _ in sock.receive(most):
                decrypted = cipher.decrypt(raw)
                if decrypted is not None:
                    session.receive(*decrypted, now)
            datagrams = session.datagrams_to_send(now)
            if datagrams:
                sock.send(cipher.encrypt(*datagrams))
        wait_s = session.next_event(now) - time.monotonic()
        # The last datagram may have ended the session.
        if wait_s > 0 and should_continue(time.monotonic()):
            sock.wait(wait_s)


def _batches(parts: Sequence[Parts]) -> Iterator[Sequence[Parts]]:
    """Split into runs for one call each: equal lengths, but for a shorter last one."""
    sizes = [len(header) + len(payload) for header, payload in parts]
    start = 0
    while start < len(parts):
        size, end = sizes[start], start + 1
        last = min(start + max(1, min(_MAX_SEGMENTS, _MAX_BATCH // size)), len(parts))
        while end < last and sizes[end] == size:
            end += 1
        if end < last and sizes[end] < size:
            end += 1
        yield parts[start:end]
        start = end


@contextlib.contextmanager
def _losses() -> Iterator[None]:
    """Ignore errors that mean a lost datagram; translate the others."""
    try:
        yield
    except OSError as error:
        if error.errno not in _LOSSES:
            raise connection_lost(error) from None
