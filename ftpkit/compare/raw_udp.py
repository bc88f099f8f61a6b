"""Raw UDP for comparison: every piece of a block is sent once, and losses are not repaired."""

from collections.abc import Iterator, Mapping
from typing import Final

from ftpkit.errors import ProtocolError
from ftpkit.protocol.digest import DIGEST_BYTES
from ftpkit.protocol.udp.packet import (
    FROM_SERVER,
    MAX_NUMBER,
    OVERHEAD,
    Datagram,
    Header,
    Kind,
    PacketNumbers,
    read_ack,
)
from ftpkit.protocol.udp.sender import (
    BURST_S,
    CREDIT_S,
    MAX_BURST_BYTES,
    MAX_WAIT_S,
    Fill,
    SentBytes,
)

# A receiver acknowledges also pieces of unknown blocks, which requests an acknowledgement.
_NO_BLOCK: Final = MAX_NUMBER
_RETRY_S: Final = 0.05
_MAX_REQUESTS: Final = 40


class RawSender:
    """Sends blocks in pieces of ``piece`` bytes, once, at a fixed rate.

    At the end it requests an acknowledgement until it learns how many bytes have arrived.
    """

    def __init__(
        self,
        session: int,
        piece: int,
        sizes: Mapping[int, int],
        fill: Fill,
        bytes_per_s: float,
        rtt_s: float,
        now: float,
    ) -> None:
        self.sent = SentBytes()
        """What was sent; ``lost`` is known once ``acked``."""
        self.acked = False
        """Whether the receiver has reported how much of everything arrived."""
        self._piece, self._fill, self._bytes_per_s = piece, fill, bytes_per_s
        self._pieces = self._open(sizes)
        self._numbers = PacketNumbers(session, Kind.DATA)
        self._opened = self._received = 0
        self._next_send_at, self._retry_s = now, max(rtt_s, _RETRY_S)
        self._first_request = MAX_NUMBER
        self._requests = 0

    @property
    def moved(self) -> int:
        """Bytes of blocks reported as received."""
        return max(0, self._received - self._opened * DIGEST_BYTES)

    @property
    def done(self) -> bool:
        """Whether the receiver has reported, or does not answer."""
        return self.acked or self._requests > _MAX_REQUESTS

    def next_event(self, now: float) -> float:
        return min(self._next_send_at, now + MAX_WAIT_S)

    def datagrams_to_send(self, now: float) -> list[Datagram]:
        if now < self._next_send_at:
            return []
        self._next_send_at = max(self._next_send_at, now - CREDIT_S)
        paced = (now - self._next_send_at + BURST_S) * self._bytes_per_s
        allowance, datagrams = min(paced, MAX_BURST_BYTES), []
        while allowance > 0 and (piece := next(self._pieces, None)):
            block, offset, payload = piece
            datagrams.append(Datagram(self._numbers.next_header(block, offset), payload))
            size = len(payload) + OVERHEAD
            self.sent.first += len(payload)
            self._next_send_at += size / self._bytes_per_s
            allowance -= size
        return datagrams or self._request_ack(now)

    def receive(self, header: Header, payload: bytes | memoryview, now: float) -> None:
        if header.kind & ~FROM_SERVER != Kind.ACK:
            return
        ack = read_ack(payload)
        if ack.largest > self._numbers.last or ack.received > self.sent.first:
            raise ProtocolError("an acknowledgement of a datagram that was never sent")
        self._received = max(self._received, ack.received)
        if ack.largest >= self._first_request:
            self.acked = True
            self.sent.lost = self.sent.first - self._received

    def _open(self, sizes: Mapping[int, int]) -> Iterator[tuple[int, int, memoryview]]:
        for block, size in sizes.items():
            body = memoryview(bytearray(size + DIGEST_BYTES))
            self._fill(block, body)
            self._opened += 1
            for offset in range(0, len(body), self._piece):
                yield block, offset, body[offset : offset + self._piece]

    def _request_ack(self, now: float) -> list[Datagram]:
        self._next_send_at = now + self._retry_s
        self._requests += 1
        question = Datagram(self._numbers.next_header(_NO_BLOCK), b"?")
        self._first_request = min(self._first_request, self._numbers.last)
        return [question]
