"""Raw UDP against a receiver in memory, in simulated time."""

import random
from collections.abc import Mapping
from itertools import pairwise

import pytest

from ftpkit.compare.raw_udp import RawSender
from ftpkit.errors import ProtocolError
from ftpkit.protocol.digest import DIGEST_BYTES
from ftpkit.protocol.udp.packet import (
    FROM_SERVER,
    OVERHEAD,
    Ack,
    Datagram,
    Header,
    Kind,
    pack_ack,
    read_header,
)
from ftpkit.protocol.udp.receiver import Receiver

PIECE = 1000
RATE_BPS = 1e6
SIZES = {0: 4000, 1: 4000, 2: 2500}
WHOLE = sum(SIZES.values()) + len(SIZES) * DIGEST_BYTES


def content(block: int) -> bytes:
    return random.Random(block).randbytes(SIZES[block] + DIGEST_BYTES)


def fill(block: int, body: memoryview) -> None:
    body[:] = content(block)


def raw_sender(sizes: Mapping[int, int] = SIZES, rate_bps: float = RATE_BPS) -> RawSender:
    return RawSender(7, PIECE, sizes, fill, rate_bps, rtt_s=0.2, now=0.0)


def header_of(datagram: Datagram) -> Header:
    header = read_header(datagram.header + bytes(datagram.payload) + bytes(OVERHEAD))
    assert header is not None
    return header


def run(sender: RawSender, receiver: Receiver, lost: set[int]) -> list[tuple[float, Header, bytes]]:
    """Deliver all datagrams except those with numbers in ``lost``."""
    now, left = 0.0, []
    while not sender.done:
        for datagram in sender.datagrams_to_send(now):
            header, payload = header_of(datagram), bytes(datagram.payload)
            left.append((now, header, payload))
            if header.number not in lost:
                receiver.receive(header, payload, now)
        for answer in receiver.datagrams_to_send(now):
            sender.receive(header_of(answer), answer.payload, now)
        now = min(sender.next_event(now), receiver.next_event(now))
        assert now < 60
    return left


def receiver_into(taken: dict[int, bytes]) -> Receiver:
    def take(block: int, data: memoryview, raw: bytes) -> None:
        taken[block] = bytes(data) + raw

    return Receiver(7, SIZES, take, max_open=16, direction=FROM_SERVER)


def test_every_piece_is_sent_once_at_the_rate() -> None:
    sender, taken = raw_sender(), dict[int, bytes]()
    left = run(sender, receiver_into(taken), set())
    assert taken == {block: content(block) for block in SIZES}
    pieces = [(header.block, header.offset) for _, header, _ in left if header.block in SIZES]
    assert len(pieces) == len(set(pieces)) == 5 + 5 + 3
    assert [header.number for _, header, _ in left] == list(range(1, len(left) + 1))
    for behind in range(1, 13):
        # What leaves at once is a millisecond's, and a piece more.
        size = sum(len(payload) + OVERHEAD for _, _, payload in left[:behind])
        assert size <= RATE_BPS * (left[behind - 1][0] + 0.002) + PIECE
    assert (sender.sent.first, sender.sent.resent, sender.sent.lost) == (WHOLE, 0, 0)
    assert sender.moved == sum(SIZES.values())


def test_what_is_lost_stays_lost_and_is_counted() -> None:
    sender, taken = raw_sender(), dict[int, bytes]()
    left = run(sender, receiver_into(taken), {2, 3, 12})
    assert list(taken) == [1]
    gone = sum(len(payload) for _, header, payload in left if header.number in {2, 3, 12})
    assert sender.acked
    assert (sender.sent.first, sender.sent.resent, sender.sent.lost) == (WHOLE, 0, gone)
    assert sender.moved == sum(SIZES.values()) - gone


def test_the_acknowledgement_is_requested_until_it_comes() -> None:
    sender = raw_sender()
    left = run(sender, receiver_into({}), {14, 15, 16})
    asked = [now for now, header, _ in left if header.block not in SIZES]
    assert len(asked) == 4
    assert [later - now for now, later in pairwise(asked)] == pytest.approx([0.2] * 3)
    assert sender.acked
    assert sender.sent.lost == 0


def test_the_requests_end() -> None:
    sender = raw_sender()
    run(sender, receiver_into({}), set(range(1, 1000)))
    assert not sender.acked
    assert (sender.moved, sender.sent.lost) == (0, 0)


def test_without_a_rate_everything_is_sent_at_once() -> None:
    sender = raw_sender(rate_bps=float("inf"))
    for pieces in (5 + 5 + 3, 1):
        assert len(sender.datagrams_to_send(0.0)) == pieces
    assert sender.datagrams_to_send(0.1) == []


@pytest.mark.parametrize("ack", [Ack(6, 1, 1), Ack(1, 6000, 1)])
def test_an_acknowledgement_of_unsent_datagrams_is_refused(ack: Ack) -> None:
    sender = raw_sender({0: 4000}, float("inf"))
    sender.datagrams_to_send(0.0)
    with pytest.raises(ProtocolError, match="never sent"):
        sender.receive(Header(7, 1, 0, 0, Kind.ACK | FROM_SERVER), pack_ack(ack), 0.0)
