"""A connection that is cut, frozen or damaged, at every byte that matters."""

import contextlib
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ftpkit import Grant, Permission, Tokens, Url
from ftpkit.client import Client
from ftpkit.client.transfer import upload
from ftpkit.client.transfer.blocks import BLOCK
from ftpkit.errors import Code, FtpkitError, RefusedError, SourceChangedError, StallTimeoutError
from ftpkit.server import Server
from tests.faults.conftest import MIB, Eager, Serve, left_over, noise, quiet, settled, visible
from tests.faults.relay import (
    WAIT_S,
    Cut,
    Fault,
    Flip,
    Freeze,
    Hold,
    Plan,
    Relay,
    Rubbish,
    Swallow,
)

RETRY_S = 20.0
# More than the headers of any conversation here.
HEADERS = 16 * 1024

Faulty = Callable[[int], Plan]

# Three tests share the bytes of a conversation; the first one has its last byte.
every_byte = pytest.mark.parametrize(
    "behind", [0, *(pytest.param(behind, marks=pytest.mark.slow) for behind in (1, 2))]
)


def third(length: int, behind: int) -> range:
    """Return each third place in ``length`` bytes, from ``behind`` their end to their start."""
    return range(length - behind, -1, -3)


def up(*faults: Fault) -> Plan:
    return Plan(up=faults)


def down(*faults: Fault) -> Plan:
    return Plan(down=faults)


def client_of(relay: Relay, *, timeout_s: float = 10.0, retry_for_s: float = RETRY_S) -> Eager:
    return Eager(relay.address, timeout_s=timeout_s, retry_for_s=retry_for_s)


@pytest.fixture
def blocks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let also the smallest file be begun, written and committed."""
    monkeypatch.setattr(upload, "SMALL_FILE", 0)


# Every byte of a small conversation


class Small:
    """A put and a get of a few bytes over a relay, once for each plan."""

    def __init__(self, server: Server, relay: Relay, root: Path, here: Path) -> None:
        self.server, self.relay, self.root, self.here = server, relay, root, here
        self._count = 0

    def put(self, *plans: Plan, overwrite: bool = True) -> bytes:
        self._count += 1
        body = b"body %d" % self._count
        source = self.here / "small"
        source.write_bytes(body)
        if not overwrite:
            (self.root / "small").unlink(missing_ok=True)
        self.relay.expect(*plans)
        with client_of(self.relay) as client:
            reply = client.put(source, "small", overwrite=overwrite)
        assert reply.total == len(body)
        assert (self.root / "small").read_bytes() == body
        quiet(self.server)
        assert (self.root / "small").read_bytes() == body
        assert visible(self.root) == ["small"]
        assert left_over(self.root) == []
        return body

    def get(self, *plans: Plan) -> None:
        target = self.here / "got"
        target.unlink(missing_ok=True)
        self.relay.expect(*plans)
        with client_of(self.relay) as client:
            client.get("small", target)
        assert target.read_bytes() == (self.root / "small").read_bytes()
        assert sorted(os.listdir(self.here)) == ["got", "small"]
        quiet(self.server)


@pytest.fixture
def small(server: Server, relay: Relay, root: Path, here: Path) -> Small:
    return Small(server, relay, root, here)


@every_byte
def test_a_put_that_is_cut_after_every_byte(small: Small, behind: int) -> None:
    small.put()
    sent, answered = small.relay.up, small.relay.down
    for at in third(sent, behind):
        small.put(up(Cut(at)))
    for at in third(answered, behind):
        small.put(down(Cut(at)))


def test_a_repeated_put_without_overwrite_is_not_mistaken_for_another_clients_file(
    small: Small,
) -> None:
    small.put(overwrite=False)
    sent, answered = small.relay.up, small.relay.down
    for at in range(sent - 10, sent + 1):
        small.put(up(Cut(at)), overwrite=False)
    for at in range(answered + 1):
        small.put(down(Swallow(at)), overwrite=False)


@every_byte
@pytest.mark.usefixtures("blocks_only")
def test_an_upload_in_blocks_that_is_cut_after_every_byte(small: Small, behind: int) -> None:
    small.put()
    sent, answered = small.relay.up, small.relay.down
    for at in third(sent, behind):
        small.put(up(Cut(at)), overwrite=at % 2 == 0)
    for at in third(answered, behind):
        small.put(down(Cut(at)), overwrite=at % 2 == 0)


@every_byte
def test_a_get_that_is_cut_after_every_byte(small: Small, behind: int) -> None:
    small.put()
    small.get()
    sent, answered = small.relay.up, small.relay.down
    for at in third(sent, behind):
        small.get(up(Cut(at)))
    for at in third(answered, behind):
        small.get(down(Cut(at)))


def test_connections_that_are_refused_are_tried_again(small: Small) -> None:
    small.put(*[Plan(refuse=True)] * 5)
    assert small.relay.accepted == 6
    small.get(*[Plan(refuse=True)] * 5)


def test_invalid_replies_are_never_saved_as_a_file(small: Small) -> None:
    chance = random.Random(5)
    small.put()
    sent, answered = small.relay.up, small.relay.down
    for at in [chance.randrange(sent) for _ in range(20)]:
        rubbish = chance.choice([b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\x10", chance.randbytes(99)])
        # What the server says to that is either passed on as its refusal or not seen any more.
        with contextlib.suppress(FtpkitError):
            small.put(up(Rubbish(at, rubbish)))
    quiet(small.server)
    assert left_over(small.root) == []
    body = small.put()
    for at in [chance.randrange(answered) for _ in range(20)]:
        with contextlib.suppress(FtpkitError):
            small.get(down(Rubbish(at, chance.randbytes(500))))
        target = small.here / "got"
        assert not target.exists() or target.read_bytes() == body
    small.get()


# Lost replies


def test_a_lost_reply_to_a_commit_is_sent_again(relay: Relay, root: Path, here: Path) -> None:
    source = settled(here / "source", noise(6 * MIB, 1))
    versions = []
    with client_of(relay) as client:
        client.put(source, "rehearsal")
    answered = relay.down
    relay.expect(down(Swallow(answered - 20)))
    with client_of(relay) as client:
        transfer = client.put(source, "rehearse2")
        versions = [transfer.version, client.stat("rehearse2").version]
    assert relay.accepted == 2
    assert versions[0] == versions[1]
    assert relay.up < 6 * MIB + HEADERS
    assert (root / "rehearse2").read_bytes() == source.read_bytes()
    assert left_over(root) == []


def test_a_write_only_client_learns_the_outcome_of_a_small_put_whose_reply_was_lost(
    root: Path, here: Path, tmp_path: Path
) -> None:
    tokens = Tokens(tmp_path / "tokens.json")
    token = tokens.add(Grant(user="ada", can=frozenset({Permission.WRITE})))
    source = settled(here / "source", b"a small file")
    with Server(root, port=0, tokens=tokens) as server, Relay(server.address) as relay:
        url = Url(relay.address, token=token, plain=True)
        with Eager(url) as client:
            client.put(source, "rehearsal")
        relay.wait(lambda relay: not relay._pairs)  # or it has not counted all
        relay.expect(down(Swallow(relay.down - 20)))
        with Eager(url, retry_for_s=RETRY_S) as client:
            client.put(source, "rehearse2")
        assert relay.accepted == 2
    assert (root / "rehearse2").read_bytes() == b"a small file"


def test_a_small_put_whose_reply_was_lost_does_not_hide_a_real_refusal(
    small: Small, relay: Relay, root: Path
) -> None:
    small.put()
    (small.here / "other").write_bytes(b"another file")
    relay.expect(down(Swallow(relay.down - 5)))
    with client_of(relay) as client, pytest.raises(RefusedError, match="exists") as refused:
        client.put(small.here / "other", "small", overwrite=False)
    assert refused.value.code is Code.EXISTS
    assert (root / "small").read_bytes() != b"another file"


# Large files


def lost(cuts: list[int]) -> int:
    """Return how many bytes passed before ``cuts``, but for whole blocks."""
    return sum(at - max(0, at - HEADERS) // BLOCK * BLOCK for at in cuts)


@pytest.mark.parametrize("seed", range(3))
def test_a_large_put_that_is_cut_often_sends_no_acknowledged_block_again(
    relay: Relay, server: Server, root: Path, here: Path, seed: int
) -> None:
    chance = random.Random(seed)
    source = settled(here / "large", noise(20 * MIB + 4711, seed))
    cuts = [chance.randrange(100, 9 * MIB) for _ in range(4)]
    relay.expect(*[up(Cut(at)) for at in cuts])
    progress: list[int] = []
    with client_of(relay) as client:
        client.put(
            source,
            on_progress=lambda moved, total: progress.append(moved),
            # What the server has not taken in yet is not acknowledged.
            on_retry=lambda error, delay: quiet(server),
        )
    assert relay.accepted == len(cuts) + 1
    assert (root / "large").read_bytes() == source.read_bytes()
    assert relay.up <= 20 * MIB + 4711 + lost(cuts) + HEADERS
    assert max(progress) == progress[-1] == 20 * MIB + 4711
    quiet_after(client, server)
    assert visible(root) == ["large"]
    assert left_over(root) == []


@pytest.mark.parametrize("seed", range(3))
def test_a_large_get_that_is_cut_often_fetches_no_whole_block_again(
    relay: Relay, root: Path, here: Path, seed: int
) -> None:
    chance = random.Random(seed)
    (root / "large").write_bytes(body := noise(20 * MIB + 4711, seed))
    cuts = [chance.randrange(100, 9 * MIB) for _ in range(6)]
    relay.expect(*[down(Cut(at)) for at in cuts])
    progress: list[int] = []
    with client_of(relay) as client:
        client.get("large", here, on_progress=lambda moved, total: progress.append(moved))
    assert (here / "large").read_bytes() == body
    assert os.listdir(here) == ["large"]
    assert relay.down <= len(body) + lost(cuts[: relay.accepted - 1]) + HEADERS
    assert max(progress) == progress[-1] == len(body)


@pytest.mark.usefixtures("cache_at_once")
def test_the_next_command_resumes_one_that_gave_up(
    relay: Relay, server: Server, root: Path, here: Path, tmp_path: Path
) -> None:
    source = settled(here / "large", noise(20 * MIB, 7))
    with Eager(relay.address, digest_cache=tmp_path / "memory") as client:
        for at in (9 * MIB, 9 * MIB):
            relay.expect(up(Cut(at)))
            with pytest.raises(FtpkitError):
                client.put(source)
            quiet_after(client, server)
        relay.expect()
        client.put(source)
    assert relay.up <= 4 * MIB + HEADERS
    assert (root / "large").read_bytes() == source.read_bytes()


def quiet_after(client: Client, server: Server) -> None:
    client.close()
    quiet(server)


@pytest.mark.usefixtures("cache_at_once")
def test_a_block_that_is_damaged_before_the_resume_is_sent_again(
    relay: Relay, server: Server, root: Path, here: Path, tmp_path: Path
) -> None:
    source = settled(here / "large", noise(20 * MIB, 8))
    with Eager(relay.address, digest_cache=tmp_path / "memory") as client:
        relay.expect(up(Cut(13 * MIB)))
        with pytest.raises(FtpkitError):
            client.put(source)
        quiet_after(client, server)
        (staged,) = root.glob(".ftpkit/uploads/*/data")
        with open(staged, "r+b") as file:
            file.seek(5 * MIB)
            file.write(b"rot")
        relay.expect()
        client.put(source)
    assert (root / "large").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("time_set_back", [False, True])
@pytest.mark.usefixtures("cache_at_once")
def test_blocks_that_changed_between_two_attempts_are_sent_again(
    relay: Relay, server: Server, root: Path, here: Path, tmp_path: Path, *, time_set_back: bool
) -> None:
    body = bytearray(noise(20 * MIB, 8))
    source = settled(here / "large", bytes(body))
    with Eager(relay.address, digest_cache=tmp_path / "memory") as client:
        relay.expect(up(Cut(13 * MIB)))
        with pytest.raises(FtpkitError):
            client.put(source)
        quiet_after(client, server)
        body[5 * MIB] ^= 1
        settled(source, bytes(body), seed=0 if time_set_back else 1)
        relay.expect()
        client.put(source)
    assert (root / "large").read_bytes() == body
    # The two blocks that had not arrived, and the one that changed.
    assert relay.up <= 3 * BLOCK + HEADERS
    assert left_over(root) == []


@pytest.mark.parametrize("longer", [False, True])
def test_a_source_that_changes_during_the_command_is_not_published(
    relay: Relay, server: Server, root: Path, here: Path, *, longer: bool
) -> None:
    source = settled(here / "large", noise(20 * MIB, 9))
    released = threading.Event()
    relay.expect(up(Hold(6 * MIB, released), Cut(7 * MIB)))

    def change(moved: int, total: int) -> None:
        if moved and not released.is_set():
            with open(source, "r+b") as file:
                file.seek(25 * MIB if longer else MIB)
                file.write(b"changed")
            released.set()

    with client_of(relay) as client:
        with pytest.raises(SourceChangedError):
            client.put(source, on_progress=change)
        assert visible(root) == []
        quiet_after(client, server)
        assert left_over(root) == []
        client.put(source)
    assert (root / "large").read_bytes() == source.read_bytes()


def test_a_file_that_is_replaced_during_a_get_is_fetched_anew(
    relay: Relay, root: Path, here: Path
) -> None:
    (root / "large").write_bytes(noise(24 * MIB, 10))
    released = threading.Event()
    relay.expect(down(Hold(6 * MIB, released)))
    after = noise(24 * MIB, 11)

    def replace(moved: int, total: int) -> None:
        if moved > 4 * MIB and not released.is_set():
            (root / "new").write_bytes(after)
            os.replace(root / "new", root / "large")
            released.set()

    with client_of(relay) as client:
        client.get("large", here, on_progress=replace)
    assert (here / "large").read_bytes() == after


def test_a_file_that_is_replaced_between_two_attempts_is_fetched_anew(
    relay: Relay, root: Path, here: Path
) -> None:
    (root / "large").write_bytes(noise(12 * MIB, 12))
    relay.expect(down(Cut(9 * MIB)))
    with Eager(relay.address) as client:
        with pytest.raises(FtpkitError):
            client.get("large", here)
        assert os.listdir(here) == [".large.part"]
        (root / "new").write_bytes(after := noise(12 * MIB, 13))
        os.replace(root / "new", root / "large")
        client.get("large", here)
    assert (here / "large").read_bytes() == after
    assert os.listdir(here) == ["large"]


# Frozen directions


class Alarmed:
    """Notes what went wrong; after the first failure ``client`` has all the patience there is.

    So a machine that is busy is not taken for a second line that fell silent.
    """

    def __init__(self, client: Client) -> None:
        self.failures: list[FtpkitError] = []
        self._client = client

    def __call__(self, error: FtpkitError, delay: float) -> None:
        self.failures.append(error)
        self._client._timeout_s = WAIT_S


@pytest.mark.parametrize("at", [0, 100, 5 * MIB])
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_put_continues_when_its_connection_falls_silent(
    relay: Relay, root: Path, here: Path, way: str, at: int
) -> None:
    source = settled(here / "large", noise(8 * MIB, 14))
    frozen = Freeze(at) if way == "up" else Freeze(min(at, 400))
    relay.expect(up(frozen) if way == "up" else down(frozen))
    with client_of(relay, timeout_s=0.4) as client:
        client.put(source, on_retry=(alarmed := Alarmed(client)))
    assert relay.accepted == 2
    assert len(alarmed.failures) == 1
    assert (root / "large").read_bytes() == source.read_bytes()
    assert relay.up <= 8 * MIB + 2 * BLOCK
    assert visible(root) == ["large"]


@pytest.mark.parametrize("at", [0, 100, 5 * MIB])
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_get_continues_when_its_connection_falls_silent(
    relay: Relay, root: Path, here: Path, way: str, at: int
) -> None:
    (root / "large").write_bytes(body := noise(12 * MIB, 15))
    relay.expect(up(Freeze(min(at, 400))) if way == "up" else down(Freeze(at)))
    with client_of(relay, timeout_s=0.4) as client:
        client.get("large", here, on_retry=(alarmed := Alarmed(client)))
    assert relay.accepted == 2
    assert len(alarmed.failures) == 1
    assert (here / "large").read_bytes() == body
    assert os.listdir(here) == ["large"]
    assert relay.down <= 12 * MIB + BLOCK + MIB


def test_a_silent_connection_is_reported_without_retry(relay: Relay, here: Path) -> None:
    source = settled(here / "large", noise(8 * MIB, 16))
    relay.expect(down(Freeze(400)))
    # Long enough that a server on a busy machine still says hello.
    with client_of(relay, timeout_s=2.0, retry_for_s=0) as client, pytest.raises(StallTimeoutError):
        client.put(source)


# Flipped bits


def test_flipped_bits_in_blocks_are_caught_and_only_these_blocks_sent_again(
    relay: Relay, root: Path, here: Path
) -> None:
    chance = random.Random(17)
    source = settled(here / "large", noise(20 * MIB, 17))
    flips = [Flip(k * BLOCK + chance.randrange(HEADERS, BLOCK), k) for k in (0, 1, 4)]
    relay.expect(up(*flips))
    with client_of(relay, retry_for_s=0) as client:
        client.put(source)
    assert relay.accepted == 1
    assert (root / "large").read_bytes() == source.read_bytes()
    assert 23 * MIB <= relay.up - 9 * MIB <= 23 * MIB + HEADERS
    assert left_over(root) == []


def test_flipped_bits_in_a_download_are_caught_and_only_these_blocks_fetched_again(
    relay: Relay, root: Path, here: Path
) -> None:
    chance = random.Random(18)
    (root / "large").write_bytes(body := noise(20 * MIB, 18))
    flips = [Flip(k * BLOCK + chance.randrange(HEADERS, BLOCK), k) for k in (0, 1, 4)]
    relay.expect(down(*flips))
    with client_of(relay, retry_for_s=0) as client:
        client.get("large", here)
    assert relay.accepted == 1
    assert (here / "large").read_bytes() == body
    assert 32 * MIB <= relay.down <= 32 * MIB + HEADERS


@pytest.mark.parametrize("size", [9, 70_000, MIB])
def test_a_flipped_bit_in_a_small_file_is_caught_both_ways(
    relay: Relay, root: Path, here: Path, size: int
) -> None:
    source = here / "small"
    source.write_bytes(noise(size, 19))
    with client_of(relay, retry_for_s=0) as client:
        client.put(source)
        sent = relay.up
        client.get("small", here / "got")
        relay.expect(up(Flip(sent - 5, 3)))
        client.close()
        source.write_bytes(noise(size, 20))
        client.put(source)
        assert (root / "small").read_bytes() == source.read_bytes()
        client.close()
        (here / "got").unlink()
        relay.expect(down())
        client.get("small", here / "got")
        answered = relay.down
        client.close()
        relay.expect(down(Flip(answered - 5, 3)))
        client.get("small", here / "got")
    relay.wait(lambda relay: relay.down > answered)
    assert (here / "got").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("bit", [0, *(pytest.param(b, marks=pytest.mark.slow) for b in (3, 6))])
@every_byte
def test_a_flipped_bit_in_any_byte_never_publishes_a_wrong_file(
    serve: Serve, root: Path, here: Path, bit: int, behind: int
) -> None:
    """A header has no checksum of its own: it ends well or with an error that says so."""
    server = serve(stall_timeout_s=0.2)
    (here / "put").write_bytes(b"the right one")
    with Relay(server.address) as relay:
        client = client_of(relay, timeout_s=0.2)
        with client:
            client.put(here / "put", "a0")
            client.get("a0", here / "got")
        sent, answered = relay.up, relay.down
        plans = [up(Flip(at, bit)) for at in third(sent - 1, behind)]
        plans += [down(Flip(at, bit)) for at in third(answered - 1, behind)]
        for plan in plans:
            (root / "a0").unlink(missing_ok=True)
            (here / "got").unlink(missing_ok=True)
            for neighbour in ("a1", "a8", "q0", "!0", "ap", "A0"):
                (root / neighbour).write_bytes(b"the wrong one")
            relay.expect(plan)
            with client:
                done = False
                with contextlib.suppress(FtpkitError):
                    client.put(here / "put", "a0")
                    done = True
                if done:
                    (root / "a0").chmod(0o600)  # its mode may be what was damaged
                    assert (root / "a0").read_bytes() == b"the right one", plan
                else:
                    (root / "a0").unlink(missing_ok=True)
                    (root / "a0").write_bytes(b"the right one")
                with contextlib.suppress(FtpkitError):
                    client.get("a0", here / "got")
                    assert (here / "got").read_bytes() == b"the right one", plan
            quiet(server)
            assert left_over(root) == [], plan
