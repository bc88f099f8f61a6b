"""Datagrams over a socket: many in one call where the system can, and the time between them."""

import contextlib
import errno
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any, Final

from ftpkit.errors import ConnectionLostError
from ftpkit.net.cipher import DatagramCipher
from ftpkit.osapi import sockets as os_sockets
from ftpkit.protocol.udp.packet import SAFE_DATAGRAM
from ftpkit.protocol.udp.session import DatagramSession

# What a path of Ethernet carries, and IP's and UDP's headers on top.
_ETHERNET: Final = 1500
_MAX_IP: Final = 65535
_HEADERS: Final = {socket.AF_INET: 28, socket.AF_INET6: 48}
_BUFFER: Final = 64 * 1024
# Segments and bytes that one call may send.
_MAX_SEGMENTS: Final = 64
_MAX_BATCH: Final = 65_000
_QUEUE_BYTES: Final = 4 * 1024 * 1024
# So many are taken in before it is looked whether something is to leave.
_MOST_AT_ONCE: Final = 64
_MOST_HANDED: Final = 32

Parts = tuple[bytes, bytes | memoryview]

# What a network does to datagrams all the time: they are lost, and that is all.
_LOSSES: Final = {
    errno.EMSGSIZE, errno.ENOBUFS, errno.EAGAIN, errno.ECONNREFUSED, errno.EHOSTUNREACH,
    errno.ENETUNREACH, errno.EPERM, errno.EHOSTDOWN, errno.ENETDOWN,
}  # fmt: skip


class DatagramSocket:
    """A UDP socket, connected or not; what it cannot send is lost, as it could be on the way.

    Datagrams of one length leave many in a call where the system can cut them apart
    (UDP_SEGMENT), and arrive many in a call where it joins them (UDP_GRO). A ``shared``
    one is another process' as well, which goes on with it.
    """

    def __init__(self, sock: socket.socket, *, shared: bool = False) -> None:
        self._sock, self._shared = sock, shared
        self._segments = os_sockets.HAS_UDP_SEGMENTS
        self._buffer = memoryview(bytearray(_BUFFER))
        self._injected: deque[tuple[bytes, Any]] = deque(maxlen=_MOST_HANDED)
        sock.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, option, _QUEUE_BYTES)
        os_sockets.disable_fragmentation(sock)
        os_sockets.join_segments(sock)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._sock.fileno()

    def connect(self, address: tuple[Any, ...]) -> None:
        """Send to, and hear of, one address alone; safe to call again."""
        self._sock.connect(address)

    def sizes(self) -> list[int]:
        """Return which sizes of datagrams a connected socket's path may carry, largest first."""
        headers = _HEADERS[self._sock.family]
        mtu = min(os_sockets.path_mtu(self._sock) or _ETHERNET, _MAX_IP)
        return sorted({mtu - headers, min(mtu, _ETHERNET) - headers, SAFE_DATAGRAM}, reverse=True)

    def send(self, parts: Sequence[Parts]) -> None:
        """Send each pair of parts as one datagram."""
        if len(parts) == 1 or not self._segments:
            for pair in parts:
                self._send(pair)
            return
        for batch in _batches(parts):
            self._send_batch(batch)

    def send_to(
        self, parts: Parts, address: tuple[Any, ...], local: tuple[Any, ...] | None = None
    ) -> None:
        """Send one datagram to an address, from a socket that is not connected.

        It leaves from the address ``local`` of this machine where the system can do
        so: by itself it picks one that whoever asked at another has not asked.
        """
        source = os_sockets.from_address(self._sock.family, local) if local else []
        with _losses():
            self._sock.sendmsg(parts, source, 0, address)

    def inject(self, raw: bytes, address: Any) -> None:
        """Let this arrive, too; safe from another thread."""
        self._injected.append((raw, address))

    def wait(self, seconds: float) -> bool:
        """Wait until something has arrived; False says that the time has passed."""
        return bool(self._injected) or os_sockets.wait_readable(self._sock, seconds)

    def receive(self, most: int | None = None) -> Iterator[tuple[memoryview, Any]]:
        """Yield what has arrived, and from where; each is gone when the next is asked for.

        Behind ``most`` bytes, what has arrived stays for the next time.
        """
        taken = 0
        while self._injected:
            handed, address = self._injected.popleft()
            yield memoryview(handed), address
        for _ in range(_MOST_AT_ONCE):
            if most is not None and taken >= most:
                return
            try:
                count, ancillary, _, address = self._sock.recvmsg_into(
                    [self._buffer], os_sockets.SEGMENT_ANCILLARY
                )
            except OSError as error:
                if error.errno == errno.ECONNREFUSED:
                    continue  # nobody listens there now; that may change
                if error.errno in _LOSSES:
                    return
                raise ConnectionLostError(f"connection lost: {error.strerror or error}") from None
            taken += count
            segment = os_sockets.segment_size(ancillary) or max(count, 1)
            for start in range(0, count, segment):
                yield self._buffer[start : min(start + segment, count)], address

    def shutdown(self) -> None:
        """Wake up who waits, unless nothing would arrive for others then; safe from any thread."""
        if not self._shared:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket; safe to call twice."""
        self._sock.close()

    def _send(self, pair: Parts) -> None:
        with _losses():
            self._sock.sendmsg(pair)

    def _send_batch(self, batch: Sequence[Parts]) -> None:
        if len(batch) > 1:
            size = len(batch[0][0]) + len(batch[0][1])
            try:
                self._sock.sendmsg(
                    list(chain.from_iterable(batch)), os_sockets.segment_ancillary(size)
                )
                return
            except OSError as error:
                if error.errno in _LOSSES:
                    return
                # This device cannot; it is not worth another try.
                self._segments = False
        for pair in batch:
            self._send(pair)


def drive_session(
    sock: DatagramSocket,
    cipher: DatagramCipher,
    session: DatagramSession,
    *,
    while_: Callable[[float], bool],
    quantum: Callable[[], AbstractContextManager[int | None]] = contextlib.nullcontext,
) -> None:
    """Let ``session`` talk over ``sock`` while ``while_``, asked with the time, says so.

    What has arrived is taken in, and what is due leaves, in a ``acquire``, which gives how many
    bytes may be taken in: where it is None, all. ProtocolError says
    that a peer who holds the key sent nonsense; ConnectionLostError that the socket
    is of no more use.
    """
    while while_(time.monotonic()):
        with quantum() as most:
            now = time.monotonic()
            for raw, _ in sock.receive(most):
                opened = cipher.decrypt(raw)
                if opened is not None:
                    session.receive(*opened, now)
            datagrams = session.datagrams_to_send(now)
            if datagrams:
                sock.send(cipher.encrypt(*datagrams))
        wait_s = session.next_event(now) - time.monotonic()
        # Whoever has just heard the last word waits for nothing more.
        if wait_s > 0 and while_(time.monotonic()):
            sock.wait(wait_s)


def _batches(parts: Sequence[Parts]) -> Iterator[Sequence[Parts]]:
    """Cut a row of datagrams where one call ends: all but its last are of one length."""
    start = 0
    while start < len(parts):
        size = len(parts[start][0]) + len(parts[start][1])
        most = start + max(1, min(_MAX_SEGMENTS, _MAX_BATCH // size))
        session = start + 1
        while session < min(most, len(parts)):
            length = len(parts[session][0]) + len(parts[session][1])
            if length > size:
                break
            session += 1
            if length < size:
                break
        yield parts[start:session]
        start = session


@contextlib.contextmanager
def _losses() -> Iterator[None]:
    """Take for a loss what networks do to datagrams all the time."""
    try:
        yield
    except OSError as error:
        if error.errno not in _LOSSES:
            raise ConnectionLostError(f"connection lost: {error.strerror or error}") from None
