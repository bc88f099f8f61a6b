"""Strategies to transfer the blocks of an upload: TCP, and UDP with and without repair."""

import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Final, NamedTuple, Protocol

from ftpkit.client.connection import Connection
from ftpkit.client.transfer.blocks import BLOCK
from ftpkit.client.transfer.udp_session import SessionStart, run_session, upload_starter
from ftpkit.client.transfer.upload import BlockUpload
from ftpkit.compare.raw_udp import RawSender
from ftpkit.compare.tcp_info import TcpInfo, tcp_info, use_congestion
from ftpkit.errors import ConnectionLostError
from ftpkit.net.address import Url
from ftpkit.protocol.messages import Push
from ftpkit.protocol.udp.packet import MAX_BLOCKS, max_open_blocks
from ftpkit.protocol.udp.sender import Sender

_TIMEOUT_S: Final = 30.0
# SO_LINGER of 0: a close discards buffered data, which would disturb the next measurement.
_RESET: Final = struct.pack("@ii", 1, 0)


class Traffic(NamedTuple):
    """Bytes sent, sent again and lost; None where unknown."""

    sent: int | None
    resent: int | None
    lost: int | None


class Strategy(Protocol):
    """Transfers the missing blocks of an upload."""

    @property
    def moved(self) -> int:
        """Bytes acknowledged; safe from another thread."""

    def move(self, connection: Connection, upload: BlockUpload) -> float:
        """Transfer them; return when the last byte arrived. Connection errors propagate."""

    def traffic(self) -> Traffic:
        """Return what was sent; the connections must still be open."""


class Connections:
    """The connections of one upload."""

    def __init__(self, url: Url, congestion: str | None) -> None:
        self.stopped = False
        self._url, self._congestion = url, congestion
        self._connections: list[Connection] = []

    def open(self) -> Connection:
        """Open another connection; ConnectionLostError after ``stop``."""
        connection = Connection(lambda: self._url, timeout_s=_TIMEOUT_S, limiter=None)
        self._connections.append(connection)
        if self._congestion is not None:
            try:
                use_congestion(connection.sock, self._congestion)
            except OSError as error:
                raise ConnectionLostError(
                    f"cannot use congestion control {self._congestion}: {error.strerror}"
                ) from None
        if self.stopped:
            raise ConnectionLostError("the transfer was stopped")
        return connection

    def stop(self) -> None:
        """Interrupt the upload; safe from another thread."""
        self.stopped = True
        for connection in list(self._connections):
            connection.stream.shutdown()

    def close(self) -> None:
        """Close the connections; after ``stop``, without sending buffered data."""
        for connection in self._connections:
            if self.stopped and connection.sock.fileno() >= 0:
                connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            connection.close()


class TcpStrategy:
    """Blocks over one connection, or several that take them from one queue.

    ``join`` makes another stream of the same upload, with its own source, for a connection.
    """

    def __init__(
        self,
        connections: Connections,
        streams: int,
        join: Callable[[Connection, BlockUpload], BlockUpload],
    ) -> None:
        self._connections, self._streams, self._join = connections, streams, join
        self._meters: list[_Meter] = []

    @property
    def moved(self) -> int:
        """Bytes that the kernel counts as acknowledged, headers included."""
        return sum(meter.now.acked - meter.then.acked for meter in list(self._meters))

    def move(self, connection: Connection, upload: BlockUpload) -> float:
        if self._streams == 1:
            self._meters.append(_Meter(connection.sock))
        else:
            self._share(connection, upload)
            # Learn which blocks the server got over the other connections.
            upload.begin()
        upload.send()
        return time.monotonic()

    def traffic(self) -> Traffic:
        """Return the kernel's counts; it has none of lost bytes."""
        if not all(meter.known for meter in self._meters):
            return Traffic(None, None, None)
        spans = [(meter.now, meter.then) for meter in self._meters]
        return Traffic(
            sum(now.sent - then.sent for now, then in spans),
            sum(now.resent - then.resent for now, then in spans),
            None,
        )

    def _share(self, connection: Connection, upload: BlockUpload) -> None:
        # Advancing a list iterator is atomic, so each block is taken once.
        offsets = iter([number * BLOCK for number in upload.missing()])

        def work(connection: Connection, upload: BlockUpload) -> None:
            self._meters.append(_Meter(connection.sock))
            upload.write(offsets)

        def join() -> None:
            other = self._connections.open()
            work(other, self._join(other, upload))

        with ThreadPoolExecutor(self._streams) as pool:
            streams = [pool.submit(work, connection, upload)]
            streams += [pool.submit(join) for _ in range(self._streams - 1)]
            for stream in streams:
                stream.result()


class UdpStrategy:
    """Blocks over UDP, repaired as ``put --udp`` does."""

    def __init__(self) -> None:
        self.moved = 0
        self._senders: list[Sender] = []

    def move(self, connection: Connection, upload: BlockUpload) -> float:
        sizes = dict(islice(upload.missing().items(), MAX_BLOCKS))
        start = upload_starter(sizes, upload.fill, None)

        def begin(session: int, piece: int, rtt_s: float, now: float) -> Sender:
            self._senders.append(start(session, piece, rtt_s, now))
            return self._senders[-1]

        run_session(connection, Push(upload=upload.upload), begin, self._count, None)
        connection.drain()
        upload.count_arrived(sizes, self.moved)
        upload.send()
        return time.monotonic()

    def traffic(self) -> Traffic:
        """Return the bytes of pieces, without the overhead of datagrams."""
        sent = [sender.sent for sender in self._senders]
        again = sum(each.resent for each in sent)
        return Traffic(
            sum(each.first for each in sent) + again, again, sum(each.lost for each in sent)
        )

    def _count(self, moved: int) -> None:
        self.moved += moved


class RawUdpStrategy:
    """Blocks over UDP, sent once at ``bytes_per_s`` and never repaired."""

    def __init__(self, bytes_per_s: float) -> None:
        self.moved = 0
        self._bytes_per_s = bytes_per_s
        self._moved_at = time.monotonic()
        self._senders: list[RawSender] = []

    def move(self, connection: Connection, upload: BlockUpload) -> float:
        """Send each block once.

        A receiver holds a limited number of incomplete blocks, and here most remain
        incomplete, so each batch of blocks gets a session of its own.
        """
        for sizes in _batches(upload.missing(), max_open_blocks(BLOCK)):
            run_session(
                connection,
                Push(upload=upload.upload),
                self._start(sizes, upload),
                self._count,
                None,
            )
            connection.drain()
        return self._moved_at

    def traffic(self) -> Traffic:
        """Return what was sent, and lost if the server has reported it."""
        told = all(sender.acked for sender in self._senders)
        sent = [sender.sent for sender in self._senders]
        return Traffic(
            sum(each.first for each in sent), 0, sum(each.lost for each in sent) if told else None
        )

    def _start(self, sizes: Mapping[int, int], upload: BlockUpload) -> SessionStart:
        def begin(session: int, piece: int, rtt_s: float, now: float) -> RawSender:
            sender = RawSender(
                session, piece, sizes, upload.fill, self._bytes_per_s, rtt_s=rtt_s, now=now
            )
            self._senders.append(sender)
            return sender

        return begin

    def _count(self, moved: int) -> None:
        self.moved += moved
        self._moved_at = time.monotonic()


class _Meter:
    """The kernel's counts of a connection from now on."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        then = tcp_info(sock)
        self.known = then is not None
        self.then = then or TcpInfo(0, 0, 0)

    @property
    def now(self) -> TcpInfo:
        return tcp_info(self._sock) or self.then


def _batches(sizes: Mapping[int, int], most: int) -> Iterator[dict[int, int]]:
    rest = iter(sizes.items())
    while batch := dict(islice(rest, most)):
        yield batch
