"""The UDP mode's datagrams to the byte, and who may send to whom (WIRE.md section 11).

Nothing here moves or seals a datagram: what is made and taken here is a
header, which travels readable but sealed, and a payload, which travels
encrypted. Times are seconds of one clock, given as arguments.
"""

from collections.abc import Callable
from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

from ftpkit.errors import ProtocolError

HEADER: Final = Struct("!IIIIB")
# What AES-GCM adds.
TAG: Final = 16
OVERHEAD: Final = HEADER.size + TAG
KEY: Final = 16
MAX_NUMBER: Final = 2**32 - 1
# The highest bit of the kind tells the direction: each kind has its numbers, in each direction.
FROM_SERVER: Final = 0x80

# So many blocks, and bytes of them, may be on their way at once: a receiver keeps them in memory.
_MAX_OPEN: Final = 16
_MAX_OPEN_BYTES: Final = 64 * 1024 * 1024
# So many blocks are wanted of one session: each takes memory before it comes.
MAX_BLOCKS: Final = 65_536
# Shorter pieces, but for the last of a block, are refused: each takes memory to remember.
MIN_PIECE: Final = 512
# How far back an acknowledgement tells, and a replay is noticed.
REMEMBERED: Final = 4096

_NONCE: Final = Struct("!B7xI")
_ACK: Final = Struct("!IQ")
_PROBE: Final = Struct("!QHI")
_REMEMBERED_BITS: Final = (1 << REMEMBERED) - 1

MIN_DATAGRAM: Final = OVERHEAD + _PROBE.size
# What IPv6 carries without asking (RFC 8200), with its headers of 48 bytes.
SAFE_DATAGRAM: Final = 1280 - 48


class Kind(IntEnum):
    """What a datagram is."""

    DATA = 0  # a piece of a block
    ACK = 1  # which datagrams have arrived
    PROBE = 2  # is this path open, and for how large a datagram?
    ECHO = 3  # it is, for one as large as this
    END = 4  # nobody listens here any more; the conversation says why


class Header(NamedTuple):
    """``number`` is never used twice for one kind in one direction of a session.

    ``block`` and ``offset`` say which bytes of which block a piece is; they are 0 in
    any other kind.
    """

    session: int
    number: int
    block: int
    offset: int
    kind: int


class Datagram(NamedTuple):
    """A header as it travels, and the payload that is to be sealed with it."""

    header: bytes
    payload: bytes | memoryview


class Ack(NamedTuple):
    """``largest`` of the numbers that arrived, ``received`` bytes of pieces in all.

    Bit ``k`` of ``bits`` says that number ``largest - k`` arrived.
    """

    largest: int
    received: int
    bits: int


class Probe(NamedTuple):
    """What client and server agree on; each is 0 as long as it is not known.

    ``proof`` is what the server last echoed to this address, ``piece`` how many bytes of a
    block a datagram carries, ``rtt_us`` the microseconds that the first echo took.
    """

    proof: int
    piece: int
    rtt_us: int


def pack_header(session: int, number: int, kind: int, block: int = 0, offset: int = 0) -> bytes:
    """Return a header as it travels."""
    return HEADER.pack(session, number, block, offset, kind)


def read_header(raw: bytes | memoryview) -> Header | None:
    """Return the header at the start of a datagram, or None if that is none of ours."""
    if len(raw) < OVERHEAD:
        return None
    header = Header._make(HEADER.unpack_from(raw))
    known = header.kind & ~FROM_SERVER <= Kind.END
    return header if known and header.number else None


Allocate = Callable[[int], memoryview]
"""Returns so many bytes of memory, with whatever is in them."""


def plain_memory(length: int) -> memoryview:
    """Return memory as Python gives it."""
    return memoryview(bytearray(length))


class BlockBuffers:
    """Memory for blocks, used again: fresh pages cost more than what is done with them."""

    def __init__(self, allocate: Allocate = plain_memory) -> None:
        self._spare: list[memoryview] = []
        self._allocate = allocate

    def borrow(self, length: int) -> memoryview:
        """Lend ``length`` bytes, with whatever is in them."""
        for index, memory in enumerate(self._spare):
            if len(memory) == length:
                return self._spare.pop(index)
        return self._allocate(length)

    def release(self, memory: memoryview) -> None:
        """Keep what was lent for the next."""
        self._spare.append(memory)


def max_open_blocks(block: int) -> int:
    """Return how many blocks of ``block`` bytes may be on their way at once."""
    return max(1, min(_MAX_OPEN, _MAX_OPEN_BYTES // block))


def nonce_of(header: bytes | memoryview) -> bytes:
    """Return the 12 bytes that never repeat under one key: direction, kind and number."""
    _, number, _, _, kind = HEADER.unpack_from(header)
    return _NONCE.pack(kind, number)


def pack_ack(ack: Ack) -> bytes:
    """Return the payload of an acknowledgement."""
    length = (ack.bits.bit_length() + 7) // 8
    return _ACK.pack(ack.largest, ack.received) + ack.bits.to_bytes(length, "big")


def read_ack(payload: bytes | memoryview) -> Ack:
    """Return what an acknowledgement says; ProtocolError if it is none."""
    if not _ACK.size <= len(payload) <= _ACK.size + REMEMBERED // 8:
        raise ProtocolError("an acknowledgement has another length")
    largest, received = _ACK.unpack_from(payload)
    return Ack(largest, received, int.from_bytes(payload[_ACK.size :], "big"))


def pack_probe(probe: Probe, size: int) -> bytes:
    """Return a payload that makes the whole datagram ``size`` bytes long."""
    return _PROBE.pack(*probe).ljust(size - OVERHEAD, b"\0")


def read_probe(payload: bytes | memoryview) -> Probe:
    """Return what a probe says; ProtocolError if it is none."""
    if len(payload) < _PROBE.size:
        raise ProtocolError("a probe is too short")
    return Probe._make(_PROBE.unpack_from(payload))


class ReceivedPackets:
    """Which numbers of one direction have arrived: each counts once, and not for ever."""

    def __init__(self) -> None:
        self.largest = 0
        self.bits = 0

    def is_new(self, number: int) -> bool:
        """Whether a datagram of this number may still count."""
        age = self.largest - number
        return age < 0 or (age < REMEMBERED and not self.bits >> age & 1)

    def add(self, number: int) -> None:
        """Note a number that ``is_new``."""
        self.merge(number, 1)

    def since(self, largest: int) -> int:
        """Return the bits as they are when ``largest`` is the number of the lowest one."""
        ahead = largest - self.largest
        if abs(ahead) >= REMEMBERED:
            # Numbers are the peer's to choose: a shift by all of 32 bits would take 512 MiB.
            return 0
        return self.bits << ahead & _REMEMBERED_BITS if ahead > 0 else self.bits >> -ahead

    def merge(self, largest: int, bits: int) -> None:
        """Note all of ``bits``, the lowest of which is number ``largest``."""
        if largest >= self.largest:
            self.bits, self.largest = self.since(largest) | bits, largest
        elif self.largest - largest < REMEMBERED:
            self.bits |= bits << (self.largest - largest) & _REMEMBERED_BITS


class PacketNumbers:
    """The numbers of one kind in one direction of a session, from 1 on."""

    def __init__(self) -> None:
        self.last = 0

    def next(self) -> int:
        """Return a number that was never used; ProtocolError when there is none left."""
        if self.last == MAX_NUMBER:
            raise ProtocolError("the session's numbers are used up")
        self.last += 1
        return self.last
