"""Pieces in any order become blocks and are acknowledged."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftpkit.errors import Code, ProtocolError, RefusedError
from ftpkit.protocol.udp.packet import (
    FROM_SERVER,
    MIN_PIECE,
    REMEMBERED,
    Datagram,
    Header,
    Kind,
    read_ack,
    read_header,
)
from ftpkit.protocol.udp.receiver import Receiver

DIGEST = bytes(range(32))
SIZES = {0: 2000, 1: 2000, 2: 700}


class Here:
    """A receiver and its completed blocks."""

    def __init__(self, sizes: dict[int, int] = SIZES, max_open: int = 16) -> None:
        self.blocks: dict[int, bytes] = {}
        self.refuse = False
        self.receiver = Receiver(7, sizes, self._take, max_open=max_open, direction=FROM_SERVER)

    def _take(self, block: int, data: memoryview, raw: bytes) -> None:
        if self.refuse:
            raise RefusedError(Code.NO_SPACE, "full")
        assert raw == DIGEST
        self.blocks[block] = bytes(data)

    def piece(self, number: int, block: int, offset: int, data: bytes, now: float = 0.0) -> None:
        self.receiver.receive(Header(7, number, block, offset, Kind.DATA), data, now)


def data_of(block: int) -> bytes:
    return random.Random(block).randbytes(SIZES[block])


def pieces(size: int) -> list[tuple[int, int, bytes]]:
    """Return every piece of every block."""
    return [
        (block, offset, body[offset : offset + size])
        for block in SIZES
        if (body := data_of(block) + DIGEST)
        for offset in range(0, len(body), size)
    ]


@given(st.randoms(use_true_random=False), st.integers(MIN_PIECE, 3000))
def test_any_order_and_repetition_give_the_blocks(chance: random.Random, size: int) -> None:
    here = Here()
    arriving = pieces(size) * 2
    chance.shuffle(arriving)
    for number, (block, offset, data) in enumerate(arriving, start=1):
        here.piece(number, block, offset, data)
    assert here.blocks == {block: data_of(block) for block in SIZES}
    assert here.receiver.done
    assert here.receiver.moved == sum(SIZES.values())
    assert here.receiver.received == sum(size + 32 for size in SIZES.values())


def test_a_repeated_datagram_counts_once() -> None:
    here = Here()
    here.piece(1, 0, 0, data_of(0)[:1000])
    here.piece(1, 1, 0, data_of(1)[:1000])
    assert here.receiver.received == 1000


def test_a_datagram_older_than_the_window_is_dropped() -> None:
    here = Here()
    here.piece(REMEMBERED + 1, 0, 0, data_of(0)[:1000])
    here.piece(1, 1, 0, data_of(1)[:1000])
    assert here.receiver.received == 1000


def test_a_piece_of_an_unknown_block_is_acknowledged_and_dropped() -> None:
    here = Here()
    here.piece(1, 9, 0, b"x" * 1000)
    (datagram,) = here.receiver.datagrams_to_send(1.0)
    assert read_ack(datagram.payload)[:2] == (1, 0)


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (1500, b"x" * 1000),  # beyond the end
        (2**32 - 1, b"x" * 600),
        (0, b""),
        (0, b"x" * (MIN_PIECE - 1)),  # short, and not at the end
    ],
)
def test_invalid_pieces_are_protocol_errors(offset: int, data: bytes) -> None:
    here = Here()
    with pytest.raises(ProtocolError):
        here.piece(1, 0, offset, data)
    assert here.receiver.received == 0


def test_overlapping_pieces_fail_the_digest() -> None:
    taken: list[bytes] = []
    receiver = Receiver(
        7, {0: 2000}, lambda block, data, raw: taken.append(raw), max_open=1, direction=0
    )
    body = data_of(0) + DIGEST
    for number, offset in enumerate((0, 700, 1000), start=1):
        header = Header(7, number, 0, offset, Kind.DATA)
        receiver.receive(header, body[offset : offset + 700], 0.0)
    assert taken
    assert taken != [DIGEST]


def test_the_number_of_open_blocks_is_limited() -> None:
    here = Here(max_open=2)
    here.piece(1, 0, 0, data_of(0)[:1000])
    here.piece(2, 1, 0, data_of(1)[:1000])
    here.piece(3, 2, 0, data_of(2)[:600])
    (datagram,) = here.receiver.datagrams_to_send(1.0)
    assert read_ack(datagram.payload).bits == 0b11, "the third is as good as lost"
    here.piece(4, 0, 1000, (data_of(0) + DIGEST)[1000:])
    here.piece(5, 2, 0, data_of(2)[:600])
    assert here.receiver.received == (2000 + 32) + 1000 + 600


def test_an_exception_of_on_block_propagates_unacknowledged() -> None:
    here = Here()
    here.refuse = True
    with pytest.raises(RefusedError):
        here.piece(1, 2, 0, data_of(2) + DIGEST)
    assert acked(here.receiver, 1.0) is None


def acked(receiver: Receiver, now: float) -> Any:
    datagrams = receiver.datagrams_to_send(now)
    if not datagrams:
        return None
    (datagram,) = datagrams
    return read_ack(datagram.payload)


def test_it_acknowledges_after_32_datagrams() -> None:
    here = Here({0: 100_000})
    for number in range(1, 33):
        assert acked(here.receiver, 0.0) is None
        here.piece(number, 0, (number - 1) * 600, b"x" * 600)
    assert acked(here.receiver, 0.0) == (32, 32 * 600, 2**32 - 1)
    assert acked(here.receiver, 9.0) is None


def test_it_acknowledges_after_256_kib() -> None:
    here = Here({0: 2**20})
    for number in range(4):
        here.piece(number + 1, 0, number * 65_000, b"x" * 65_000)
        assert acked(here.receiver, 0.0) is None
    here.piece(5, 0, 4 * 65_000, b"x" * 65_000)
    assert acked(here.receiver, 0.0) is not None


def test_it_acknowledges_after_5_ms() -> None:
    here = Here()
    assert here.receiver.next_event(10.0) == 11.0
    here.piece(1, 0, 0, data_of(0)[:1000], now=10.0)
    assert here.receiver.next_event(10.0) == pytest.approx(10.005)
    assert acked(here.receiver, 10.004) is None
    assert acked(here.receiver, 10.006) is not None


def test_it_acknowledges_completion_at_once() -> None:
    here = Here({2: 700})
    here.piece(1, 2, 0, data_of(2) + DIGEST)
    assert acked(here.receiver, 0.0) is not None
    here.piece(2, 2, 0, data_of(2) + DIGEST)
    assert acked(here.receiver, 0.0) is not None, "the first may have been lost"


def test_its_acknowledgements_are_numbered_and_have_its_direction() -> None:
    here = Here()
    headers = []
    for number in (1, 2):
        here.piece(number, 0, 0, data_of(0)[:1000])
        datagram: Datagram = here.receiver.datagrams_to_send(number)[0]
        headers.append(read_header(datagram.header + bytes(16)))
    assert headers == [Header(7, n, 0, 0, Kind.ACK | FROM_SERVER) for n in (1, 2)]
