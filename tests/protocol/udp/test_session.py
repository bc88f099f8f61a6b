"""Both sides over a network in simulated time: all blocks arrive."""

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from ftpkit.errors import ProtocolError
from ftpkit.protocol.digest import DIGEST_BYTES, new_hasher
from ftpkit.protocol.udp.congestion import BbrControl
from ftpkit.protocol.udp.packet import (
    FROM_SERVER,
    OVERHEAD,
    Ack,
    Datagram,
    Header,
    Kind,
    pack_ack,
)
from ftpkit.protocol.udp.path_probe import PathProber
from ftpkit.protocol.udp.receiver import Receiver
from ftpkit.protocol.udp.sender import Sender
from ftpkit.protocol.udp.session import (
    ClientDatagramSession,
    DatagramTransfer,
    ServerDatagramSession,
)
from tests.protocol.lossy import Doorway, Lossy, converse

BLOCK = 256 * 1024
MOST_OPEN = 64
ACK = Header(1, 1, 0, 0, Kind.ACK | FROM_SERVER)


def digest(data: bytes | memoryview) -> bytes:
    hasher = new_hasher("blake3")
    hasher.update(data)
    return hasher.digest()


@dataclass
class Copy:
    """A file that is uploaded or downloaded."""

    data: bytes
    up: bool = True
    got: dict[int, bytes] = field(default_factory=dict)
    sender: Sender | None = None

    @property
    def sizes(self) -> dict[int, int]:
        total = len(self.data)
        blocks = range(-(-total // BLOCK))
        return {block: min(BLOCK, total - block * BLOCK) for block in blocks}

    def fill(self, block: int, body: memoryview) -> None:
        data = self.data[block * BLOCK : (block + 1) * BLOCK]
        body[: len(data)] = data
        body[len(data) :] = digest(data)

    def take(self, block: int, data: memoryview, raw: bytes) -> None:
        assert digest(data) == raw
        assert block not in self.got
        self.got[block] = bytes(data)

    def send(self, piece: int, rtt_s: float, now: float) -> Sender:
        self.sender = Sender(
            1,
            piece,
            self.sizes,
            self.fill,
            BbrControl(piece + OVERHEAD, rtt_s, now),
            max_open=MOST_OPEN,
            direction=0 if self.up else FROM_SERVER,
            rtt_s=rtt_s,
            now=now,
        )
        return self.sender

    def receive(self, *_: float) -> Receiver:
        direction = FROM_SERVER if self.up else 0
        return Receiver(1, self.sizes, self.take, max_open=MOST_OPEN, direction=direction)

    def ends(self) -> tuple[ClientDatagramSession, Doorway]:
        path = PathProber(1, [1472, 1232], 0.0)
        if self.up:
            return ClientDatagramSession(path, self.send), Doorway(self.receive)
        return ClientDatagramSession(path, self.receive), Doorway(self.send)

    def move(self, **network: Any) -> float:
        """Transfer it over a network; return the simulated seconds."""
        near, far = self.ends()
        up, down = Lossy(seed=1, **network), Lossy(seed=2, **network)
        seconds = converse(near, far, up, down, until=lambda now: near.done)
        assert b"".join(self.got[block] for block in sorted(self.got)) == self.data
        assert self.sender is not None
        return seconds

    @property
    def again(self) -> float:
        """The share of bytes that was sent again."""
        assert self.sender is not None
        return self.sender.sent.resent / self.sender.sent.first


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("size", [1, 4096, BLOCK - 32, BLOCK, BLOCK + 1, 3_000_000])
def test_any_size_arrives_in_both_directions(size: int, up: bool) -> None:
    Copy(noise(size), up).move()


NETWORKS: dict[str, dict[str, Any]] = {
    "1 % loss": {"loss": 0.01},
    "5 % loss": {"loss": 0.05},
    "20 % loss": {"loss": 0.2},
    "half of all lost": {"loss": 0.5},
    "reordered": {"reorder": 0.02},
    "repeated": {"duplicate": 0.02},
    "all at once": {"loss": 0.05, "reorder": 0.1, "duplicate": 0.1},
    "a short queue": {"queue": 30_000.0},
    "a narrow path": {"mtu": 1280},
    "a slow one": {"bytes_per_s": 1e5},
    "a fast one": {"bytes_per_s": 1.25e8, "delay_s": 0.001},
    "a far one": {"delay_s": 0.4},
    "dead for 5 s": {"dead": lambda now: 0.5 < now < 5.5},
}


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_everything_arrives_over_any_network(network: dict[str, Any], up: bool) -> None:
    Copy(noise(1_500_000), up).move(**network)


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.05, 0.2])
def test_little_more_is_resent_than_was_lost(loss: float) -> None:
    copy = Copy(noise(8_000_000))
    copy.move(loss=loss, queue=1e9)
    assert copy.again <= loss / (1 - loss) + 0.02


def test_reordered_packets_are_not_declared_lost() -> None:
    copy = Copy(noise(4_000_000))
    copy.move(reorder=0.02, duplicate=0.02)
    assert copy.sender is not None
    assert copy.sender.sent.lost == 0
    assert copy.again < 0.02


@pytest.mark.parametrize("loss", [0.01, 0.05, 0.2])
def test_loss_does_not_slow_it_down(loss: float) -> None:
    data = noise(40_000_000)
    lossless = Copy(data).move()
    assert Copy(data).move(loss=loss) < lossless * 1.2


def test_the_last_pieces_take_at_most_3_round_trips() -> None:
    """After the last piece is sent for the first time."""
    copy = Copy(noise(30_000_000))
    near, far = copy.ends()
    up, down = Lossy(loss=0.05, seed=1), Lossy(loss=0.05, seed=2)

    left_at: list[float] = []

    def over(now: float) -> bool:
        total = len(copy.data) + len(copy.sizes) * DIGEST_BYTES
        if copy.sender is not None and copy.sender.sent.first == total:
            left_at.append(now)
        return near.done

    done_at = converse(near, far, up, down, until=over)
    assert done_at - left_at[0] < 3 * 2 * up.delay_s


def test_the_rate_limit_is_kept() -> None:
    copy = Copy(noise(1_000_000))

    def capped(piece: int, rtt_s: float, now: float) -> DatagramTransfer:
        rate = BbrControl(piece + OVERHEAD, rtt_s, now, max_bytes_per_s=500_000.0)
        copy.sender = Sender(
            1, piece, copy.sizes, copy.fill, rate,
            max_open=MOST_OPEN, direction=0, rtt_s=rtt_s, now=now,
        )  # fmt: skip
        return copy.sender

    near = ClientDatagramSession(PathProber(1, [1472, 1232], 0.0), capped)
    assert (
        converse(near, Doorway(copy.receive), Lossy(), Lossy(), until=lambda now: near.done) > 2.0
    )


def test_the_server_can_end_the_session() -> None:
    copy = Copy(b"x" * 5000)
    near, _ = copy.ends()
    datagram = ServerDatagramSession(1, copy.receive(), lambda header, payload: None).end_datagram()
    near.receive(Header(1, 1, 0, 0, Kind.END | FROM_SERVER), datagram.payload, 0.0)
    assert near.closed_by_server
    assert not near.done


@pytest.mark.parametrize("kind", [Kind.ACK, Kind.ECHO, Kind.END, Kind.DATA])
def test_the_client_ignores_datagrams_of_clients(kind: Kind) -> None:
    near, _ = Copy(b"x" * 5000).ends()
    near.receive(Header(1, 1, 0, 0, kind), b"\0" * 14, 1.0)
    assert not near.closed_by_server
    assert not near.path.is_open


def test_the_server_ignores_datagrams_of_servers() -> None:
    copy = Copy(b"x" * 5000)
    end = ServerDatagramSession(1, copy.receive(), lambda header, payload: None)
    end.receive(Header(1, 1, 0, 0, Kind.DATA | FROM_SERVER), b"x" * 1000, 1.0)
    assert end.transfer.moved == 0
    assert end.last_received_at == 0.0


def test_the_server_echoes_probes_through_its_callback() -> None:
    echo = Datagram(b"header", b"payload")
    answers = [echo, None]
    end = ServerDatagramSession(1, Copy(b"x").receive(), lambda header, payload: answers.pop(0))
    end.receive(Header(1, 1, 0, 0, Kind.PROBE), b"", 1.0)
    assert end.next_event(1.0) == 1.0
    assert end.datagrams_to_send(1.0) == [echo]
    end.receive(Header(1, 2, 0, 0, Kind.PROBE), b"", 2.0)
    assert end.datagrams_to_send(2.0) == []
    assert (end.last_received_at, end.done) == (2.0, False)


def test_a_server_is_done_when_all_is_acknowledged() -> None:
    copy = Copy(b"x" * 5000, up=False)
    near, far = copy.ends()
    converse(near, far, Lossy(), Lossy(), until=lambda now: far.end is not None and far.end.done)
    assert near.done


def test_datagrams_for_the_other_role_are_dropped() -> None:
    """Acknowledgements to a receiver and data to a sender."""
    copy = Copy(b"x" * 5000)
    end = ServerDatagramSession(1, copy.receive(), lambda header, payload: None)
    end.receive(Header(1, 1, 0, 0, Kind.ACK), pack_ack(Ack(1, 1, 1)), 1.0)
    sending = ServerDatagramSession(1, copy.send(1000, 0.1, 0.0), lambda header, payload: None)
    sending.receive(Header(1, 1, 0, 0, Kind.DATA), b"x" * 1000, 1.0)
    assert end.transfer.moved == sending.transfer.moved == 0


@pytest.mark.parametrize("ack", [Ack(2, 0, 1), Ack(1, 0, 2), Ack(0, 0, 1)])
def test_an_acknowledgement_of_unsent_datagrams(ack: Ack) -> None:
    sender = Copy(b"x" * 500).send(1000, 0.1, 0.0)
    assert len(sender.datagrams_to_send(0.0)) == 1
    with pytest.raises(ProtocolError, match="never sent"):
        sender.receive(ACK, pack_ack(ack), 0.1)


def test_a_repeated_or_late_acknowledgement_changes_nothing() -> None:
    sender = Copy(b"x" * 5000).send(1000, 0.1, 0.0)
    sent: list[Datagram] = []
    now = 0.0
    while len(sent) < 6:
        now = sender.next_event(now)
        sent += sender.datagrams_to_send(now)
    sender.receive(ACK, pack_ack(Ack(5, 0, 0b11111)), now + 0.1)
    moved = sender.moved
    for late in (Ack(5, 0, 0b11111), Ack(3, 0, 0b111)):
        sender.receive(ACK, pack_ack(late), now + 0.2)
    assert sender.moved == moved == 5000
    sender.receive(ACK, pack_ack(Ack(6, 0, 0b1)), now + 0.2)
    assert sender.done


def test_an_empty_acknowledgement_changes_nothing() -> None:
    sender = Copy(b"x" * 500).send(1000, 0.1, 0.0)
    sender.datagrams_to_send(0.0)
    sender.receive(ACK, pack_ack(Ack(0, 0, 0)), 0.1)
    assert not sender.done


def test_datagrams_before_the_path_is_known_are_dropped() -> None:
    near, _ = Copy(b"x" * 500).ends()
    near.receive(Header(1, 1, 0, 0, Kind.ACK | FROM_SERVER), pack_ack(Ack(0, 0, 0)), 1.0)
    assert near.transfer is None
