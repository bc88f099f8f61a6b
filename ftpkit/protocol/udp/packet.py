"""The layout of the UDP mode's datagrams, and packet numbers (WIRE.md section 11).

A datagram here is its header, which is authenticated, and its payload before encryption.
"""

from collections.abc import Callable
from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

from ftpkit.errors import ProtocolError

HEADER: Final = Struct("!IIIIB")
# In bytes: what AES-128-GCM appends, and its key.
TAG: Final = 16
KEY: Final = 16
OVERHEAD: Final = HEADER.size + TAG
MAX_NUMBER: Final = 2**32 - 1
# The highest bit of the kind is the direction; each kind in each direction has its own numbers.
FROM_SERVER: Final = 0x80

# Limits on the incomplete blocks of a session, which a receiver holds in memory.
_MAX_OPEN: Final = 16
_MAX_OPEN_BYTES: Final = 64 * 1024 * 1024
# The most blocks of one session: each takes some memory from the start.
MAX_BLOCKS: Final = 65_536
# The least bytes of a piece except a block's last: a receiver remembers each piece.
MIN_PIECE: Final = 512
# How many of the newest numbers an acknowledgement and the replay check cover.
REMEMBERED: Final = 4096

_NONCE: Final = Struct("!B7xI")
_ACK: Final = Struct("!IQ")
_PROBE: Final = Struct("!QHI")
_REMEMBERED_BITS: Final = (1 << REMEMBERED) - 1

MIN_DATAGRAM: Final = OVERHEAD + _PROBE.size
# IPv6's minimum MTU (RFC 8200, section 5) without the IPv6 and UDP headers.
SAFE_DATAGRAM: Final = 1280 - 48


class Kind(IntEnum):
    DATA = 0  # a piece of a block
    ACK = 1  # which datagrams have arrived
    PROBE = 2  # from the client: does a datagram of this size pass?
    ECHO = 3  # from the server: the reply to a probe, of the same size
    END = 4  # from the server: the session is over


class Header(NamedTuple):
    """``number`` is unique per kind and direction of a session, from 1 on.

    ``block`` and ``offset`` locate a piece (DATA); other kinds have 0.
    """

    session: int
    number: int
    block: int
    offset: int
    kind: int


class Datagram(NamedTuple):
    """A packed header, and the payload to encrypt with it."""

    header: bytes
    payload: bytes | memoryview


class Ack(NamedTuple):
    """The ``largest`` number received, and the bytes of all pieces ``received``.

    Bit ``k`` of ``bits`` stands for number ``largest - k``.
    """

    largest: int
    received: int
    bits: int


class Probe(NamedTuple):
    """The payload of PROBE and ECHO; each field is 0 while it is unknown.

    ``proof`` is the server's last to this address, ``piece`` the bytes of a block in one
    datagram, ``rtt_us`` the round-trip time in microseconds.
    """

    proof: int
    piece: int
    rtt_us: int


def pack_header(session: int, number: int, kind: int, block: int = 0, offset: int = 0) -> bytes:
    return HEADER.pack(session, number, block, offset, kind)


def read_header(raw: bytes | memoryview) -> Header | None:
    """Return the header of a datagram, or None if it is not one of this protocol."""
    if len(raw) < OVERHEAD:
        return None
    header = Header._make(HEADER.unpack_from(raw))
    known = header.kind & ~FROM_SERVER <= Kind.END
    return header if known and header.number else None


Allocate = Callable[[int], memoryview]
"""Returns this many bytes of memory, with arbitrary content."""


class BlockBuffers:
    """Memory for blocks, reused because page faults on new memory are expensive."""

    def __init__(self, allocate: Allocate | None = None) -> None:
        self._spare: list[memoryview] = []
        self._allocate = allocate or (lambda length: memoryview(bytearray(length)))

    def borrow(self, length: int) -> memoryview:
        """Return ``length`` bytes of memory, with arbitrary content."""
        for index, memory in enumerate(self._spare):
            if len(memory) == length:
                return self._spare.pop(index)
        return self._allocate(length)

    def release(self, memory: memoryview) -> None:
        """Take back memory that was borrowed."""
        self._spare.append(memory)


def max_open_blocks(block: int) -> int:
    """Return how many blocks of ``block`` bytes may be incomplete at once."""
    return max(1, min(_MAX_OPEN, _MAX_OPEN_BYTES // block))


def nonce_of(header: bytes | memoryview) -> bytes:
    """Return the AES-GCM nonce, 12 bytes unique under one key: direction, kind and number."""
    _, number, _, _, kind = HEADER.unpack_from(header)
    return _NONCE.pack(kind, number)


def pack_ack(ack: Ack) -> bytes:
    """Return the payload of an acknowledgement."""
    length = (ack.bits.bit_length() + 7) // 8
    return _ACK.pack(ack.largest, ack.received) + ack.bits.to_bytes(length, "big")


def read_ack(payload: bytes | memoryview) -> Ack:
    """Return the acknowledgement in a payload; ProtocolError if its length is wrong."""
    if not _ACK.size <= len(payload) <= _ACK.size + REMEMBERED // 8:
        raise ProtocolError("an acknowledgement has the wrong length")
    largest, received = _ACK.unpack_from(payload)
    return Ack(largest, received, int.from_bytes(payload[_ACK.size :], "big"))


def pack_probe(probe: Probe, size: int) -> bytes:
    """Return a payload that makes the whole datagram ``size`` bytes long."""
    return _PROBE.pack(*probe).ljust(size - OVERHEAD, b"\0")


def read_probe(payload: bytes | memoryview) -> Probe:
    """Return the probe in a payload; ProtocolError if it is too short."""
    if len(payload) < _PROBE.size:
        raise ProtocolError("a probe is too short")
    return Probe._make(_PROBE.unpack_from(payload))


class ReceivedPackets:
    """The set of the newest numbers received, for acknowledgements and the replay check."""

    def __init__(self) -> None:
        self.largest = 0
        self.bits = 0

    def is_new(self, number: int) -> bool:
        """Whether a number was not received, and is not too old to tell."""
        age = self.largest - number
        return age < 0 or (age < REMEMBERED and not self.bits >> age & 1)

    def since(self, largest: int) -> int:
        """Return the bits shifted so that bit 0 stands for ``largest``."""
        ahead = largest - self.largest
        if abs(ahead) >= REMEMBERED:
            # The peer chooses numbers: a shift by up to 2^32 bits would take 512 MiB.
            return 0
        return self.bits << ahead & _REMEMBERED_BITS if ahead > 0 else self.bits >> -ahead

    def add(self, largest: int, bits: int = 1) -> None:
        """Add the numbers in ``bits``, of which bit 0 stands for ``largest``."""
        if largest >= self.largest:
            self.bits, self.largest = self.since(largest) | bits, largest
        elif self.largest - largest < REMEMBERED:
            self.bits |= bits << (self.largest - largest) & _REMEMBERED_BITS


class PacketNumbers:
    """Numbers the datagrams of one kind in one direction of a session, from 1 on."""

    def __init__(self, session: int, kind: int) -> None:
        self.last = 0
        self._session, self._kind = session, kind

    def next_header(self, block: int = 0, offset: int = 0) -> bytes:
        """Return the header with the next number; ProtocolError after the last one, 2^32-1."""
        if self.last == MAX_NUMBER:
            raise ProtocolError("the UDP session has used up its packet numbers")
        self.last += 1
        return pack_header(self._session, self.last, self._kind, block, offset)
