"""The receiver of a UDP session: pieces of blocks in, acknowledgements out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from ftpkit.errors import ProtocolError
from ftpkit.protocol.digest import DIGEST_BYTES
from ftpkit.protocol.udp.packet import (
    FROM_SERVER,
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
)

# An acknowledgement is due after this many datagrams, bytes or seconds.
_ACK_DATAGRAMS: Final = 32
_ACK_BYTES: Final = 256 * 1024
_ACK_DELAY_S: Final = 0.005
_MAX_WAIT_S: Final = 1.0

OnBlock = Callable[[int, memoryview, bytes], None]
"""Called with a block's number, bytes and raw digest; verifies and stores them."""


@dataclass(slots=True)
class _PartialBlock:
    memory: memoryview
    missing: int
    offsets: set[int]


class Receiver:
    """Assembles blocks and acknowledges their pieces.

    ``sizes`` maps the numbers of the wanted blocks to their bytes. ``on_block`` is called
    when a block is complete, before its last piece is acknowledged; its exceptions
    propagate. At most ``max_open`` incomplete blocks are held; pieces of others are dropped.
    ``allocate`` returns the memory for a block, and should reserve it lazily: one piece
    from the peer allocates a whole block. ``direction`` is FROM_SERVER on the server, else 0.
    Times are seconds.
    """

    def __init__(
        self,
        session: int,
        sizes: Mapping[int, int],
        on_block: OnBlock,
        *,
        max_open: int,
        direction: int,
        allocate: Allocate | None = None,
    ) -> None:
        self.received = 0
        """Bytes of pieces received, each counted once."""
        self.moved = 0
        """Bytes of blocks received."""
        self._numbers, self._max_open = PacketNumbers(session, Kind.ACK | direction), max_open
        self._sizes, self._on_block = dict(sizes), on_block
        self._packets = ReceivedPackets()
        self._open: dict[int, _PartialBlock] = {}
        self._memory = BlockBuffers(allocate)
        self._unacked = self._unacked_bytes = 0
        self._ack_at = float("inf")

    @property
    def done(self) -> bool:
        """Whether every wanted block is complete."""
        return not self._sizes

    def next_event(self, now: float) -> float:
        return min(now + _MAX_WAIT_S, self._ack_at)

    def receive(self, header: Header, payload: bytes | memoryview, now: float) -> None:
        """Process a piece; ProtocolError if it is too short or outside its block."""
        if header.kind & ~FROM_SERVER != Kind.DATA or not self._packets.is_new(header.number):
            return
        if not self._place(header, payload):
            return
        self._packets.add(header.number)
        self._unacked += 1
        self._unacked_bytes += len(payload)
        if self._unacked == 1:
            self._ack_at = now + _ACK_DELAY_S
        if self._unacked >= _ACK_DATAGRAMS or self._unacked_bytes >= _ACK_BYTES or self.done:
            self._ack_at = now

    def datagrams_to_send(self, now: float) -> list[Datagram]:
        """Return the acknowledgement that is due, if one is."""
        if now < self._ack_at:
            return []
        self._unacked = self._unacked_bytes = 0
        self._ack_at = float("inf")
        ack = Ack(self._packets.largest, self.received, self._packets.bits)
        return [Datagram(self._numbers.next_header(), pack_ack(ack))]

    def _place(self, header: Header, payload: bytes | memoryview) -> bool:
        """Store a piece; return False if too many other blocks are open."""
        block, offset = header.block, header.offset
        size = self._sizes.get(block)
        if size is None:
            return True  # the block is complete already, or not wanted
        partial = self._open.get(block)
        if partial is None:
            if len(self._open) >= self._max_open:
                return False
            length = size + DIGEST_BYTES
            partial = _PartialBlock(self._memory.borrow(length), length, set())
            self._open[block] = partial
        end = offset + len(payload)
        length = len(partial.memory)
        if not offset < end <= length or (len(payload) < MIN_PIECE and end < length):
            raise ProtocolError("a piece is too short, or lies outside its block")
        if offset in partial.offsets:
            return True
        partial.memory[offset:end] = payload
        partial.offsets.add(offset)
        partial.missing -= len(payload)
        self.received += len(payload)
        self.moved += max(0, min(end, size) - offset)
        if partial.missing <= 0:
            self._finish(block, size, partial)
        return True

    def _finish(self, block: int, size: int, partial: _PartialBlock) -> None:
        del self._open[block], self._sizes[block]
        # A corrupt block is not requested again here: ``begin`` reports it as missing.
        self._on_block(block, partial.memory[:size], bytes(partial.memory[size:]))
        self._memory.release(partial.memory)
