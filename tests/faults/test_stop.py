"""A server that stops while transfers run, and one without fsync."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ftpkit.client import Client, TransferResult
from ftpkit.errors import Code, FtpkitError
from ftpkit.storage.journal import JournalState, replay
from tests.faults.conftest import MIB, Eager, Serve, left_over, noise, settled, visible
from tests.faults.crowd import Raw
from tests.faults.processes import Served
from tests.faults.relay import WAIT_S, Hold, Plan, Relay

SIZE = 20 * MIB
HELD_AT = 13 * MIB
# Whole blocks of 4 MiB before that.
ARRIVED = 12 * MIB


class Half:
    """A server whose only transfer is half done, and continues when ``released`` is set."""

    def __init__(
        self, server: Served, relay: Relay, client: Client, pool: ThreadPoolExecutor
    ) -> None:
        self.server, self.relay, self.client = server, relay, client
        self.released = threading.Event()
        self._pool = pool
        self.transfer: Future[TransferResult] = Future()

    def put(self, source: Path) -> None:
        self.relay.expect(Plan(up=(Hold(HELD_AT, self.released),)))
        self.transfer = self._pool.submit(self.client.put, source, "large")
        self.relay.wait(lambda relay: relay.up >= HELD_AT)
        # What was forwarded may still wait in the server's socket.
        blocks = ARRIVED // (4 * MIB)
        self.relay.wait(lambda relay: len(journal_of(self.server.root).blocks) == blocks)

    def get(self, target: Path) -> None:
        self.relay.expect(Plan(down=(Hold(HELD_AT, self.released),)))
        self.transfer = self._pool.submit(self.client.get, "large", target)
        self.relay.wait(lambda relay: relay.down >= HELD_AT)


@contextmanager
def half(root: Path, *options: str, retry_for_s: float = 0) -> Iterator[Half]:
    with ExitStack() as stack:
        server = stack.enter_context(Served(root, options))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        relay = stack.enter_context(Relay(server.address))
        client = stack.enter_context(Eager(relay.address, retry_for_s=retry_for_s))
        state = Half(server, relay, client, pool)
        stack.callback(state.released.set)
        yield state


def journal_of(root: Path) -> JournalState:
    (key,) = os.listdir(root / ".ftpkit" / "uploads")
    return replay((root / ".ftpkit" / "uploads" / key / "journal").read_bytes())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


@pytest.fixture
def source(here: Path) -> Path:
    return settled(here / "large", noise(SIZE, 1))


def test_running_transfers_finish_and_new_ones_are_refused(root: Path, source: Path) -> None:
    with half(root, "--grace", "60s") as state:
        with Raw(state.server.address) as idle:
            assert idle.ask(op="ping")["ok"]
            state.put(source)
            state.server.ask_to_end()
            word = idle.heard()
            assert (word["code"], word["close"]) == (Code.SHUTTING_DOWN, True)
        with pytest.raises(ConnectionRefusedError):
            Raw(state.server.address)
        assert state.server.process.poll() is None
        state.released.set()
        assert state.transfer.result(WAIT_S).total == SIZE
        code, log = state.server.ended()
    assert (code, log) == (0, "")
    assert (root / "large").read_bytes() == source.read_bytes()
    assert left_over(root) == []


def test_a_download_may_finish_too(root: Path, source: Path, here: Path) -> None:
    (root / "large").write_bytes(source.read_bytes())
    with half(root, "--grace", "60s") as state:
        with Raw(state.server.address) as idle:
            assert idle.ask(op="ping")["ok"]
            state.get(here / "got")
            state.server.ask_to_end()
            assert idle.heard()["code"] == Code.SHUTTING_DOWN
        state.released.set()
        assert state.transfer.result(WAIT_S).total == SIZE
        assert state.server.ended()[0] == 0
    assert (here / "got").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("grace", ["0", "300ms"])
def test_a_slow_upload_is_checkpointed_and_resumed_on_the_next_server(
    root: Path, source: Path, grace: str
) -> None:
    with half(root, "--grace", grace) as state:
        state.put(source)
        state.server.ask_to_end()
        assert state.server.ended() == (0, "")
        state.released.set()
        assert isinstance(state.transfer.exception(WAIT_S), FtpkitError)
    assert visible(root) == []
    journal = journal_of(root)
    assert sorted(journal.blocks) == list(range(0, ARRIVED, 4 * MIB))
    assert all(map(journal.is_safe, journal.blocks.values()))
    with Served(root) as server, Relay(server.address) as relay:
        with Eager(relay.address) as client:
            client.put(source, "large")
        assert relay.up <= SIZE - ARRIVED + 16 * 1024
        assert (root / "large").read_bytes() == source.read_bytes()
        assert left_over(root) == []


def test_one_command_outlives_the_restart_of_its_server(root: Path, source: Path) -> None:
    with half(root, "--grace", "0", retry_for_s=WAIT_S) as state:
        state.put(source)
        state.server.ask_to_end()
        assert state.server.ended() == (0, "")
        state.server.start()
        state.released.set()
        assert state.transfer.result(WAIT_S).total == SIZE
        # What was on its way when the server ended is sent again: a few blocks at most.
        assert state.relay.up <= SIZE + 3 * 4 * MIB
    assert (root / "large").read_bytes() == source.read_bytes()
    assert left_over(root) == []


def test_a_second_signal_stops_the_server_at_once_without_harm(root: Path, source: Path) -> None:
    with half(root, "--grace", "10m") as state:
        with Raw(state.server.address) as idle:
            assert idle.ask(op="ping")["ok"]
            state.put(source)
            state.server.ask_to_end()
            assert idle.heard()["code"] == Code.SHUTTING_DOWN
        state.server.ask_to_end()
        assert state.server.ended() == (128 + signal.SIGTERM, "")
        state.released.set()
        assert isinstance(state.transfer.exception(WAIT_S), FtpkitError)
    with Served(root) as server, Relay(server.address) as relay:
        with Eager(relay.address) as client:
            client.put(source, "large")
        # The blocks were acknowledged and matched: they are read again, not sent again.
        assert relay.up <= SIZE - ARRIVED + 16 * 1024
        assert (root / "large").read_bytes() == source.read_bytes()
        assert left_over(root) == []


@pytest.mark.skipif(not hasattr(os, "fdatasync"), reason="nothing but fsync can be counted")
@pytest.mark.parametrize("durable", [True, False])
def test_without_fsync_nothing_is_flushed(
    serve: Serve, root: Path, here: Path, monkeypatch: pytest.MonkeyPatch, *, durable: bool
) -> None:
    synced: list[str] = []

    def counted(name: str) -> Callable[[int], None]:
        real = getattr(os, name)

        def sync(fd: int) -> None:
            synced.append(name)
            real(fd)

        return sync

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, counted(name))
    server = serve(durable=durable)
    for name, size in (("small", 1000), ("large", 9 * MIB)):
        settled(here / name, noise(size, size))
        with Client(server.address) as client:
            synced.clear()
            transfer = client.put(here / name)
            assert bool(synced) is durable
            assert client.digest(name) == transfer.content_digest
    with Raw(server.address) as raw:
        refusal = raw.ask(b"body", op="put", name="small", size=4, digest=f"blake3:{'0' * 64}")
        assert refusal["code"] == Code.DIGEST_MISMATCH
    assert (root / "small").read_bytes() == (here / "small").read_bytes()
    assert left_over(root) == []


def test_the_command_passes_no_fsync_on(tmp_path: Path, here: Path) -> None:
    """Atomic also there: a reader sees the old file until the new one is whole."""
    source = settled(here / "large", noise(9 * MIB, 3))
    root = tmp_path / "root"
    with half(root, "--no-fsync") as state:
        (root / "large").write_bytes(b"old")
        state.relay.expect(Plan(up=(Hold(5 * MIB, state.released),)))
        with ThreadPoolExecutor(1) as pool:
            put = pool.submit(state.client.put, source)
            state.relay.wait(lambda relay: relay.up >= 5 * MIB)
            assert (root / "large").read_bytes() == b"old"
            state.released.set()
            assert put.result(WAIT_S).total == 9 * MIB
        assert (root / "large").read_bytes() == source.read_bytes()
