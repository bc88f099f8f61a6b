"""The layout of datagrams, and packet numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftpkit.errors import ProtocolError
from ftpkit.protocol.udp.packet import (
    FROM_SERVER,
    HEADER,
    MAX_NUMBER,
    MIN_DATAGRAM,
    OVERHEAD,
    REMEMBERED,
    TAG,
    Ack,
    BlockBuffers,
    Header,
    Kind,
    PacketNumbers,
    Probe,
    ReceivedPackets,
    max_open_blocks,
    nonce_of,
    pack_ack,
    pack_header,
    pack_probe,
    read_ack,
    read_header,
    read_probe,
)

words = st.integers(0, 2**32 - 1)
kinds = st.sampled_from([kind | direction for kind in Kind for direction in (0, FROM_SERVER)])
headers = st.builds(Header, words, st.integers(1, MAX_NUMBER), words, words, kinds)


@given(headers)
def test_a_header_makes_the_round_trip(header: Header) -> None:
    session, number, block, offset, kind = header
    raw = pack_header(session, number, kind, block, offset)
    assert read_header(raw + bytes(TAG)) == header
    assert raw == HEADER.pack(session, number, block, offset, kind)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_header_or_none(raw: bytes) -> None:
    header = read_header(raw)
    if header is not None:
        assert header.number > 0
        assert len(raw) >= OVERHEAD


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        bytes(OVERHEAD - 1),
        pack_header(1, 0, Kind.DATA) + bytes(TAG),
        pack_header(1, 1, 5) + bytes(TAG),
        pack_header(1, 1, 5 | FROM_SERVER) + bytes(TAG),
    ],
)
def test_other_datagrams_have_no_header(raw: bytes) -> None:
    assert read_header(raw) is None


@given(st.lists(headers, min_size=2, max_size=8, unique_by=lambda h: (h.number, h.kind)))
def test_no_nonce_repeats_in_a_session(headers: list[Header]) -> None:
    nonces = {
        nonce_of(pack_header(h.session, h.number, h.kind, h.block, h.offset)) for h in headers
    }
    assert len(nonces) == len(headers)
    assert {len(nonce) for nonce in nonces} == {12}


acks = st.builds(Ack, words, st.integers(0, 2**64 - 1), st.integers(0, 2**REMEMBERED - 1))


@given(acks)
def test_an_ack_makes_the_round_trip(ack: Ack) -> None:
    assert read_ack(pack_ack(ack)) == ack


@given(st.binary(max_size=600))
def test_any_bytes_are_an_ack_or_a_protocol_error(raw: bytes) -> None:
    try:
        ack = read_ack(raw)
    except ProtocolError:
        assert not 12 <= len(raw) <= 12 + REMEMBERED // 8
    else:
        assert ack.bits < 2**REMEMBERED


probes = st.builds(Probe, st.integers(0, 2**64 - 1), st.integers(0, 2**16 - 1), words)


@given(probes, st.integers(MIN_DATAGRAM, 9000))
def test_a_probe_has_the_given_size(probe: Probe, size: int) -> None:
    payload = pack_probe(probe, size)
    assert len(payload) + OVERHEAD == size
    assert read_probe(payload) == probe


def test_a_probe_that_is_too_short() -> None:
    with pytest.raises(ProtocolError, match="too short"):
        read_probe(bytes(13))


@given(st.lists(st.integers(1, 10_000), max_size=60))
def test_each_number_counts_once(numbers: list[int]) -> None:
    arrivals, seen = ReceivedPackets(), set[int]()
    for number in numbers:
        remembered = number > max(seen, default=0) - REMEMBERED
        assert arrivals.is_new(number) == (number not in seen and remembered)
        if arrivals.is_new(number):
            arrivals.add(number)
            seen.add(number)
    largest = max(seen, default=0)
    assert arrivals.largest == largest
    assert arrivals.bits == sum(1 << (largest - n) for n in seen if largest - n < REMEMBERED)


@given(st.lists(st.tuples(st.integers(1, 9000), st.integers(1, 2**64)), max_size=20))
def test_merging_is_adding_each(merges: list[tuple[int, int]]) -> None:
    merged, seen = ReceivedPackets(), set[int]()
    for largest, bits in merges:
        kept = bits | 1
        before = merged.largest
        merged.add(largest, kept)
        numbers = {largest - k for k in range(kept.bit_length()) if kept >> k & 1}
        if largest > before - REMEMBERED:
            seen |= numbers
        now = merged.largest
        assert now == max(largest, before)
        expected = {n for n in seen if now - n < REMEMBERED}
        assert {now - k for k in range(REMEMBERED) if merged.bits >> k & 1} == expected
        seen = expected


@pytest.mark.parametrize("number", [MAX_NUMBER, REMEMBERED + 1])
def test_a_number_far_ahead_allocates_nothing(number: int) -> None:
    arrivals = ReceivedPackets()
    arrivals.add(1)
    arrivals.add(number)
    assert (arrivals.largest, arrivals.bits) == (number, 1)
    assert not arrivals.is_new(1)
    assert arrivals.since(1) == 0


def test_packet_numbers_end() -> None:
    numbers = PacketNumbers(7, Kind.DATA)
    assert [numbers.next_header(), numbers.next_header(3, 9)] == [
        pack_header(7, 1, Kind.DATA),
        pack_header(7, 2, Kind.DATA, 3, 9),
    ]
    numbers.last = MAX_NUMBER - 1
    assert numbers.next_header() == pack_header(7, MAX_NUMBER, Kind.DATA)
    with pytest.raises(ProtocolError, match="used up"):
        numbers.next_header()


@pytest.mark.parametrize(
    ("block", "blocks"), [(64 * 1024, 16), (4 * 2**20, 16), (16 * 2**20, 4), (64 * 2**20, 1)]
)
def test_the_limit_of_open_blocks(block: int, blocks: int) -> None:
    assert max_open_blocks(block) == blocks


def test_memory_of_the_same_length_is_reused() -> None:
    bodies = BlockBuffers()
    long, short = bodies.borrow(10), bodies.borrow(4)
    long[:] = b"0123456789"
    bodies.release(short)
    bodies.release(long)
    assert bytes(bodies.borrow(10)) == b"0123456789"
    assert len(bodies.borrow(10)) == 10
