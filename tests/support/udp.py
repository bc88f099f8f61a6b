"""A client's datagrams, written from section 11 of WIRE.md alone: it knows nothing of ftpkit."""

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

DATA, ACK, PROBE, ECHO, END = range(5)
SERVER: Final = 128
HEADER: Final = struct.Struct("!IIIIB")
OVERHEAD: Final = 33
TIMEOUT_S: Final = 20.0
AGAIN_S: Final = 0.2
PIECE: Final = 1000


@dataclass(frozen=True, slots=True)
class Heard:
    """One datagram of the server."""

    kind: int
    number: int
    block: int
    offset: int
    payload: bytes
    size: int
    address: tuple[Any, ...]


class RawDatagrams:
    """One socket of a client; ``encrypted`` makes datagrams that any socket may send."""

    def __init__(
        self,
        address: tuple[str, int],
        session: int,
        key: bytes,
        numbers: dict[int, int] | None = None,
    ) -> None:
        self.address, self.session = address, session
        self._cipher = AESGCM(key)
        self.numbers = numbers if numbers is not None else {}
        """The last number of each kind; two sockets of one session share them."""
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        self.sock.settimeout(TIMEOUT_S)
        self.sent = 0
        """Bytes that have left."""

    @classmethod
    def of(cls, address: tuple[str, int], reply: Mapping[str, Any]) -> Self:
        """Make the client of what ``push`` or ``pull`` was answered with."""
        return cls(address, reply["session"], bytes.fromhex(reply["key"]))

    def encrypted(
        self,
        kind: int,
        payload: bytes = b"",
        *,
        block: int = 0,
        offset: int = 0,
        number: int | None = None,
        session: int | None = None,
    ) -> bytes:
        """Return a datagram; it has the next number of its kind if none is given."""
        if number is None:
            number = self.numbers[kind] = self.numbers.get(kind, 0) + 1
        session = self.session if session is None else session
        header = HEADER.pack(session, number, block, offset, kind)
        nonce = bytes([kind]) + bytes(7) + struct.pack("!I", number)
        return header + self._cipher.encrypt(nonce, payload, header)

    def probe(
        self, size: int = 60, *, proof: int = 0, piece: int = 0, rtt_us: int = 0, **keys: Any
    ) -> bytes:
        """Return a probe of ``size`` bytes."""
        payload = struct.pack("!QHI", proof, piece, rtt_us).ljust(size - OVERHEAD, b"\0")
        return self.encrypted(PROBE, payload, **keys)

    def send(self, raw: bytes) -> bytes:
        """Send a datagram, and return it."""
        self.sock.sendto(raw, self.address)
        self.sent += len(raw)
        return raw

    def hear(self, timeout_s: float = TIMEOUT_S) -> Heard | None:
        """Return what comes next, or None if nothing does; it must open."""
        self.sock.settimeout(timeout_s)
        try:
            raw, address = self.sock.recvfrom(65_535)
        except (TimeoutError, BlockingIOError):
            return None
        heard = self.opened(raw, address)
        assert heard is not None, "the server sent what does not open"
        return heard

    def opened(self, raw: bytes, address: tuple[Any, ...] = ()) -> Heard | None:
        """Return what a datagram says, or None if it was not encrypted with our key."""
        session, number, block, offset, kind = HEADER.unpack_from(raw)
        nonce = bytes([kind]) + bytes(7) + struct.pack("!I", number)
        try:
            payload = self._cipher.decrypt(nonce, raw[17:], raw[:17])
        except InvalidTag:
            return None
        assert session == self.session
        assert kind & SERVER
        assert number > 0
        return Heard(kind & 127, number, block, offset, payload, len(raw), address)

    def heard(self) -> list[Heard]:
        """Return what is there already."""
        found = []
        while (heard := self.hear(0.0)) is not None:
            found.append(heard)
        return found

    def echo_of(self, raw: bytes) -> tuple[Heard, int]:
        """Send a probe until its echo comes; return that and its proof. Others are dropped."""
        echo = self._until_echo(lambda: raw)[-1]
        return echo, struct.unpack_from("!Q", echo.payload)[0]

    def settled(self) -> list[Heard]:
        """Wait until the server has taken in all that was sent before; return what came back.

        It takes datagrams in one after the other, and this one it answers.
        """
        return self._until_echo(self.probe)[:-1]

    def _until_echo(self, probe: Callable[[], bytes]) -> list[Heard]:
        found: list[Heard] = []
        deadline = time.monotonic() + TIMEOUT_S
        # What comes to a socket that is closed just then is lost, as anywhere on the way.
        while time.monotonic() < deadline:
            raw = self.send(probe())
            while (heard := self.hear(1.0)) is not None:
                found.append(heard)
                if (heard.kind, heard.number) == (ECHO, *struct.unpack_from("!I", raw, 4)):
                    return found
        raise AssertionError("the probe was not answered")

    def come_in(self, *, piece: int = PIECE) -> int:
        """Prove this address, so that the server sends here; return the proof."""
        _, proof = self.echo_of(self.probe())
        self.echo_of(self.probe(proof=proof, piece=piece))
        return proof

    def come_out(self) -> None:
        """Prove this address to a session that is over: it says so, and nothing else."""
        _, proof = self.echo_of(self.probe())
        self.send(self.probe(proof=proof, piece=PIECE))
        heard = self.hear()
        assert heard is not None
        assert heard.kind == END

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def pieces_of(data: bytes, piece: int = PIECE) -> Iterator[tuple[int, bytes]]:
    """Cut a block and its digest into pieces."""
    body = data + blake3.blake3(data).digest()
    for offset in range(0, len(body), piece):
        yield offset, body[offset : offset + piece]


def acked(payload: bytes) -> set[int]:
    """Return the numbers that an acknowledgement is about."""
    largest, _ = struct.unpack_from("!IQ", payload)
    bits = int.from_bytes(payload[12:], "big")
    return {largest - k for k in range(bits.bit_length()) if bits >> k & 1}


def push(udp: RawDatagrams, blocks: Mapping[int, bytes], piece: int = PIECE) -> None:
    """Send blocks until each of their pieces was acknowledged."""
    waiting = {
        (block, offset): data
        for block, body in blocks.items()
        for offset, data in pieces_of(body, piece)
    }
    under_way: dict[int, tuple[int, int]] = {}
    deadline = time.monotonic() + 3 * TIMEOUT_S
    while waiting:
        assert time.monotonic() < deadline, f"{len(waiting)} pieces were never acknowledged"
        for key, data in list(waiting.items())[:64]:
            raw = udp.encrypted(DATA, data, block=key[0], offset=key[1])
            under_way[udp.numbers[DATA]] = key
            udp.send(raw)
        while (heard := udp.hear(AGAIN_S)) is not None:
            assert heard.kind in (ACK, ECHO), heard
            if heard.kind == ACK:
                for number in acked(heard.payload):
                    waiting.pop(under_way.get(number, (-1, 0)), None)
            if not any(key in waiting for key in under_way.values()):
                break


@dataclass(slots=True)
class Pulled:
    """What has arrived of the blocks that were asked for."""

    sizes: Mapping[int, int]
    bodies: dict[int, bytearray] = field(default_factory=dict)
    numbers: set[int] = field(default_factory=set)
    left: dict[int, set[int]] = field(default_factory=dict)

    def blocks(self) -> dict[int, bytes]:
        """Return the blocks, which must agree with their digests."""
        found = {}
        for block, body in self.bodies.items():
            data = bytes(body[:-32])
            assert blake3.blake3(data).digest() == body[-32:]
            found[block] = data
        return found


def pull(
    udp: RawDatagrams,
    sizes: Mapping[int, int],
    piece: int = PIECE,
    commit: Callable[[Heard], bool] = lambda heard: True,
) -> Pulled:
    """Receive blocks of these sizes; what ``keep`` does not want counts as lost."""
    pulled = Pulled(sizes)
    for block, size in sizes.items():
        pulled.bodies[block] = bytearray(size + 32)
        pulled.left[block] = set(range(0, size + 32, piece))
    while any(pulled.left.values()):
        heard = udp.hear()
        assert heard is not None, f"nothing comes, though {pulled.left} is missing"
        assert heard.kind in (DATA, ECHO), heard
        if heard.kind != DATA or not commit(heard):
            continue
        assert heard.number not in pulled.numbers
        pulled.numbers.add(heard.number)
        body, end = pulled.bodies[heard.block], heard.offset + len(heard.payload)
        assert heard.offset % piece == 0
        assert len(heard.payload) == min(piece, len(body) - heard.offset)
        body[heard.offset : end] = heard.payload
        pulled.left[heard.block].discard(heard.offset)
        udp.send(udp.encrypted(ACK, ack_payload(pulled.numbers)))
    return pulled


def ack_payload(numbers: set[int]) -> bytes:
    """Return the payload that acknowledges these numbers."""
    largest = max(numbers, default=0)
    bits = 0
    for number in numbers:
        if largest - number < 4096:
            bits |= 1 << largest - number
    return struct.pack("!IQ", largest, 0) + bits.to_bytes((bits.bit_length() + 7) // 8, "big")


@contextlib.contextmanager
def port_taken_for_udp() -> Iterator[int]:
    """Take a port of this machine for UDP that is free for TCP.

    TCP picks it: one that UDP picks may be held by a connection that ended a moment ago.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            taken.bind(free.getsockname())
        yield taken.getsockname()[1]
