"""Strategies to transfer the blocks of an upload: TCP, and UDP with and without repair."""

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

from ftpkit.client.connection import Connection
from ftpkit.client.transfer.blocks import BLOCK
from ftpkit.client.transfer.udp_session import run_session, upload_starter
from ftpkit.client.transfer.upload import BlockUpload
from ftpkit.compare.connections import Connections
from ftpkit.compare.raw_udp import RawSender
from ftpkit.compare.tcp_info import TcpInfo, tcp_info
from ftpkit.protocol.messages import Push
from ftpkit.protocol.udp.packet import MAX_BLOCKS, max_open_blocks
from ftpkit.protocol.udp.sender import Sender
from ftpkit.protocol.udp.session import StartSession


class Traffic(NamedTuple):
    """Bytes sent, sent again and lost; None where unknown."""

    sent_bytes: int | None = None
    resent_bytes: int | None = None
    lost_bytes: int | None = None


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
        """Bytes that the kernel counts as acknowledged, headers included; thread-safe."""
        return sum(meter.now.acked - meter.then.acked for meter in list(self._meters))

    def move(self, connection: Connection, upload: BlockUpload) -> float:
        """Transfer the missing blocks; return when the last byte arrived."""
        if self._streams == 1:
            self._meters.append(_Meter(connection.sock))
        else:
            self._share(connection, upload)
            # Learn which blocks the server got over the other connections.
            upload.begin()
        upload.send()
        return time.monotonic()

    def traffic(self) -> Traffic:
        """Return the kernel's counts, before the connections are closed; none of lost bytes."""
        if not all(meter.known for meter in self._meters):
            return Traffic()
        spans = [(meter.now, meter.then) for meter in self._meters]
        return Traffic(
            sum(now.sent - then.sent for now, then in spans),
            sum(now.resent - then.resent for now, then in spans),
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
    """Blocks over UDP: repaired as ``put --udp`` does, or sent once at ``raw_bytes_per_s``."""

    def __init__(self, raw_bytes_per_s: float | None) -> None:
        self.moved = 0
        self._raw_bytes_per_s = raw_bytes_per_s
        self._moved_at = time.monotonic()
        self._senders: list[Sender | RawSender] = []

    def move(self, connection: Connection, upload: BlockUpload) -> float:
        """Transfer the missing blocks; return when the last byte arrived."""
        repaired = self._raw_bytes_per_s is None
        # A receiver holds a limited number of incomplete blocks; unrepaired, most remain so.
        for sizes in _batches(upload.missing(), MAX_BLOCKS if repaired else max_open_blocks(BLOCK)):
            before = self.moved
            start = self._start(sizes, upload)
            run_session(connection, Push(upload=upload.upload), start, self._count, None)
            connection.drain()
            if repaired:
                upload.count_arrived(sizes, self.moved - before)
        if not repaired:
            return self._moved_at
        upload.send()
        return time.monotonic()

    def traffic(self) -> Traffic:
        """Return the bytes of pieces, without the overhead of datagrams."""
        sent = [sender.sent for sender in self._senders]
        resent = sum(each.resent for each in sent)
        known = all(sender.acked for sender in self._senders if isinstance(sender, RawSender))
        lost = sum(each.lost for each in sent) if known else None
        return Traffic(sum(each.first for each in sent) + resent, resent, lost)

    def _start(self, sizes: Mapping[int, int], upload: BlockUpload) -> StartSession:
        bytes_per_s, repaired = self._raw_bytes_per_s, upload_starter(sizes, upload.fill, None)

        def start(session: int, piece: int, rtt_s: float, now: float) -> Sender | RawSender:
            self._senders.append(
                repaired(session, piece, rtt_s, now)
                if bytes_per_s is None
                else RawSender(session, piece, sizes, upload.fill, bytes_per_s, rtt_s, now)
            )
            return self._senders[-1]

        return start

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
