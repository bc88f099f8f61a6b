"""Transfers over UDP, on good and bad networks and where it is blocked."""

import os
import random
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from ftpkit import (
    Client,
    ConnectionLostError,
    LocalFileError,
    RefusedError,
    Server,
    SourceChangedError,
)
from ftpkit.client import UdpMode
from ftpkit.client.transfer import udp_session
from ftpkit.errors import FtpkitError, UdpBlockedError
from tests.faults.relay import Relay
from tests.support.logs import Log
from tests.support.trees import published, staged
from tests.support.udp_relay import Wire

KIB, MIB = 1024, 1024 * 1024
BLOCK = 4 * MIB
HEADERS = 16 * KIB
SIZES = [
    0, 1, 511, 512, 4 * KIB, 64 * KIB, MIB, BLOCK - 33, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK,
    5 * BLOCK + 70_001,
]  # fmt: skip
MTIME = 1_234_567_890_123_456_789

Retries = list[tuple[FtpkitError, float]]


class Seen(list[tuple[int, int]]):
    """The calls of on_progress; each must be possible."""

    def __call__(self, moved: int, total: int) -> None:
        assert 0 <= moved <= total
        self.append((moved, total))


def made(path: Path, total: int, seed: int = 1) -> bytes:
    data = random.Random(seed).randbytes(total)
    path.write_bytes(data)
    return data


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    """A network before the server."""
    with Wire(server.address) as wire:
        yield wire


@pytest.fixture
def only(server: Server) -> Iterator[Client]:
    """A client with UdpMode.ONLY."""
    with Client(server.address, timeout_s=20.0, udp=UdpMode.ONLY) as client:
        yield client


@pytest.fixture
def wired(wire: Wire) -> Iterator[Client]:
    """A client behind the network."""
    with Client(wire.address, timeout_s=20.0, udp=UdpMode.ONLY) as client:
        yield client


# Whole files


@pytest.mark.parametrize("total", SIZES)
def test_a_file_goes_up_and_comes_down(
    only: Client, root: Path, tmp_path: Path, total: int
) -> None:
    source, copy = tmp_path / "source.bin", tmp_path / "copy.bin"
    data = made(source, total)
    source.chmod(0o640)
    os.utime(source, ns=(MTIME, MTIME))
    seen = Seen()
    up = only.put(source, on_progress=seen)
    assert (seen[0], seen[-1]) == ((0, total), (total, total))
    assert seen == sorted(seen)
    assert published(root) == {"source.bin": data}
    seen.clear()
    down = only.get("source.bin", copy, on_progress=seen)
    assert (seen[0], seen[-1]) == ((0, total), (total, total))
    assert seen == sorted(seen)
    assert (down.version, down.content_digest) == (up.version, up.content_digest)
    assert copy.read_bytes() == data
    for path in (root / "source.bin", copy):
        assert path.stat().st_mtime_ns == MTIME
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert staged(root) == []


def test_the_blocks_are_in_the_datagrams(
    wire: Wire, wired: Client, root: Path, tmp_path: Path
) -> None:
    data = made(tmp_path / "f", 3 * BLOCK)
    wired.put(tmp_path / "f")
    assert wire.up > len(data)
    assert wire.tcp.up < HEADERS
    wired.get("f", tmp_path / "copy")
    assert wire.down > len(data)
    assert wire.tcp.down < HEADERS
    assert (tmp_path / "copy").read_bytes() == data
    assert published(root) == {"f": data}


@pytest.mark.parametrize("udp", [UdpMode.FIRST, UdpMode.ONLY])
def test_ipv6(server: Server, root: Path, tmp_path: Path, udp: UdpMode) -> None:
    address = server.addresses[-1]
    if ":" not in address.host:
        pytest.skip("there is no IPv6 here")
    data = made(tmp_path / "f", 2 * BLOCK + 1)
    retries: Retries = []
    with Client(address, udp=udp) as client:
        client.put(tmp_path / "f", on_retry=lambda *each: retries.append(each))
        client.get("f", tmp_path / "copy", on_retry=lambda *each: retries.append(each))
    assert retries == []
    assert published(root) == {"f": data}
    assert (tmp_path / "copy").read_bytes() == data


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1"])
def test_a_server_on_every_interface(root: Path, tmp_path: Path, host: str) -> None:
    data = made(tmp_path / "f", BLOCK + 1)
    with Server(root, host="*", port=0) as server:
        try:
            socket.create_connection((host, server.address.port)).close()
        except OSError:
            pytest.skip(f"{host} is no address here")
        with Client(server.address._replace(host=host), udp=UdpMode.ONLY) as client:
            client.put(tmp_path / "f")
            client.get("f", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data


def test_two_uploads_and_a_download_at_once(server: Server, root: Path, tmp_path: Path) -> None:
    data = {name: made(tmp_path / name, 4 * BLOCK + 5, seed) for seed, name in enumerate("abc")}
    (root / "c").write_bytes(data["c"])

    def put(name: str) -> None:
        with Client(server.address, udp=UdpMode.ONLY) as client:
            client.put(tmp_path / name)

    def get(name: str) -> None:
        with Client(server.address, udp=UdpMode.ONLY) as client:
            client.get(name, tmp_path / "copy")

    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(put, "a"), pool.submit(put, "b"), pool.submit(get, "c")]
        for each in running:
            each.result()
    assert published(root) == data
    assert (tmp_path / "copy").read_bytes() == data["c"]


def test_many_small_files_over_one_connection(only: Client, root: Path, tmp_path: Path) -> None:
    data = {f"f{seed}": made(tmp_path / f"f{seed}", 4 * KIB, seed) for seed in range(20)}
    for name in data:
        only.put(tmp_path / name)
    for name in data:
        only.get(name, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == data[name]
    assert published(root) == data


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_limited_rate_is_not_exceeded(
    server: Server, root: Path, tmp_path: Path, direction: str
) -> None:
    total, rate = 2 * MIB, 4 * MIB
    data = made(tmp_path / "f", total)
    (root / "f").write_bytes(data)
    with Client(server.address, udp=UdpMode.ONLY, bytes_per_s=rate) as client:
        if direction == "up":
            transfer = client.put(tmp_path / "f")
        else:
            transfer = client.get("f", tmp_path / "copy")
    # The first datagrams may leave at once; a busy machine is slower.
    assert transfer.seconds > 0.8 * total / rate


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_the_smallest_rates_transfer_a_byte(
    only: Client, root: Path, tmp_path: Path, rate: float
) -> None:
    made(tmp_path / "f", 1)
    with Client(only.address, udp=UdpMode.ONLY, bytes_per_s=rate) as client:
        client.put(tmp_path / "f")
        client.get("f", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (root / "f").read_bytes()


# Bad networks


@pytest.mark.parametrize("direction", ["up", "down"])
def test_loss_reordering_and_duplicates(
    wire: Wire, wired: Client, root: Path, tmp_path: Path, direction: str
) -> None:
    dice, late = random.Random(4), list[tuple[bytes, bool]]()

    def fate(raw: bytes, up: bool) -> list[bytes]:
        chance = dice.random()
        waiting = [each for each, was_up in late if was_up is up]
        if waiting:
            late[:] = [each for each in late if each[1] is not up]
        if chance < 0.05:
            return waiting
        if chance < 0.1:
            late.append((raw, up))
            return waiting
        return [raw, *waiting] if chance > 0.12 else [raw, raw, *waiting]

    wire.fate = fate
    data = made(tmp_path / "f", 2 * BLOCK + 9)
    if direction == "up":
        wired.put(tmp_path / "f")
    else:
        (root / "f").write_bytes(data)
        wired.get("f", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == data
    assert published(root) == {"f": data}
    assert wire.tcp.up + wire.tcp.down < HEADERS


@pytest.mark.parametrize("direction", ["up", "down"])
def test_corrupted_datagrams_count_as_lost(
    wire: Wire, wired: Client, root: Path, tmp_path: Path, direction: str
) -> None:
    dice = random.Random(4)

    def fate(raw: bytes, up: bool) -> list[bytes]:
        if dice.random() < 0.05:
            changed = bytearray(raw)
            changed[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
            return [bytes(changed)]
        if dice.random() < 0.05:
            return [raw[: dice.randrange(len(raw))], dice.randbytes(1000), raw]
        return [raw]

    wire.fate = fate
    data = made(tmp_path / "f", BLOCK + 9)
    (root / "f").write_bytes(data)
    if direction == "up":
        wired.put(tmp_path / "f", "g")
        assert published(root) == {"f": data, "g": data}
    else:
        wired.get("f", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == data
    assert wire.tcp.up + wire.tcp.down < HEADERS


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_nat_rebinding(
    wire: Wire, wired: Client, root: Path, tmp_path: Path, direction: str
) -> None:
    moved = threading.Event()

    def fate(raw: bytes, up: bool) -> list[bytes]:
        if wire.up + wire.down > BLOCK and not moved.is_set():
            moved.set()
        return [raw]

    def move() -> None:
        if moved.wait(30):
            wire.move()

    wire.fate = fate
    thread = threading.Thread(target=move)
    thread.start()
    data = made(tmp_path / "f", 8 * BLOCK)
    (root / "f").write_bytes(data)
    if direction == "up":
        wired.put(tmp_path / "f", "g")
        assert published(root) == {"f": data, "g": data}
    else:
        wired.get("f", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == data
    thread.join()
    assert moved.is_set()
    assert wire.tcp.up + wire.tcp.down < HEADERS


def test_only_small_datagrams_get_through(
    wire: Wire, wired: Client, root: Path, tmp_path: Path
) -> None:
    wire.fate = lambda raw, up: [raw] if len(raw) <= 1232 else []
    data = made(tmp_path / "f", BLOCK + 1)
    wired.put(tmp_path / "f")
    wired.get("f", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    assert published(root) == {"f": data}


# Where UDP is blocked


@pytest.fixture(params=["closed", "silent"])
def tcp_only(server: Server, request: pytest.FixtureRequest, stack: ExitStack) -> Relay:
    """A relay to the server that forwards TCP alone."""
    if request.param == "closed":
        return stack.enter_context(Relay(server.address))
    return stack.enter_context(Wire(server.address, datagrams=False)).tcp


@pytest.mark.parametrize("direction", ["up", "down"])
def test_udp_blocked_from_the_start_continues_over_tcp(
    tcp_only: Relay, root: Path, tmp_path: Path, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert udp_session._BLOCKED_S <= 2.0
    monkeypatch.setattr(udp_session, "_BLOCKED_S", 0.5)
    data = made(tmp_path / "f", 2 * BLOCK + 1)
    (root / "f").write_bytes(data)
    retries: Retries = []
    when: list[float] = []

    def on_retry(error: FtpkitError, delay: float) -> None:
        retries.append((error, delay))
        when.append(time.monotonic())

    seen = Seen()
    with Client(tcp_only.address, udp=UdpMode.FIRST) as client:
        client.ping()
        started = time.monotonic()
        if direction == "up":
            client.put(tmp_path / "f", "g", on_progress=seen, on_retry=on_retry)
            assert published(root)["g"] == data
        else:
            client.get("f", tmp_path / "copy", on_progress=seen, on_retry=on_retry)
            assert (tmp_path / "copy").read_bytes() == data
        ((error, delay),) = retries
        assert isinstance(error, UdpBlockedError)
        assert delay == 0
        # Half a second, with a margin for a busy machine.
        assert when[0] - started < 4.5
        assert seen[-1] == (len(data), len(data))
        # The client remembers it: the next file uses TCP at once.
        client.put(tmp_path / "f", "h", on_retry=on_retry)
        assert len(retries) == 1
    assert published(root)["h"] == data


@pytest.mark.parametrize("direction", ["up", "down"])
def test_udp_only_blocked_from_the_start_is_an_error(
    tcp_only: Relay, root: Path, tmp_path: Path, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp_session, "_BLOCKED_S", 0.5)
    data = made(tmp_path / "f", BLOCK + 1)
    (root / "f").write_bytes(data)
    (tmp_path / "here").mkdir()
    with Client(tcp_only.address, udp=UdpMode.ONLY, retry_for_s=60) as client:
        moves = {
            "up": lambda: client.put(tmp_path / "f", "g"),
            "down": lambda: client.get("f", tmp_path / "here/copy"),
        }
        with pytest.raises(UdpBlockedError, match="is blocked; use --udp") as caught:
            moves[direction]()
        assert caught.value.permanent
        assert client.ping() >= 0
    assert published(root) == {"f": data}
    assert os.listdir(tmp_path / "here") == []


@pytest.mark.parametrize("udp", [UdpMode.FIRST, UdpMode.ONLY])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_udp_blocked_during_a_transfer(
    wire: Wire,
    root: Path,
    tmp_path: Path,
    direction: str,
    udp: UdpMode,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(udp_session, "_DEAD_S", 2.0)

    def fate(raw: bytes, up: bool) -> list[bytes]:
        if wire.up + wire.down > 6 * MIB:
            wire.blocked.set()
        return [raw]

    wire.fate = fate
    data = made(tmp_path / "f", 5 * BLOCK)
    (root / "f").write_bytes(data)
    (tmp_path / "here").mkdir()
    retries: Retries = []
    seen = Seen()

    def move(client: Client) -> None:
        def on_retry(error: FtpkitError, delay: float) -> None:
            retries.append((error, delay))

        if direction == "up":
            client.put(tmp_path / "f", "g", on_progress=seen, on_retry=on_retry)
        else:
            client.get("f", tmp_path / "here/copy", on_progress=seen, on_retry=on_retry)

    with Client(wire.address, udp=udp) as client:
        if udp is UdpMode.ONLY:
            with pytest.raises(UdpBlockedError, match="no longer"):
                move(client)
            assert published(root) == {"f": data}
            # The blocks are kept for the next transfer.
            wire.tcp.expect()
            with Client(wire.address) as next_client:
                move(next_client)
            assert wire.tcp.up + wire.tcp.down <= len(data) - BLOCK + HEADERS
        else:
            move(client)
            assert [type(error) for error, _ in retries] == [UdpBlockedError]
            assert wire.tcp.up + wire.tcp.down <= len(data) - BLOCK + HEADERS
    assert seen[-1] == (len(data), len(data))
    if direction == "up":
        assert published(root)["g"] == data
    else:
        assert (tmp_path / "here/copy").read_bytes() == data


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_short_outage_of_the_path_is_waited_for(
    wire: Wire, wired: Client, root: Path, tmp_path: Path, direction: str
) -> None:
    """Long enough for timers to fire, shorter than the limit."""
    reached = threading.Event()

    def fate(raw: bytes, up: bool) -> list[bytes]:
        if wire.up + wire.down > 6 * MIB and not reached.is_set():
            wire.blocked.set()
            reached.set()
        return [raw]

    wire.fate = fate
    mend = threading.Timer(2.0, wire.blocked.clear)
    data = made(tmp_path / "f", 5 * BLOCK)
    (root / "f").write_bytes(data)
    with ThreadPoolExecutor(1) as pool:
        if direction == "up":
            moving = pool.submit(wired.put, tmp_path / "f", "g")
        else:
            moving = pool.submit(wired.get, "f", tmp_path / "g")
        assert reached.wait(30)
        mend.start()
        moving.result()
    mend.join()
    assert ((root if direction == "up" else tmp_path) / "g").read_bytes() == data
    assert wire.tcp.up + wire.tcp.down < HEADERS


def test_a_server_without_udp(root: Path, tmp_path: Path) -> None:
    data = made(tmp_path / "f", BLOCK + 1)
    retries: Retries = []
    with Server(root, port=0, datagrams=False) as server:
        with Client(server.address, udp=UdpMode.FIRST) as client:
            client.put(tmp_path / "f", on_retry=lambda *each: retries.append(each))
            client.get("f", tmp_path / "copy", on_retry=lambda *each: retries.append(each))
        assert [str(error) for error, _ in retries] == [f"{server.address} does not accept UDP"]
        with Client(server.address, udp=UdpMode.ONLY) as client:
            with pytest.raises(UdpBlockedError, match="does not accept UDP"):
                client.put(tmp_path / "f")
            with pytest.raises(UdpBlockedError, match="does not accept UDP"):
                client.get("f", tmp_path / "other")
            # An empty file has no blocks, and needs no UDP.
            made(tmp_path / "empty", 0)
            client.put(tmp_path / "empty")
            client.get("empty", tmp_path / "other")
    assert (tmp_path / "copy").read_bytes() == data


# Resume


def test_a_resumed_upload_sends_only_the_missing_blocks(
    wire: Wire, root: Path, tmp_path: Path
) -> None:
    data = made(tmp_path / "f", 8 * BLOCK)

    def fate(raw: bytes, up: bool) -> list[bytes]:
        if wire.up > 5 * BLOCK + MIB:
            wire.tcp.cut()
            return []
        return [raw]

    wire.fate = fate
    with Client(wire.address, udp=UdpMode.ONLY) as client:
        with pytest.raises(ConnectionLostError):
            client.put(tmp_path / "f")
        first = wire.up
        wire.fate = lambda raw, up: [raw]
        seen = Seen()
        client.put(tmp_path / "f", on_progress=seen)
    assert published(root) == {"f": data}
    # Blocks that are held are not transferred again.
    held, _ = seen[1]
    assert held >= 2 * BLOCK
    # A busy machine takes what is late for lost, and sends it again.
    assert wire.up - first < len(data) - held + BLOCK
    assert wire.tcp.up < HEADERS
    assert seen == sorted(seen)


def test_a_resumed_download_fetches_only_the_missing_blocks(
    wire: Wire, root: Path, tmp_path: Path
) -> None:
    data = made(root / "f", 8 * BLOCK)

    def fate(raw: bytes, up: bool) -> list[bytes]:
        if wire.down > 5 * BLOCK + MIB:
            wire.tcp.cut()
            return []
        return [raw]

    wire.fate = fate
    with Client(wire.address, udp=UdpMode.ONLY) as client:
        with pytest.raises(ConnectionLostError):
            client.get("f", tmp_path / "copy")
        first = wire.down
        wire.fate = lambda raw, up: [raw]
        seen = Seen()
        client.get("f", tmp_path / "copy", on_progress=seen)
    assert (tmp_path / "copy").read_bytes() == data
    assert wire.down - first < len(data) - 2 * BLOCK
    assert wire.tcp.down < HEADERS
    assert seen[0][0] >= 2 * BLOCK
    assert seen == sorted(seen)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_one_call_survives_a_lost_connection(
    wire: Wire, root: Path, tmp_path: Path, direction: str
) -> None:
    data = made(tmp_path / "f", 8 * BLOCK)
    (root / "f").write_bytes(data)
    cut = threading.Event()

    def fate(raw: bytes, up: bool) -> list[bytes]:
        if wire.up + wire.down > 3 * BLOCK and not cut.is_set():
            cut.set()
            wire.tcp.cut()
        return [raw]

    wire.fate = fate
    retries: Retries = []
    seen = Seen()
    with Client(wire.address, udp=UdpMode.ONLY, retry_for_s=60) as client:
        if direction == "up":
            client.put(
                tmp_path / "f", "g", on_progress=seen, on_retry=lambda *each: retries.append(each)
            )
            assert published(root)["g"] == data
        else:
            client.get(
                "f", tmp_path / "g", on_progress=seen, on_retry=lambda *each: retries.append(each)
            )
            assert (tmp_path / "g").read_bytes() == data
    assert retries
    assert seen[-1] == (len(data), len(data))
    assert wire.tcp.up + wire.tcp.down < HEADERS


# Files that change


def test_a_source_that_changes_during_an_upload_publishes_nothing(
    only: Client, root: Path, tmp_path: Path
) -> None:
    source = tmp_path / "f"
    made(source, 6 * BLOCK)

    def change(moved: int, total: int) -> None:
        if moved > BLOCK:
            with open(source, "r+b") as file:
                file.seek(total - 1)
                file.write(b"?")

    with pytest.raises(SourceChangedError):
        only.put(source, on_progress=change)
    assert published(root) == {}
    assert staged(root) == []
    only.put(source)
    assert published(root) == {"f": source.read_bytes()}


def test_a_source_truncated_during_an_upload_publishes_nothing(
    wire: Wire, wired: Client, root: Path, tmp_path: Path
) -> None:
    source = tmp_path / "f"
    made(source, 40 * BLOCK)

    def fate(raw: bytes, up: bool) -> list[bytes]:
        if wire.up > BLOCK:
            os.truncate(source, 5)
        return [raw]

    wire.fate = fate
    with pytest.raises(SourceChangedError):
        wired.put(source)
    assert published(root) == {}
    assert staged(root) == []


def test_a_file_replaced_during_a_download_is_fetched_again(
    wire: Wire, wired: Client, root: Path, tmp_path: Path
) -> None:
    made(root / "f", 40 * BLOCK)
    made(tmp_path / "other", 3 * BLOCK, seed=2)
    replaced = threading.Event()

    def fate(raw: bytes, up: bool) -> list[bytes]:
        if wire.down > 2 * BLOCK and not replaced.is_set():
            replaced.set()
            with Client(wire.address) as other:
                other.put(tmp_path / "other", "f")
        return [raw]

    wire.fate = fate
    wired.get("f", tmp_path / "copy")
    assert replaced.is_set()
    # The server reads on in the file that it has open; the next request sees the new one.
    assert (tmp_path / "copy").read_bytes() in (
        (tmp_path / "other").read_bytes(),
        random.Random(1).randbytes(40 * BLOCK),
    )


@pytest.mark.parametrize("time_set_back", [False, True])
def test_a_file_written_to_during_a_download_is_fetched_again(
    wire: Wire, wired: Client, root: Path, tmp_path: Path, *, time_set_back: bool
) -> None:
    made(root / "f", 40 * BLOCK)
    before = (root / "f").stat().st_mtime_ns
    changed = threading.Event()

    def fate(raw: bytes, up: bool) -> list[bytes]:
        if wire.down > 2 * BLOCK and not changed.is_set():
            changed.set()
            with open(root / "f", "r+b") as file:
                file.write(b"changed")
                file.seek(-7, os.SEEK_END)
                file.write(b"changed")
            if time_set_back:
                os.utime(root / "f", ns=(before, before))
        return [raw]

    wire.fate = fate
    wired.get("f", tmp_path / "copy")
    assert changed.is_set()
    assert (tmp_path / "copy").read_bytes() == (root / "f").read_bytes()


# Errors


def test_a_target_that_cannot_be_written(
    only: Client, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    made(root / "f", 4 * BLOCK)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(moved: int, total: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK + 5, hard))

    try:
        with pytest.raises(LocalFileError, match="cannot write"):
            only.get("f", tmp_path / "copy", on_progress=limit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert only.ping() >= 0
    only.get("f", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (root / "f").read_bytes()


def test_refusals_are_the_same_as_over_tcp(only: Client, root: Path, tmp_path: Path) -> None:
    made(tmp_path / "f", BLOCK)
    made(root / "f", 3)
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: only.put(tmp_path / "f", overwrite=False), "exists"),
        (lambda: only.put(tmp_path / "f", "f/g"), "not-a-directory"),
        (lambda: only.get("missing", tmp_path / "copy"), "not-found"),
    ]
    for move, code in refused:
        with pytest.raises(RefusedError) as caught:
            move()
        assert caught.value.code == code
    assert only.ping() >= 0


def test_one_log_line_for_each_transfer(only: Client, root: Path, tmp_path: Path, log: Log) -> None:
    made(tmp_path / "f", BLOCK + 1)
    only.put(tmp_path / "f")
    record = log.wait_for("transfer")
    assert (record["direction"], record["bytes"], record["outcome"]) == ("up", BLOCK + 1, "ok")
    only.get("f", tmp_path / "copy")
    only.close()
    record = log.wait_for("transfer")
    assert (record["direction"], record["name"]) == ("down", "f")
    log.wait_for("connection")
    assert log.so_far("error") == []
