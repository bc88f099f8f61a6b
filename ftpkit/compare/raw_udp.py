"""Raw UDP for comparison: every piece of a block is sent once, and losses are not repaired."""

from collections import deque
from collections.abc import Mapping
from typing import Final

from ftpkit.errors import ProtocolError
from ftpkit.protocol.digest import DIGEST_BYTES
from ftpkit.protocol.udp.congestion import CongestionControl
from ftpkit.protocol.udp.packet import (
    MAX_NUMBER,
    OVERHEAD,
    Datagram,
    Kind,
    PacketNumbers,
    pack_header,
    read_ack,
)
from ftpkit.protocol.udp.sender import Fill, SentBytes

# As in protocol/udp/sender.py, with which it is compared.
_BURST_S: Final = 0.001
_MAX_BURST: Final = 512 * 1024
_CREDIT_S: Final = 0.004
_LONGEST_WAIT_S: Final = 1.0

# A receiver acknowledges also pieces of unknown blocks, which requests an acknowledgement.
_NO_BLOCK: Final = MAX_NUMBER
_RETRY_S: Final = 0.05
_MAX_REQUESTS: Final = 40


class RawSender:
    """Sends blocks in pieces of ``piece`` bytes, once, at a fixed rate.

    It implements ``BlockSender``. At the end it requests an acknowledgement until it learns
    how many bytes have arrived.
    """

    def __init__(
        self,
        session: int,
        piece: int,
        sizes: Mapping[int, int],
        fill: Fill,
        congestion: CongestionControl,
        *,
        rtt_s: float,
        now: float,
    ) -> None:
        self.sent = SentBytes()
        """What was sent; ``lost`` is known once ``acked``."""
        self.acked = False
        """Whether the receiver has reported how much of everything arrived."""
        self._session, self._piece = session, piece
        self._pending, self._fill, self._congestion = deque(sizes.items()), fill, congestion
        self._numbers = PacketNumbers()
        self._body = memoryview(b"")
        self._block = self._offset = self._opened = 0
        self._received = 0
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
        return min(self._next_send_at, now + _LONGEST_WAIT_S)

    def datagrams_to_send(self, now: float) -> list[Datagram]:
        """Return the pieces to send now; at the end, a request for an acknowledgement."""
        if now < self._next_send_at:
            return []
        if self._offset >= len(self._body):
            if not self._pending:
                return self._request_ack(now)
            self._open_next()
        self._next_send_at = max(self._next_send_at, now - _CREDIT_S)
        allowance = min(
            (now - self._next_send_at + _BURST_S) * self._congestion.bytes_per_s, _MAX_BURST
        )
        datagrams = []
        while allowance > 0 and self._offset < len(self._body):
            payload = self._body[self._offset : self._offset + self._piece]
            size = len(payload) + OVERHEAD
            datagrams.append(self._datagram(self._block, self._offset, payload))
            self._offset += len(payload)
            self.sent.first += len(payload)
            self._next_send_at += size / self._congestion.bytes_per_s
            allowance -= size
        return datagrams

    def receive_ack(self, payload: bytes | memoryview, now: float) -> None:
        ack = read_ack(payload)
        if ack.largest > self._numbers.last or ack.received > self.sent.first:
            raise ProtocolError("an acknowledgement of a datagram that was never sent")
        self._received = max(self._received, ack.received)
        if ack.largest >= self._first_request:
            self.acked = True
            self.sent.lost = self.sent.first - self._received

    def _open_next(self) -> None:
        self._block, size = self._pending.popleft()
        # The previous block is encrypted by now, so its memory is free.
        if len(self._body) != size + DIGEST_BYTES:
            self._body = memoryview(bytearray(size + DIGEST_BYTES))
        self._fill(self._block, self._body)
        self._offset, self._opened = 0, self._opened + 1

    def _request_ack(self, now: float) -> list[Datagram]:
        self._next_send_at = now + self._retry_s
        self._requests += 1
        question = self._datagram(_NO_BLOCK, 0, b"?")
        self._first_request = min(self._first_request, self._numbers.last)
        return [question]

    def _datagram(self, block: int, offset: int, payload: bytes | memoryview) -> Datagram:
        header = pack_header(self._session, self._numbers.next(), Kind.DATA, block, offset)
        return Datagram(header, payload)
