"""Ways to bring the blocks of an upload over: TCP, and datagrams with and without repair."""

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
from ftpkit.protocol.udp.congestion import FixedRateControl
from ftpkit.protocol.udp.packet import MAX_BLOCKS, max_open_blocks
from ftpkit.protocol.udp.sender import Sender

_TIMEOUT_S: Final = 30.0
# A close that sends nothing more: what is buffered would use the line that the next one measures.
_RESET: Final = struct.pack("@ii", 1, 0)


class Traffic(NamedTuple):
    """Bytes that left, those of them that left again, and those that never arrived.

    Each is None where nobody tells.
    """

    sent: int | None
    resent: int | None
    lost: int | None


class Strategy(Protocol):
    """One way to move the blocks that an upload lacks."""

    @property
    def moved(self) -> int:
        """Bytes that have arrived, as far as that was acknowledged; safe from another thread."""

    def move(self, connection: Connection, upload: BlockUpload) -> float:
        """Move them, and return when the last byte had arrived; what breaks the link passes."""

    def traffic(self) -> Traffic:
        """Return what that took; the links must still be open."""


class Connections:
    """The conversations of one upload, opened one by one and broken off together."""

    def __init__(self, url: Url, congestion: str | None) -> None:
        self.stopped = False
        self._url, self._congestion = url, congestion
        self._connections: list[Connection] = []

    def open(self) -> Connection:
        """Open another conversation; ConnectionLostError if there is to be no more."""
        connection = Connection(lambda: self._url, timeout_s=_TIMEOUT_S, limiter=None)
        self._connections.append(connection)
        if self._congestion is not None:
            try:
                use_congestion(connection.sock, self._congestion)
            except OSError as error:
                raise ConnectionLostError(f"no {self._congestion} here: {error.strerror}") from None
        if self.stopped:
            raise ConnectionLostError("the transfer was stopped")
        return connection

    def stop(self) -> None:
        """Break off whatever is under way; safe from another thread."""
        self.stopped = True
        for connection in list(self._connections):
            connection.stream.shutdown()

    def close(self) -> None:
        """Close them; nothing that is still buffered leaves."""
        for connection in self._connections:
            if self.stopped and connection.sock.fileno() >= 0:
                connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            connection.close()


class TcpStrategy:
    """Blocks over one connection, or over several that share them out as they get on.

    ``join`` makes, for another link, a row of the same upload with a source of its own.
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
        """Bytes that the kernel says are acknowledged, headers included."""
        return sum(meter.now.acked - meter.then.acked for meter in list(self._meters))

    def move(self, connection: Connection, upload: BlockUpload) -> float:
        """Send what is missing."""
        if self._streams == 1:
            self._meters.append(_Meter(connection.sock))
        else:
            self._share(connection, upload)
            # To the first connection, what came over the others is news.
            upload.begin()
        upload.send()
        return time.monotonic()

    def traffic(self) -> Traffic:
        """Return what the kernel counted; what was lost it only guesses."""
        if not all(meter.known for meter in self._meters):
            return Traffic(None, None, None)
        spans = [(meter.now, meter.then) for meter in self._meters]
        return Traffic(
            sum(now.sent - then.sent for now, then in spans),
            sum(now.resent - then.resent for now, then in spans),
            None,
        )

    def _share(self, connection: Connection, upload: BlockUpload) -> None:
        # One step of a list's iterator is one step for threads, too: each block is taken once.
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
    """Blocks as datagrams, which are sent again until all have arrived."""

    def __init__(self) -> None:
        self.moved = 0
        self._senders: list[Sender] = []

    def move(self, connection: Connection, upload: BlockUpload) -> float:
        """Send what is missing as ``Client(udp=Udp.ONLY)`` does."""
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
        """Return what the sender counted, without what datagrams add to their pieces."""
        sent = [sender.sent for sender in self._senders]
        again = sum(each.resent for each in sent)
        return Traffic(
            sum(each.first for each in sent) + again, again, sum(each.lost for each in sent)
        )

    def _count(self, moved: int) -> None:
        self.moved += moved


class RawUdpStrategy:
    """Blocks as datagrams that are sent once, at ``bytes_per_s``, and never repaired."""

    def __init__(self, bytes_per_s: float) -> None:
        self.moved = 0
        self._rate = FixedRateControl(bytes_per_s)
        self._moved_at = time.monotonic()
        self._senders: list[RawSender] = []

    def move(self, connection: Connection, upload: BlockUpload) -> float:
        """Send each block once.

        A receiver keeps so many unfinished blocks and no more, and here most stay so:
        for those that follow there is a session of their own.
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
        """Return what left, and what of it did not arrive if the server could say that."""
        told = all(sender.acked for sender in self._senders)
        sent = [sender.sent for sender in self._senders]
        return Traffic(
            sum(each.first for each in sent), 0, sum(each.lost for each in sent) if told else None
        )

    def _start(self, sizes: Mapping[int, int], upload: BlockUpload) -> SessionStart:
        def begin(session: int, piece: int, rtt_s: float, now: float) -> RawSender:
            sender = RawSender(session, piece, sizes, upload.fill, self._rate, rtt_s=rtt_s, now=now)
            self._senders.append(sender)
            return sender

        return begin

    def _count(self, moved: int) -> None:
        self.moved += moved
        self._moved_at = time.monotonic()


class _Meter:
    """What the kernel counts on one connection from now on."""

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
