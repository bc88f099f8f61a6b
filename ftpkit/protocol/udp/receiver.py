"""The receiving half of a row of blocks in datagrams: pieces in, acknowledgements out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from ftpkit.errors import ProtocolError
from ftpkit.protocol.digest import DIGEST_BYTES
from ftpkit.protocol.udp.packet import (
    MIN_PIECE,
    Ack,
    Allocate,
    BlockBuffers,
    Datagram,
    Header,
    Kind,
    PacketNumbers,
    ReceivedPackets,
    pack_ack,
    pack_header,
    plain_memory,
)

# How many datagrams, bytes and seconds may pass before they are acknowledged.
_ACK_DATAGRAMS: Final = 32
_ACK_BYTES: Final = 256 * 1024
_ACK_DELAY_S: Final = 0.005
_LONGEST_WAIT_S: Final = 1.0

Take = Callable[[int, memoryview, bytes], None]
"""Given the number of a block, its bytes and their raw digest, keeps what proves good."""


@dataclass(slots=True)
class _Arriving:
    body: memoryview
    left: int
    offsets: set[int]


class Receiver:
    """Puts blocks together and acknowledges what arrives.

    ``sizes`` tells the wanted blocks and their bytes; ``take`` is called with the
    number of a block, its bytes and its raw digest once all of it is here, and before
    that is acknowledged. What ``take`` raises passes. At most ``most_open`` blocks are
    kept in memory: pieces of further ones count as lost. ``allocate`` is where that
    memory comes from; it had better cost nothing before something is written to it,
    for a peer declares a block's length with the first piece.
    """

    def __init__(
        self,
        session: int,
        sizes: Mapping[int, int],
        take: Take,
        *,
        most_open: int,
        direction: int,
        allocate: Allocate = plain_memory,
    ) -> None:
        self.received = 0
        """Bytes of pieces that have arrived, each counted once."""
        self.moved = 0
        """Bytes of blocks that have arrived."""
        self._session, self._most_open = session, most_open
        self._numbers = PacketNumbers()
        self._sizes, self._take = dict(sizes), take
        self._kind = Kind.ACK | direction
        self._arrivals = ReceivedPackets()
        self._open: dict[int, _Arriving] = {}
        self._memory = BlockBuffers(allocate)
        self._untold = self._untold_bytes = 0
        self._tell_at = float("inf")

    @property
    def done(self) -> bool:
        """Whether every wanted block was taken."""
        return not self._sizes

    def next_event(self, now: float) -> float:
        """Return when there is something to tell, if nothing arrives before."""
        return min(now + _LONGEST_WAIT_S, self._tell_at)

    def receive(self, header: Header, payload: bytes | memoryview, now: float) -> None:
        """Take a piece in; ProtocolError if it is of no block that could be wanted."""
        if not self._arrivals.is_new(header.number):
            return
        if not self._place(header, payload):
            return
        self._arrivals.add(header.number)
        self._untold += 1
        self._untold_bytes += len(payload)
        if self._untold == 1:
            self._tell_at = now + _ACK_DELAY_S
        if self._untold >= _ACK_DATAGRAMS or self._untold_bytes >= _ACK_BYTES or self.done:
            self._tell_at = now

    def datagrams_to_send(self, now: float) -> list[Datagram]:
        """Return the acknowledgement that is due, if one is."""
        if now < self._tell_at:
            return []
        self._untold = self._untold_bytes = 0
        self._tell_at = float("inf")
        ack = Ack(self._arrivals.largest, self.received, self._arrivals.bits)
        number = self._numbers.next()
        return [Datagram(pack_header(self._session, number, self._kind), pack_ack(ack))]

    def _place(self, header: Header, payload: bytes | memoryview) -> bool:
        """Put a piece where it belongs; False says that there is no room for its block now."""
        block, offset = header.block, header.offset
        size = self._sizes.get(block)
        if size is None:
            return True  # it was taken already, or never wanted
        arriving = self._open.get(block)
        if arriving is None:
            if len(self._open) >= self._most_open:
                return False
            length = size + DIGEST_BYTES
            arriving = _Arriving(self._memory.borrow(length), length, set())
            self._open[block] = arriving
        end = offset + len(payload)
        length = len(arriving.body)
        if not offset < end <= length or (len(payload) < MIN_PIECE and end < length):
            raise ProtocolError("a piece is too short, or lies outside its block")
        if offset in arriving.offsets:
            return True
        arriving.body[offset:end] = payload
        arriving.offsets.add(offset)
        arriving.left -= len(payload)
        self.received += len(payload)
        self.moved += max(0, min(end, size) - offset)
        if arriving.left <= 0:
            self._finish(block, size, arriving)
        return True

    def _finish(self, block: int, size: int, arriving: _Arriving) -> None:
        del self._open[block], self._sizes[block]
        # What is damaged all the same is no longer wanted here: the conversation finds that out.
        self._take(block, arriving.body[:size], bytes(arriving.body[size:]))
        self._memory.release(arriving.body)
