"""The UDP port, seen by a client that knows section 11 of WIRE.md alone, and by its enemies."""

import os
import random
import socket
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import blake3
import pytest

from ftpkit import Server
from ftpkit.server.limits import Limits
from tests.support.logs import Log
from tests.support.raw import Raw, Reply
from tests.support.trees import published
from tests.support.udp import (
    ACK,
    DATA,
    ECHO,
    END,
    PIECE,
    PROBE,
    SERVER,
    RawDatagrams,
    ack_payload,
    pieces_of,
    port_taken_for_udp,
    pull,
    push,
)

KIB, MIB = 1024, 1024 * 1024
BLOCK = 64 * KIB
TOTAL = 3 * BLOCK + 100

Open = Callable[..., RawDatagrams]


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def blocks_of(data: bytes, block: int = BLOCK) -> dict[int, bytes]:
    return {n: data[n * block : (n + 1) * block] for n in range(-(-len(data) // block))}


def sizes_of(data: bytes, block: int = BLOCK) -> dict[int, int]:
    return {number: len(body) for number, body in blocks_of(data, block).items()}


class Uploading:
    """An upload that was begun, and its session."""

    def __init__(self, raw: Raw, total: int, name: str = "f", block: int = BLOCK) -> None:
        self.raw, self.total, self.name, self.block = raw, total, name, block
        self.id = self.begin()["upload"]

    def begin(self) -> Reply:
        return self.raw.granted("begin", name=self.name, total=self.total, block=self.block)

    def push(self) -> Reply:
        return self.raw.granted("push", upload=self.id)

    def held(self) -> set[int]:
        """The blocks that the server says it holds."""
        records = struct.iter_unpack("!QI32s", self.begin().body)
        return {offset // self.block for offset, _, _ in records}

    def commit(self) -> Reply:
        return self.raw.granted("commit", upload=self.id, total=self.total)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def open_udp(stack: ExitStack, server: Server) -> Open:
    """Make the client's end of a session, which goes with the test."""

    def make(reply: Reply, **keys: Any) -> RawDatagrams:
        return stack.enter_context(
            RawDatagrams.of(keys.get("address", server.address), reply.header)
        )

    return make


@pytest.fixture
def other_socket(stack: ExitStack) -> Callable[[RawDatagrams], RawDatagrams]:
    """Another socket of the same client: its address has changed, or somebody has its key."""

    def make(udp: RawDatagrams) -> RawDatagrams:
        other = RawDatagrams(udp.address, udp.session, b"\0" * 16, udp.numbers)
        other._cipher = udp._cipher
        return stack.enter_context(other)

    return make


def pulling(raw: Raw, root: Path, data: bytes, **keys: Any) -> Reply:
    """Put a file on the server, and open a session that brings it."""
    (root / "f").write_bytes(data)
    return raw.granted("pull", **asked(raw, data, **keys))


def asked(raw: Raw, data: bytes, **keys: Any) -> dict[str, Any]:
    version = raw.granted("stat", name="f")["version"]
    blocks = -(-len(data) // BLOCK)
    return {"name": "f", "version": version, "block": BLOCK, "ranges": [[0, blocks]], **keys}


# What is meant to work


@pytest.mark.parametrize("which", [0, 1], ids=["v4", "v6"])
def test_a_whole_push(server: Server, root: Path, stack: ExitStack, which: int) -> None:
    if len(server.addresses) <= which:
        pytest.skip("there is no IPv6 here")
    address = server.addresses[which]
    raw, data = stack.enter_context(Raw(address)), noise(TOTAL)
    assert "datagrams" in raw.granted("hello", version=1)["features"]
    upload = Uploading(raw, TOTAL)
    udp = stack.enter_context(RawDatagrams.of(address, upload.push().header))
    udp.come_in()
    push(udp, blocks_of(data))
    assert upload.held() == {0, 1, 2, 3}
    assert upload.commit()["total"] == TOTAL
    assert published(root) == {"f": data}


@pytest.mark.parametrize("which", [0, 1], ids=["v4", "v6"])
def test_a_whole_pull(server: Server, root: Path, stack: ExitStack, which: int) -> None:
    if len(server.addresses) <= which:
        pytest.skip("there is no IPv6 here")
    address = server.addresses[which]
    raw, data = stack.enter_context(Raw(address)), noise(TOTAL)
    udp = stack.enter_context(RawDatagrams.of(address, pulling(raw, root, data).header))
    udp.come_in()
    assert pull(udp, sizes_of(data)).blocks() == blocks_of(data)


def test_a_pull_through_loss(raw: Raw, root: Path, open_udp: Open) -> None:
    data, dice = noise(TOTAL), random.Random(7)
    udp = open_udp(pulling(raw, root, data))
    udp.come_in()
    pulled = pull(udp, sizes_of(data), commit=lambda heard: dice.random() > 0.2)
    assert pulled.blocks() == blocks_of(data)


def test_a_pull_of_some_blocks(raw: Raw, root: Path, open_udp: Open) -> None:
    data = noise(TOTAL)
    udp = open_udp(pulling(raw, root, data, ranges=[[3, 4], [1, 2]]))
    udp.come_in()
    pulled = pull(udp, {1: BLOCK, 3: 100})
    assert pulled.blocks() == {1: blocks_of(data)[1], 3: blocks_of(data)[3]}


def test_a_push_requests_only_missing_blocks(raw: Raw, root: Path, open_udp: Open) -> None:
    data = noise(TOTAL)
    upload = Uploading(raw, TOTAL)
    digest = f"blake3:{blake3.blake3(data[:BLOCK]).hexdigest()}"
    raw.granted("write", data[:BLOCK], upload=upload.id, offset=0, digest=digest)
    udp = open_udp(upload.push())
    udp.come_in()
    # Of what is held already nothing more is wanted: it is acknowledged, and dropped.
    push(udp, {0: noise(BLOCK, 2)} | {n: body for n, body in blocks_of(data).items() if n})
    upload.commit()
    assert published(root) == {"f": data}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1"])
def test_a_server_on_all_interfaces_answers_from_the_address_that_was_probed(
    root: Path, stack: ExitStack, host: str
) -> None:
    """Its socket is of IPv6, and most clients are not; and it may have many addresses."""
    server = stack.enter_context(Server(root, host="*", port=0))
    address = (host, server.address.port)
    data = noise(TOTAL)
    try:
        raw = stack.enter_context(Raw(address))
    except OSError:
        pytest.skip(f"{host} is no address here")
    upload = Uploading(raw, TOTAL)
    udp = stack.enter_context(RawDatagrams.of(address, upload.push().header))
    echo, _ = udp.echo_of(udp.probe())
    assert echo.address[0] == host
    udp.come_in()
    push(udp, blocks_of(data))
    upload.commit()
    assert published(root) == {"f": data}
    pulled_by = stack.enter_context(RawDatagrams.of(address, pulling(raw, root, data).header))
    pulled_by.come_in()
    assert pull(pulled_by, sizes_of(data)).blocks() == blocks_of(data)


def test_a_damaged_block_is_not_held_and_the_others_are(raw: Raw, open_udp: Open) -> None:
    data = noise(TOTAL)
    upload = Uploading(raw, TOTAL)
    udp = open_udp(upload.push())
    udp.come_in()
    for number, body in blocks_of(data).items():
        for offset, piece in pieces_of(body):
            damaged = bytes([piece[0] ^ 1]) + piece[1:]
            piece = damaged if (number, offset) == (1, 0) else piece
            udp.send(udp.encrypted(DATA, piece, block=number, offset=offset))
    udp.settled()
    assert upload.held() == {0, 2, 3}


# What changes nothing


def forgeries(udp: RawDatagrams, valid: bytes) -> Iterator[bytes]:
    """Forged datagrams, made from ``valid`` without its key."""
    for bit in range(0, 8 * min(len(valid), 80)):
        changed = bytearray(valid)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)
    for length in (0, 1, 16, 17, 32, 33, len(valid) - 1):
        yield valid[:length]
    yield valid + b"\0"
    yield valid + valid
    with RawDatagrams(udp.address, udp.session, bytes(16)) as wrong:
        for kind in range(256):
            yield wrong.encrypted(kind, bytes(27))
        for size in (60, 1400, 60_000):
            yield wrong.probe(size)
        yield wrong.encrypted(DATA, bytes(PIECE), block=0, offset=0)


def foreign(udp: RawDatagrams) -> Iterator[bytes]:
    """Datagrams that were encrypted with the key, but are not for this session or direction."""
    payload = bytes(27)
    for kind in (DATA, ACK, PROBE, ECHO, END):
        yield udp.encrypted(kind | SERVER, payload)
    yield udp.encrypted(5, payload)
    yield udp.encrypted(127, payload)
    yield udp.encrypted(PROBE, payload, number=0)
    yield udp.encrypted(END, b"")
    yield udp.encrypted(ECHO, payload)


def test_forged_datagrams_change_nothing(
    raw: Raw, root: Path, open_udp: Open, other_socket: Callable[[RawDatagrams], RawDatagrams]
) -> None:
    data = noise(TOTAL)
    upload = Uploading(raw, TOTAL)
    udp = open_udp(upload.push())
    unproven = other_socket(udp)
    first = udp.probe()
    for forged in forgeries(udp, first):
        unproven.send(forged)
    _, proof = udp.echo_of(udp.probe())
    second = udp.probe(proof=proof, piece=PIECE)
    for forged in forgeries(udp, second):
        unproven.send(forged)
        udp.send(forged)
    udp.echo_of(second)
    piece = udp.encrypted(DATA, data[:PIECE], block=0, offset=0)
    for forged in (*forgeries(udp, piece), *foreign(udp)):
        unproven.send(forged)
        udp.send(forged)
    assert udp.settled() == []
    assert unproven.heard() == []
    push(udp, blocks_of(data))
    upload.commit()
    assert published(root) == {"f": data}


def test_forged_datagrams_do_not_change_a_pull(
    raw: Raw, root: Path, open_udp: Open, other_socket: Callable[[RawDatagrams], RawDatagrams]
) -> None:
    data = noise(TOTAL)
    udp = open_udp(pulling(raw, root, data))
    unproven = other_socket(udp)
    udp.come_in()
    ack = udp.encrypted(ACK, ack_payload({1}))
    for forged in (*forgeries(udp, ack), *foreign(udp)):
        unproven.send(forged)
        udp.send(forged)
    assert pull(udp, sizes_of(data)).blocks() == blocks_of(data)
    assert unproven.heard() == []


def test_replayed_datagrams_change_nothing(
    raw: Raw, root: Path, open_udp: Open, other_socket: Callable[[RawDatagrams], RawDatagrams]
) -> None:
    data, kept = noise(TOTAL), list[bytes]()
    upload = Uploading(raw, TOTAL)
    udp = open_udp(upload.push())
    unproven = other_socket(udp)
    _, proof = udp.echo_of(udp.probe())
    kept.append(udp.probe(proof=proof, piece=PIECE))
    udp.echo_of(kept[0])
    for offset, piece in pieces_of(blocks_of(data)[0]):
        kept.append(udp.send(udp.encrypted(DATA, piece, block=0, offset=offset)))
    udp.settled()
    assert upload.held() == {0}
    for again in kept:
        unproven.send(again)
        udp.send(again)
    udp.settled()
    assert unproven.heard() == []
    push(udp, {n: body for n, body in blocks_of(data).items() if n})
    upload.commit()
    assert published(root) == {"f": data}
    # And none of it means anything to the next session.
    following = Uploading(raw, TOTAL)
    udp = open_udp(following.push())
    udp.come_in()
    for old in kept:
        udp.send(old)
    assert [heard for heard in udp.settled() if heard.kind == ACK] == []
    assert following.held() == set()


def test_a_flood_of_forged_datagrams_takes_no_memory(
    raw: Raw, open_udp: Open, other_socket: Callable[[RawDatagrams], RawDatagrams]
) -> None:
    upload = Uploading(raw, TOTAL)
    udp = open_udp(upload.push())
    udp.come_in()
    unproven = other_socket(udp)
    dice = random.Random(3)

    def flood() -> None:
        for number in range(1, 2000):
            header = struct.pack("!IIIIB", udp.session, number, 0, 0, number % 5)
            udp.send(header + dice.randbytes(100))
            unproven.send(header + dice.randbytes(100))
            if number % 100 == 0:
                udp.settled()

    flood()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        flood()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 512 * KIB


def test_an_unknown_session_gets_silence(
    raw: Raw, open_udp: Open, stack: ExitStack, server: Server
) -> None:
    udp = open_udp(Uploading(raw, TOTAL).push())
    unknown = stack.enter_context(
        RawDatagrams(server.address, (udp.session + 1) % 2**32, bytes(16))
    )
    for kind in range(5):
        unknown.send(unknown.encrypted(kind, bytes(27)))
    unknown.send(unknown.probe(1400, proof=1, piece=PIECE))
    udp.echo_of(udp.probe())
    assert unknown.heard() == []


# Nothing goes to an address that has not proven itself


def test_an_unproven_address_gets_only_echoes(
    raw: Raw, root: Path, open_udp: Open, other_socket: Callable[[RawDatagrams], RawDatagrams]
) -> None:
    data = noise(TOTAL)
    udp = open_udp(pulling(raw, root, data))
    unproven = other_socket(udp)
    _, proof = udp.echo_of(udp.probe())
    _, other_proof = unproven.echo_of(unproven.probe())
    assert proof != other_proof
    sent = unproven.sent
    got = 0
    # A proof for another address, a piece that is too short, all kinds of lengths.
    for size in (47, 60, 1000, 20_000):
        for wrong, piece in ((proof, PIECE), (0, PIECE), (other_proof, 511), (other_proof, 0)):
            echo, _ = unproven.echo_of(unproven.probe(size, proof=wrong, piece=piece))
            assert echo.size == size
            got += echo.size
            unproven.send(unproven.encrypted(ACK, ack_payload(set())))
    assert got <= unproven.sent - sent
    assert unproven.heard() == []
    assert udp.heard() == []
    udp.come_in()
    assert pull(udp, sizes_of(data)).blocks() == blocks_of(data)
    assert unproven.heard() == []


def test_a_replayed_probe_from_another_address_is_not_answered(
    raw: Raw, root: Path, open_udp: Open, other_socket: Callable[[RawDatagrams], RawDatagrams]
) -> None:
    data = noise(TOTAL)
    udp = open_udp(pulling(raw, root, data))
    unproven = other_socket(udp)
    first = udp.probe()
    _, proof = udp.echo_of(first)
    second = udp.probe(1400, proof=proof, piece=PIECE)
    udp.echo_of(second)
    for _ in range(50):
        unproven.send(first)
        unproven.send(second)
    assert pull(udp, sizes_of(data)).blocks() == blocks_of(data)
    assert unproven.heard() == []


def test_a_probe_that_never_arrived_is_echoed_to_another_address(
    raw: Raw, root: Path, open_udp: Open, other_socket: Callable[[RawDatagrams], RawDatagrams]
) -> None:
    """Who takes a probe from the line and sends it from where it wants gets as much back."""
    data = noise(TOTAL)
    udp = open_udp(pulling(raw, root, data))
    unproven = other_socket(udp)
    _, proof = udp.echo_of(udp.probe())
    taken = udp.probe(proof=proof, piece=PIECE)
    echo, _ = unproven.echo_of(taken)
    assert echo.size == len(taken)
    udp.come_in()
    assert pull(udp, sizes_of(data)).blocks() == blocks_of(data)
    assert unproven.heard() == []


def test_the_end_datagram_goes_to_proven_addresses_only(
    raw: Raw, open_udp: Open, other_socket: Callable[[RawDatagrams], RawDatagrams]
) -> None:
    udp = open_udp(Uploading(raw, TOTAL).push())
    udp.come_in()
    udp.send(udp.encrypted(DATA, bytes(PIECE), offset=2**32 - 1))
    assert ended(udp)
    unproven = other_socket(udp)
    _, proof = unproven.echo_of(unproven.probe())
    unproven.send(unproven.probe(proof=proof, piece=PIECE))
    assert ended(unproven)


def ended(udp: RawDatagrams) -> bool:
    """Whether the server says that it goes on no further."""
    while (heard := udp.hear()) is not None:
        if heard.kind == END:
            assert heard.payload == b""
            return True
    return False


# A client whose address changes


def test_a_pull_follows_its_client_to_another_address(
    raw: Raw, root: Path, open_udp: Open, other_socket: Callable[[RawDatagrams], RawDatagrams]
) -> None:
    data = noise(20 * BLOCK)
    udp = open_udp(pulling(raw, root, data))
    moved = other_socket(udp)
    _, proof = udp.echo_of(udp.probe())
    kept = udp.probe(proof=proof, piece=PIECE)
    udp.echo_of(kept)
    first = udp.hear()
    assert first is not None
    assert first.kind == DATA
    moved.come_in()
    # From here on all goes there; what was under way has come.
    while (heard := moved.hear()) is not None and heard.kind != DATA:
        pass
    udp.heard()
    udp.send(kept)
    lost = pull(moved, sizes_of(data))
    assert lost.blocks() == blocks_of(data)
    assert udp.heard() == []


def test_a_push_follows_its_client_to_another_address(
    raw: Raw, root: Path, open_udp: Open, other_socket: Callable[[RawDatagrams], RawDatagrams]
) -> None:
    data = noise(TOTAL)
    upload = Uploading(raw, TOTAL)
    udp = open_udp(upload.push())
    udp.come_in()
    push(udp, {0: blocks_of(data)[0]})
    moved = other_socket(udp)
    # Before the new address is proven its pieces are nothing.
    for offset, piece in pieces_of(blocks_of(data)[1]):
        moved.send(moved.encrypted(DATA, piece, block=1, offset=offset))
    moved.echo_of(moved.probe())
    assert moved.heard() == []
    moved.come_in()
    push(moved, {n: body for n, body in blocks_of(data).items() if n})
    assert [heard for heard in udp.heard() if heard.kind != ACK] == []
    upload.commit()
    assert published(root) == {"f": data}


def test_pieces_right_behind_the_proof_are_not_lost(raw: Raw, open_udp: Open) -> None:
    """They may come before the session's own socket hears its address."""
    data = noise(TOTAL)
    upload = Uploading(raw, TOTAL)
    udp = open_udp(upload.push())
    _, proof = udp.echo_of(udp.probe())
    udp.send(udp.probe(proof=proof, piece=PIECE))
    for number in (0, 3):
        for offset, piece in pieces_of(blocks_of(data)[number]):
            udp.send(udp.encrypted(DATA, piece, block=number, offset=offset))
    push(udp, {0: blocks_of(data)[0], 3: blocks_of(data)[3]})
    assert upload.held() == {0, 3}


# Invalid datagrams from a client that has the key

OUTSIDE: dict[str, dict[str, Any]] = {
    "behind the block": {"payload": bytes(PIECE), "offset": BLOCK + 32},
    "over its end": {"payload": bytes(PIECE), "offset": BLOCK},
    "far behind": {"payload": bytes(PIECE), "offset": 2**32 - 1},
    "too long": {"payload": bytes(2000), "block": 3, "offset": 0},
    "tiny": {"payload": bytes(511), "offset": 0},
    "empty": {"payload": b"", "offset": 0},
}


@pytest.mark.parametrize("nonsense", OUTSIDE)
def test_an_invalid_piece_ends_only_its_session(
    connect: Callable[[], Raw], root: Path, open_udp: Open, nonsense: str, log: Log
) -> None:
    upload, other = Uploading(connect(), TOTAL), Uploading(connect(), TOTAL, "other")
    udp, fine = open_udp(upload.push()), open_udp(other.push())
    for each in (udp, fine):
        each.come_in()
    udp.send(udp.encrypted(DATA, **OUTSIDE[nonsense]))
    assert ended(udp)
    # A repeated request gets the same refusal, and the connection stays open.
    udp.come_out()
    assert upload.held() == set()
    data = noise(TOTAL)
    push(fine, blocks_of(data))
    other.commit()
    assert published(root) == {"other": data}
    again = open_udp(upload.push())
    again.come_in()
    push(again, blocks_of(data))
    upload.commit()
    assert log.so_far("error") == []


ACKS = {
    "too short": b"",
    "cut short": bytes(11),
    "too long": struct.pack("!IQ", 1, 0) + bytes(512) + b"\1",
    "of what was never sent": struct.pack("!IQ", 2**32 - 1, 0) + b"\1",
    "without its largest": struct.pack("!IQ", 1, 0) + b"\2",
    "of number 0": struct.pack("!IQ", 0, 0) + b"\1",
    "with 4096 bits": struct.pack("!IQ", 2**31, 2**64 - 1) + b"\xff" * 512,
}


@pytest.mark.parametrize("nonsense", ACKS)
def test_an_invalid_acknowledgement_ends_only_its_session(
    connect: Callable[[], Raw], root: Path, open_udp: Open, nonsense: str, log: Log
) -> None:
    raw, data = connect(), noise(TOTAL)
    udp = open_udp(pulling(raw, root, data))
    fine = open_udp(connect().granted("pull", **asked(raw, data)))
    udp.come_in()
    udp.send(udp.encrypted(ACK, ACKS[nonsense]))
    assert ended(udp)
    fine.come_in()
    assert pull(fine, sizes_of(data)).blocks() == blocks_of(data)
    again = open_udp(raw.granted("pull", **asked(raw, data)))
    again.come_in()
    assert pull(again, sizes_of(data)).blocks() == blocks_of(data)
    assert log.so_far("error") == []


def test_an_invalid_probe_is_ignored(raw: Raw, root: Path, open_udp: Open) -> None:
    data = noise(TOTAL)
    udp = open_udp(pulling(raw, root, data))
    for length in range(14):
        udp.send(udp.encrypted(PROBE, bytes(length)))
    udp.come_in()
    assert pull(udp, sizes_of(data)).blocks() == blocks_of(data)


@pytest.mark.parametrize("piece", [512, 1400, 32_000, 60_000, 65_535])
@pytest.mark.parametrize("rtt_us", [0, 1, 2**32 - 1])
def test_a_probe_with_extreme_values_is_harmless(
    connect: Callable[[], Raw], root: Path, open_udp: Open, piece: int, rtt_us: int, log: Log
) -> None:
    raw, data = connect(), noise(TOTAL)
    udp = open_udp(pulling(raw, root, data))
    _, proof = udp.echo_of(udp.probe())
    udp.echo_of(udp.probe(proof=proof, piece=piece, rtt_us=rtt_us))
    for _ in range(3):
        udp.hear(0.1)
    fine = open_udp(connect().granted("pull", **asked(raw, data)))
    fine.come_in()
    assert pull(fine, sizes_of(data)).blocks() == blocks_of(data)
    assert log.so_far("error") == []


def test_datagrams_with_huge_numbers_are_harmless(raw: Raw, open_udp: Open, log: Log) -> None:
    data = noise(TOTAL)
    upload = Uploading(raw, TOTAL)
    udp = open_udp(upload.push())
    udp.come_in()
    piece = next(pieces_of(data[:BLOCK]))[1]
    for number in (2**31, 2**32 - 1, 5, 2**32 - 2, 2**32 - 4096):
        udp.send(udp.encrypted(DATA, piece, number=number))
    udp.send(udp.encrypted(DATA, piece, number=2**32 - 3, block=2**32 - 1, offset=2**32 - 1))
    udp.settled()
    # The highest probe is the last that is answered.
    udp.echo_of(udp.probe(number=2**32 - 1))
    assert upload.held() == set()
    again = open_udp(upload.push())
    again.come_in()
    push(again, blocks_of(data))
    assert upload.held() == {0, 1, 2, 3}
    assert log.so_far("error") == []


def test_the_number_of_open_blocks_is_limited(raw: Raw, root: Path, open_udp: Open) -> None:
    data = noise(20 * BLOCK)
    upload = Uploading(raw, len(data))
    udp = open_udp(upload.push())
    udp.come_in()
    for number, body in blocks_of(data).items():
        udp.send(udp.encrypted(DATA, next(pieces_of(body))[1], block=number))
    largest = max(
        struct.unpack_from("!I", heard.payload)[0]
        for heard in [*udp.settled(), *iter(lambda: udp.hear(0.5), None)]
        if heard.kind == ACK
    )
    assert largest == 16
    # Those that found no room come again, when there is some.
    push(udp, blocks_of(data))
    upload.commit()
    assert published(root) == {"f": data}


def test_a_large_block_takes_as_much_memory_as_has_arrived(raw: Raw, open_udp: Open) -> None:
    block = 64 * MIB
    upload = Uploading(raw, block, block=block)
    udp = open_udp(upload.push())
    udp.come_in()
    before = resident()
    udp.send(udp.encrypted(DATA, bytes(PIECE)))
    udp.settled()
    assert resident() - before < 16 * MIB


def resident() -> int:
    path = Path("/proc/self/statm")
    if not path.exists():
        pytest.skip("this system does not tell")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# What is asked for in the conversation


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"rate": 0}, "bad-request"),
        ({"ranges": [[0, 5]]}, "bad-request"),
        ({"ranges": [[2**62, 2**63 - 1]]}, "bad-request"),
        ({"ranges": [[0, 1, 2]]}, "bad-request"),
        ({"ranges": [[1, 1]]}, "bad-request"),
        ({"ranges": [[-1, 1]]}, "bad-request"),
        ({"ranges": [["0", 1]]}, "bad-request"),
        ({"ranges": None}, "bad-request"),
        ({"block": 1000}, "bad-request"),
        ({"version": "another"}, "changed"),
        ({"name": "missing"}, "not-found"),
    ],
)
def test_an_invalid_pull_is_refused(raw: Raw, root: Path, keys: dict[str, Any], code: str) -> None:
    (root / "f").write_bytes(noise(TOTAL))
    assert raw.refused("pull", **asked(raw, noise(TOTAL), **keys)) == code
    assert raw.ask("ping").ok


def test_blocks_that_are_requested_twice_arrive_once(raw: Raw, root: Path, open_udp: Open) -> None:
    data = noise(TOTAL)
    udp = open_udp(pulling(raw, root, data, ranges=[[0, 4], [0, 4], [2, 3]]))
    udp.come_in()
    assert pull(udp, sizes_of(data)).blocks() == blocks_of(data)


@pytest.mark.parametrize("ranges", [[[0, 1 << 20]], [[0, 1 << 14]] * 64])
def test_more_blocks_than_a_session_carries_are_refused(
    raw: Raw, root: Path, ranges: list[list[int]]
) -> None:
    with open(root / "f", "wb") as file:
        file.truncate((1 << 20) * BLOCK)
    version = raw.granted("stat", name="f")["version"]
    code = raw.refused("pull", name="f", version=version, block=BLOCK, ranges=ranges)
    assert code == "bad-request"


def test_a_push_needs_an_upload_of_known_length(raw: Raw) -> None:
    assert raw.refused("push", upload="nonsense") == "not-found"
    upload = raw.granted("begin", name="f", total=None, block=BLOCK)["upload"]
    assert raw.refused("push", upload=upload) == "bad-request"


def test_a_file_that_changes_while_it_is_pulled_ends_the_session(
    raw: Raw, root: Path, open_udp: Open
) -> None:
    data = noise(40 * BLOCK)
    udp = open_udp(pulling(raw, root, data))
    udp.come_in()
    with open(root / "f", "r+b") as file:
        file.write(b"changed")
    heard = udp.hear()
    numbers = set[int]()
    while heard is not None and heard.kind != END:
        if heard.kind == DATA:
            numbers.add(heard.number)
            udp.send(udp.encrypted(ACK, ack_payload(numbers)))
        heard = udp.hear()
    assert heard is not None


# The end of a session


def test_a_udp_session_ends_with_its_connection(
    connect: Callable[[], Raw], root: Path, open_udp: Open, log: Log
) -> None:
    ending, staying = connect(), connect()
    data = noise(40 * BLOCK)
    udp = open_udp(pulling(ending, root, data))
    other = open_udp(staying.granted("pull", **asked(staying, data)))
    upload = Uploading(ending, TOTAL)
    udp.come_in()
    ending.close()
    log.wait_for("connection")
    while (heard := udp.hear(0.0)) is not None:
        assert heard.kind in (DATA, ECHO)
    udp.send(udp.probe())
    other.echo_of(other.probe())
    assert udp.heard() == []
    assert upload.id


@pytest.mark.parametrize("proven", [True, False])
def test_a_new_push_or_pull_replaces_the_previous_one(
    raw: Raw, root: Path, open_udp: Open, proven: bool
) -> None:
    data = noise(TOTAL)
    upload = Uploading(raw, TOTAL)
    first = open_udp(upload.push())
    if proven:
        first.come_in()
        push(first, {1: blocks_of(data)[1]})
    second = open_udp(upload.push())
    first.send(first.probe())
    first.send(first.encrypted(DATA, bytes(PIECE)))
    second.come_in()
    assert [heard for heard in first.heard() if heard.kind not in (ACK, END)] == []
    push(second, blocks_of(data))
    upload.commit()
    third = open_udp(raw.granted("pull", **asked(raw, data)))
    third.come_in()
    assert pull(third, sizes_of(data)).blocks() == blocks_of(data)
    assert published(root) == {"f": data}


def test_an_upload_that_is_committed_or_aborted_during_its_udp_session(
    raw: Raw, root: Path, open_udp: Open, log: Log
) -> None:
    data = noise(TOTAL)
    for end in ("abort", "commit"):
        upload = Uploading(raw, TOTAL)
        udp = open_udp(upload.push())
        udp.come_in()
        push(udp, {n: body for n, body in blocks_of(data).items() if n < 3})
        if end == "commit":
            push(udp, {3: blocks_of(data)[3]})
            upload.commit()
        else:
            raw.granted("abort", upload=upload.id)
            for offset, piece in pieces_of(blocks_of(data)[3]):
                udp.send(udp.encrypted(DATA, piece, block=3, offset=offset))
            assert ended(udp)
        assert raw.ask("ping").ok
    assert published(root) == {"f": data}
    assert log.so_far("error") == []


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="it takes descriptors away")
def test_without_free_descriptors_the_session_ends_and_the_port_stays_open(
    raw: Raw, connect: Callable[[], Raw], root: Path, open_udp: Open
) -> None:
    resource = pytest.importorskip("resource")
    data = noise(TOTAL)
    udp = open_udp(pulling(raw, root, data))
    _, proof = udp.echo_of(udp.probe())
    with open(os.devnull, "rb") as lowest:
        free = lowest.fileno()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        udp.send(udp.probe(proof=proof, piece=PIECE))
        assert ended(udp)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    again = open_udp(raw.granted("pull", **asked(raw, data)))
    again.come_in()
    assert pull(again, sizes_of(data)).blocks() == blocks_of(data)


def test_many_sessions_begin_and_end_at_once(server: Server, root: Path, stack: ExitStack) -> None:
    """With the check for leaked threads and descriptors, which follows each test."""
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(4):
                data = noise(TOTAL, number)
                with Raw(server.address) as raw:
                    upload = Uploading(raw, TOTAL, f"f{number}")
                    with RawDatagrams.of(server.address, upload.push().header) as udp:
                        if turn == 0:
                            continue
                        udp.come_in()
                        if turn == 1:
                            udp.send(udp.encrypted(DATA, bytes(PIECE)))
                            continue
                        push(udp, blocks_of(data))
                    if turn == 3:
                        upload.commit()
        except BaseException as error:  # noqa: BLE001  the test looks at it
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert published(root) == {f"f{number}": noise(TOTAL, number) for number in range(8)}


# Sessions and the patience of the server


def test_a_connection_is_not_idle_while_its_datagrams_flow(root: Path, stack: ExitStack) -> None:
    server = stack.enter_context(Server(root, port=0, limits=Limits(idle_timeout_s=0.5)))
    raw, data = stack.enter_context(Raw(server.address)), noise(TOTAL)
    upload = Uploading(raw, TOTAL)
    udp = stack.enter_context(RawDatagrams.of(server.address, upload.push().header))
    udp.come_in()
    for number, body in blocks_of(data).items():
        for index, (offset, piece) in enumerate(pieces_of(body)):
            udp.send(udp.encrypted(DATA, piece, block=number, offset=offset))
            if index % 33 == 0:
                udp.hear(0.2)
    udp.settled()
    assert upload.held() == {0, 1, 2, 3}
    upload.commit()
    # And then it is.
    assert raw.receive().code == "timeout"


def test_a_stopping_server_lets_a_push_finish(root: Path, stack: ExitStack) -> None:
    server = Server(root, port=0)
    server.start()
    stopping = threading.Thread(target=server.stop)
    data = noise(TOTAL)
    with Raw(server.address) as raw, Raw(server.address) as idle:
        upload = Uploading(raw, TOTAL)
        udp = stack.enter_context(RawDatagrams.of(server.address, upload.push().header))
        udp.come_in()
        push(udp, {0: blocks_of(data)[0]})
        stopping.start()
        assert idle.receive().code == "shutting-down"
        push(udp, blocks_of(data))
        upload.commit()
        assert raw.receive().code == "shutting-down"
    stopping.join()
    assert published(root) == {"f": data}


def test_a_stopping_server_lets_a_pull_finish_and_then_waits_no_longer(
    root: Path, stack: ExitStack
) -> None:
    server = Server(root, port=0)
    server.start()
    stopping = threading.Thread(target=server.stop, args=(600.0,))
    data = noise(TOTAL)
    with Raw(server.address) as raw, Raw(server.address) as idle:
        assert idle.ask("ping").ok
        udp = stack.enter_context(RawDatagrams.of(server.address, pulling(raw, root, data).header))
        udp.come_in()
        stopping.start()
        assert idle.receive().code == "shutting-down"
        assert pull(udp, sizes_of(data)).blocks() == blocks_of(data)
        # Nothing more is asked for.
        assert raw.receive().code == "shutting-down"
    stopping.join()


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_server_that_stops_at_once_ends_its_sessions(
    root: Path, stack: ExitStack, direction: str
) -> None:
    server = Server(root, port=0)
    server.start()
    with Raw(server.address) as raw:
        data = noise(40 * BLOCK)
        reply = pulling(raw, root, data) if direction == "down" else Uploading(raw, TOTAL).push()
        udp = stack.enter_context(RawDatagrams.of(server.address, reply.header))
        udp.come_in()
        udp.send(udp.encrypted(DATA, bytes(PIECE)))
        server.stop(grace_s=0.0)
        assert raw.rest() == b""


def test_the_outcome_of_udp_transfers_is_logged(
    connect: Callable[[], Raw], root: Path, open_udp: Open, log: Log
) -> None:
    data, raw = noise(TOTAL), connect()
    upload = Uploading(raw, TOTAL, "up")
    udp = open_udp(upload.push())
    udp.come_in()
    push(udp, blocks_of(data))
    upload.commit()
    line = log.wait_for("transfer", direction="up")
    assert (line["bytes"], line["outcome"]) == (TOTAL, "ok")
    udp = open_udp(pulling(raw, root, data))
    udp.come_in()
    pull(udp, sizes_of(data))
    udp.settled()
    raw.granted("stat", name="f")
    line = log.wait_for("transfer", direction="down")
    assert (line["bytes"], line["outcome"]) == (TOTAL, "ok")
    # A session without a client and one that was interrupted are unfinished.
    raw.granted("pull", **asked(raw, data))
    raw.granted("stat", name="f")
    line = log.wait_for("transfer", direction="down")
    assert (line["bytes"], line["outcome"]) == (0, "unfinished")
    udp = open_udp(raw.granted("pull", **asked(raw, data)))
    udp.come_in()
    udp.send(udp.encrypted(ACK, b""))
    assert ended(udp)
    raw.granted("stat", name="f")
    assert log.wait_for("transfer", direction="down")["outcome"] == "unfinished"


# The port


def test_a_server_without_datagrams_opens_no_udp_port(root: Path) -> None:
    with Server(root, port=0, datagrams=False) as server, Raw(server.address) as raw:
        assert "datagrams" not in raw.granted("hello", version=1)["features"]
        upload = Uploading(raw, TOTAL)
        assert raw.refused("push", upload=upload.id) == "unsupported"
        (root / "f").write_bytes(noise(TOTAL))
        assert raw.refused("pull", **asked(raw, noise(TOTAL))) == "unsupported"
        assert raw.ask("ping").ok
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(server.address)


def test_a_udp_port_in_use_is_named_as_udp(root: Path) -> None:
    with port_taken_for_udp() as port:
        server = Server(root, port=port)
        with pytest.raises(OSError, match="UDP") as caught:
            server.start()
        assert "in use" in str(caught.value.strerror)
        # TCP is free again, and enough where UDP is not wanted.
        with Server(root, port=port, datagrams=False) as plain, Raw(plain.address) as raw:
            assert raw.ask("ping").ok


def test_port_0_chooses_a_port_free_for_tcp_and_udp(
    root: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system picks one that is free for TCP; somebody else may have it for UDP."""
    bind = socket.socket.bind
    taken: list[int] = []

    class Unlucky(socket.socket):
        """The first that wants the port of another for UDP finds it taken."""

        def bind(self, address: Any) -> None:
            if self.type == socket.SOCK_DGRAM and address[1] and not taken:
                taken.append(address[1])
                other = stack.enter_context(socket.socket(self.family, socket.SOCK_DGRAM))
                bind(other, address)
            super().bind(address)

    monkeypatch.setattr(socket, "socket", Unlucky)
    with Server(root, port=0) as server, Raw(server.address) as raw:
        assert taken
        assert taken != [server.address.port]
        upload = Uploading(raw, TOTAL)
        udp = stack.enter_context(RawDatagrams.of(server.address, upload.push().header))
        udp.come_in()
