"""Comparison of framing: the fates of messages, and what real sockets show."""

import socket
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftpkit.compare.framing import (
    MAX_SIZE,
    MIN_SIZE,
    READ_SIZE,
    Fate,
    FramingResult,
    bodies,
    compare_framing,
    datagram_fates,
    datagram_sockets,
    numbered_messages,
    stream_fates,
    take_datagrams,
)
from ftpkit.errors import ConnectionLostError, ProtocolError
from ftpkit.protocol import encode_header

WHOLE, GLUED, SPLIT, LOST = Fate.WHOLE, Fate.GLUED, Fate.SPLIT, Fate.LOST

chunks = st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=30)
cuts = st.lists(st.integers(0, 300), max_size=30)


def cut(stream: bytes, at: list[int]) -> list[bytes]:
    """Return ``stream`` split at the offsets ``at``."""
    borders = sorted({0, len(stream), *(i for i in at if i < len(stream))})
    return [stream[start:end] for start, end in pairwise(borders)]


@pytest.mark.parametrize(
    ("messages", "reads", "fates"),
    [
        ("ab cd", "ab cd", [WHOLE, WHOLE]),
        ("ab cd", "abcd", [GLUED, GLUED]),
        ("ab cd", "abc d", [GLUED, SPLIT]),
        ("ab cd", "a bcd", [SPLIT, GLUED]),
        ("ab cd", "a b cd", [SPLIT, WHOLE]),
        ("ab cd ef", "ab cdef", [WHOLE, GLUED, GLUED]),
        ("ab cd ef", "a bcde f", [SPLIT, GLUED, SPLIT]),
        ("abcd", "a b c d", [SPLIT]),
        ("ab cd", "ab c", [WHOLE, LOST]),
        ("ab cd", "abc", [GLUED, LOST]),
        ("ab cd", "", [LOST, LOST]),
        ("ab cd ef", "abXdef", [GLUED, LOST, GLUED]),
        ("ab", "abc", [GLUED]),
    ],
)
def test_reads_are_compared_with_message_boundaries(
    messages: str, reads: str, fates: list[Fate]
) -> None:
    assert stream_fates(messages.encode().split(), reads.encode().split()) == fates


@pytest.mark.parametrize(("messages", "reads"), [([b""], [b"a"]), ([b"a"], [b"a", b""])])
def test_empty_messages_and_reads_are_refused(messages: list[bytes], reads: list[bytes]) -> None:
    with pytest.raises(ValueError, match="empty"):
        stream_fates(messages, reads)


@given(chunks, cuts)
def test_each_message_has_exactly_one_fate(messages: list[bytes], at: list[int]) -> None:
    reads = cut(b"".join(messages), at)
    owner = [number for number, read in enumerate(reads) for _ in read]
    starts = [0, *accumulate(map(len, messages))]
    expected = []
    for message, start in zip(messages, starts, strict=False):
        touched = set(owner[start : start + len(message)])
        if len(touched) > 1:
            expected.append(SPLIT)
        else:
            expected.append(WHOLE if reads[touched.pop()] == message else GLUED)
    assert stream_fates(messages, reads) == expected


@given(chunks, cuts, st.integers(0, 300))
def test_only_missing_messages_are_lost(messages: list[bytes], at: list[int], come: int) -> None:
    stream = b"".join(messages)
    fates = stream_fates(messages, cut(stream[:come], at) if come and stream else [])
    ends = accumulate(map(len, messages))
    assert [fate is LOST for fate in fates] == [end > come for end in ends]


@given(chunks)
def test_one_read_per_message_is_whole(messages: list[bytes]) -> None:
    assert set(stream_fates(messages, messages)) == {WHOLE}


@given(st.data())
def test_datagrams_are_whole_or_lost_in_any_order(data: st.DataObject) -> None:
    messages = numbered_messages(10, 20, seed=1)
    came = data.draw(st.lists(st.sampled_from(messages)))
    fates = datagram_fates(messages, [*came, b"a stranger", messages[0] + messages[1]])
    assert fates == [WHOLE if message in came else LOST for message in messages]


@given(st.lists(st.binary(max_size=40), max_size=10), cuts)
def test_frames_survive_any_split(messages: list[bytes], at: list[int]) -> None:
    stream = b"".join(encode_header({"size": len(body)}) + body for body in messages)
    assert list(bodies(cut(stream, at))) == messages
    assert list(bodies(cut(stream[:-1], at))) == messages[:-1]


def test_a_frame_without_a_size_has_an_empty_body() -> None:
    assert list(bodies([encode_header({}) + encode_header({"size": 1}) + b"x"])) == [b"", b"x"]


def test_a_malformed_frame_is_refused() -> None:
    with pytest.raises(ProtocolError):
        list(bodies([b"GET / HTTP/1.1"]))


@given(st.integers(1, 50), st.integers(MIN_SIZE, MAX_SIZE), st.integers())
def test_messages_differ_and_are_repeatable(count: int, largest: int, seed: int) -> None:
    messages = numbered_messages(count, largest, seed)
    assert len(set(messages)) == count
    assert all(MIN_SIZE <= len(message) <= largest for message in messages)
    assert messages == numbered_messages(count, largest, seed)


@pytest.mark.parametrize(
    ("count", "largest"), [(0, 64), (-1, 64), (1, MIN_SIZE - 1), (1, MAX_SIZE + 1)]
)
def test_invalid_counts_and_sizes_are_refused(count: int, largest: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        compare_framing(count, largest)


def assert_promised(outcomes: list[FramingResult], count: int) -> None:
    """Check what holds on every machine."""
    tcp, framed, udp = outcomes
    assert [each.transport for each in outcomes] == ["tcp", "tcp-framed", "udp"]
    for each in outcomes:
        assert each.messages == count
        assert each.whole + each.glued + each.split + each.lost == count
        assert each.reads > 0
    assert tcp.lost == 0
    assert framed.whole == count
    assert (udp.glued, udp.split) == (0, 0)
    assert udp.reads == udp.whole


@pytest.mark.parametrize("seed", range(5))
def test_tcp_glues_messages_and_frames_separate_them(seed: int) -> None:
    outcomes = compare_framing(3_000, 64, seed)
    assert_promised(outcomes, 3_000)
    tcp = outcomes[0]
    assert tcp.glued > 0
    assert tcp.reads < 3_000


@pytest.mark.parametrize(("count", "largest"), [(1, MIN_SIZE), (1, MAX_SIZE), (500, MAX_SIZE)])
def test_few_and_large_messages(count: int, largest: int) -> None:
    outcomes = compare_framing(count, largest, seed=7)
    assert_promised(outcomes, count)
    total = sum(map(len, numbered_messages(count, largest, 7)))
    assert outcomes[0].reads >= total / READ_SIZE


def test_one_message_is_whole_over_each_transport() -> None:
    assert [each.whole for each in compare_framing(1, 64)] == [1, 1, 1]


def test_a_full_receive_buffer_loses_datagrams_and_the_receiver_ends() -> None:
    messages = numbered_messages(500, 64, seed=3)
    with datagram_sockets() as (sender, receiver), datagram_sockets() as (control, ended):
        for message in messages:
            sender.send(message)
        control.send(b"the end")
        came = take_datagrams(receiver, ended)
    assert 0 < len(came) < 500
    assert came == messages[: len(came)], "the buffer held the first ones"
    fates = datagram_fates(messages, came)
    assert (fates.count(WHOLE), fates.count(LOST)) == (len(came), 500 - len(came))


def test_datagrams_of_others_are_ignored() -> None:
    with (
        datagram_sockets() as (sender, receiver),
        datagram_sockets() as (control, ended),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger,
    ):
        stranger.sendto(b"from a stranger", receiver.getsockname())
        sender.send(b"from us")
        control.send(b"the end")
        assert take_datagrams(receiver, ended) == [b"from us"]


def test_a_lack_of_descriptors_is_a_connection_error() -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(ConnectionLostError, match="loopback failed: Too many open files"):
            compare_framing(10, 64)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
