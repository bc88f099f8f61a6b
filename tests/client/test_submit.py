"""Transfers in the background: several at once, and cancelled at any point."""

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, as_completed, wait
from contextlib import ExitStack
from pathlib import Path

import pytest
from blake3 import blake3

from ftpkit import (
    Address,
    Client,
    ConnectionLostError,
    LocalFileError,
    RefusedError,
    Server,
    TransferResult,
    UdpMode,
)
from ftpkit.client.cancel import Cancelled, CancelToken
from ftpkit.client.transfer import udp
from ftpkit.server.limits import Limits
from tests.faults.relay import Hold, Plan, Relay
from tests.support.hostile import Peer, hostile
from tests.support.logs import Log
from tests.support.raw import Raw
from tests.support.trees import published, staged

KIB, MIB = 1024, 1024 * 1024
BLOCK = 4 * MIB
WAIT_S = 20.0


class Pause:
    """An on_progress callback that blocks a transfer until ``resume`` is set."""

    def __init__(self, *, at: int = 0) -> None:
        self._at = at
        self.resume = threading.Event()
        self.reached = threading.Event()

    def __call__(self, moved: int, total: int) -> None:
        if moved >= self._at:
            self.reached.set()
            assert self.resume.wait(WAIT_S)


def made(path: Path, total: int) -> bytes:
    data = os.urandom(total)
    path.write_bytes(data)
    os.utime(path, (1_600_000_000, 1_600_000_000))
    return data


@pytest.fixture
def relay(server: Server) -> Iterator[Relay]:
    with Relay(server.address) as relay:
        yield relay


@pytest.fixture
def through(relay: Relay, tmp_path: Path, cache_at_once: None) -> Iterator[Client]:
    """A client behind the relay, with a digest cache."""
    with Client(relay.address, timeout_s=WAIT_S, digest_cache=tmp_path / "memory") as client:
        yield client


# Transferring


def test_files_go_up_and_come_down(client: Client, root: Path, tmp_path: Path) -> None:
    sources = [(tmp_path / f"f{number}", number * MIB) for number in range(6)]
    datas = {path.name: made(path, total) for path, total in sources}
    up = [client.submit_put(path) for path, _ in sources]
    assert [future.result().name for future in up] == list(datas)
    assert published(root) == datas
    seen: list[tuple[int, int]] = []
    (tmp_path / "down").mkdir()
    down = [
        client.submit_get(name, tmp_path / "down", on_progress=lambda *call: seen.append(call))
        for name in datas
    ]
    assert [future.result().content_digest for future in down] == [
        future.result().content_digest for future in up
    ]
    assert {path.name: path.read_bytes() for path in (tmp_path / "down").iterdir()} == datas
    assert (5 * MIB, 5 * MIB) in seen


def test_no_more_than_jobs_run_at_once(server: Server, tmp_path: Path, log: Log) -> None:
    made(tmp_path / "f", 3)
    with Client(server.address, jobs=2) as client:
        pauses = [Pause() for _ in range(3)]
        futures = [
            client.submit_put(tmp_path / "f", f"f{number}", on_progress=pause)
            for number, pause in enumerate(pauses)
        ]
        assert pauses[0].reached.wait(WAIT_S)
        assert pauses[1].reached.wait(WAIT_S)
        assert [future.running() for future in futures] == [True, True, False]
        assert not pauses[2].reached.is_set()
        pauses[0].resume.set()
        assert pauses[2].reached.wait(WAIT_S)
        assert futures[0].done()
        for pause in pauses:
            pause.resume.set()
    requests = [log.wait_for("connection")["requests"] for _ in range(2)]
    assert sorted(requests) == [2, 3], "hello and put over one, and one more over the other"
    assert log.so_far("connection") == []


def test_other_operations_do_not_wait_for_them(client: Client, tmp_path: Path) -> None:
    made(tmp_path / "f", 3)
    pause = Pause()
    held = [client.submit_put(tmp_path / "f", f"f{n}", on_progress=pause) for n in range(9)]
    assert pause.reached.wait(WAIT_S)
    assert client.put(tmp_path / "f").total == 3
    assert client.stat("f").total == 3
    pause.resume.set()
    assert {future.result().total for future in held} == {3}


def test_at_least_one_job() -> None:
    with pytest.raises(ValueError, match="jobs"):
        Client(jobs=0)


def test_result_raises_the_error(client: Client, tmp_path: Path) -> None:
    made(tmp_path / "f", 3)

    def broken(moved: int, total: int) -> None:
        raise ZeroDivisionError

    futures = [
        client.submit_put(tmp_path / "none"),
        client.submit_put(tmp_path / "f", "../f"),
        client.submit_get("none", tmp_path / "copy"),
        client.submit_put(tmp_path / "f", on_progress=broken),
    ]
    kinds = (LocalFileError, RefusedError, RefusedError, ZeroDivisionError)
    for future, kind in zip(futures, kinds, strict=True):
        with pytest.raises(kind):
            future.result()
        assert not future.cancelled()
        assert not future.cancel()
    assert client.submit_put(tmp_path / "f").result().total == 3


def test_they_can_be_awaited(client: Client, root: Path, tmp_path: Path) -> None:
    data = made(tmp_path / "f", 2 * MIB)

    async def both() -> None:
        await asyncio.wrap_future(client.submit_put(tmp_path / "f"))
        await asyncio.wrap_future(client.submit_get("f", tmp_path / "copy"))

    asyncio.run(both())
    assert published(root) == {"f": data}
    assert (tmp_path / "copy").read_bytes() == data


# Cancelling


def assert_cancelled(future: "Future[TransferResult]") -> None:
    with pytest.raises(CancelledError):
        future.result(WAIT_S)
    assert future.cancelled()
    assert future.done()
    assert not future.running()
    assert future.cancel(), "again is as good"


def test_a_queued_transfer_that_is_cancelled_never_starts(
    server: Server, root: Path, tmp_path: Path
) -> None:
    made(tmp_path / "f", 3)
    started: list[str] = []
    with Client(server.address, jobs=1) as client:
        pause = Pause()
        first = client.submit_put(tmp_path / "f", "first", on_progress=pause)
        queued = client.submit_put(
            tmp_path / "f", "queued", on_progress=lambda *call: started.append("queued")
        )
        last = client.submit_put(tmp_path / "f", "last")
        assert pause.reached.wait(WAIT_S)
        assert queued.cancel()
        # concurrent.futures.wait returns at once, though the pool is busy.
        assert wait([first, queued], WAIT_S, FIRST_COMPLETED).done == {queued}
        assert_cancelled(queued)
        pause.resume.set()
        assert {first.result().name, last.result().name} == {"first", "last"}
    assert started == []
    assert sorted(published(root)) == ["first", "last"]


def test_a_running_put_is_cancelled_and_can_be_resumed(
    relay: Relay, through: Client, root: Path, tmp_path: Path
) -> None:
    data = made(tmp_path / "f", 5 * BLOCK)
    (root / "f").write_bytes(b"old")
    released = threading.Event()
    relay.expect(Plan(up=(Hold(4 * BLOCK + MIB, released),)))
    seen: list[tuple[int, int]] = []
    future = through.submit_put(tmp_path / "f", on_progress=lambda *call: seen.append(call))
    relay.wait(lambda relay: relay.up >= 4 * BLOCK + MIB)
    assert future.running()
    assert future.cancel()
    assert_cancelled(future)
    assert published(root) == {"f": b"old"}
    calls = len(seen)
    assert through.submit_put(tmp_path / "f").result().total == 5 * BLOCK
    assert len(seen) == calls, "a cancelled transfer calls nothing"
    assert relay.up < (5 + 4) * BLOCK, "what had arrived was not sent again"
    assert published(root) == {"f": data}
    assert staged(root) == []
    # A transfer that still ran would have taken its block over meanwhile.
    released.set()


def test_it_is_cancelled_while_held_blocks_are_compared(
    client: Client, raw: Raw, root: Path, tmp_path: Path
) -> None:
    data = made(tmp_path / "f", 3 * BLOCK)
    begun = raw.granted("begin", name="f", total=len(data), block=BLOCK)
    for offset in range(0, len(data), BLOCK):
        body = data[offset : offset + BLOCK]
        digest = f"blake3:{blake3(body).hexdigest()}"
        raw.granted("write", body, upload=begun["upload"], offset=offset, digest=digest)
    raw.close()
    cancel = CancelAt(2)  # after the start and the held blocks
    future = client.submit_put(tmp_path / "f", on_progress=cancel)
    cancel.future.set_result(future)
    assert_cancelled(future)
    assert cancel.calls == 3
    assert published(root) == {}


def test_a_running_get_is_cancelled_and_can_be_resumed(
    relay: Relay, through: Client, root: Path, tmp_path: Path
) -> None:
    data = made(root / "f", 5 * BLOCK)
    (tmp_path / "copy").write_bytes(b"old")
    released = threading.Event()
    relay.expect(Plan(down=(Hold(3 * BLOCK + MIB, released),)))
    future = through.submit_get("f", tmp_path / "copy")
    relay.wait(lambda relay: relay.down >= 3 * BLOCK + MIB)
    assert future.cancel()
    assert_cancelled(future)
    released.set()
    assert (tmp_path / "copy").read_bytes() == b"old"
    assert (tmp_path / ".copy.part").is_dir()
    assert through.submit_get("f", tmp_path / "copy").result().total == 5 * BLOCK
    assert relay.down < (5 + 3) * BLOCK
    assert (tmp_path / "copy").read_bytes() == data
    assert not (tmp_path / ".copy.part").exists()


@pytest.mark.parametrize("udp", [UdpMode.NO, UdpMode.ONLY])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_cancelled_at_any_point_a_file_is_complete_or_absent(
    server: Server, root: Path, tmp_path: Path, direction: str, udp: UdpMode
) -> None:
    data = made(tmp_path / "f", BLOCK + 5)
    (root / "g").write_bytes(data)
    with Client(server.address, timeout_s=WAIT_S, udp=udp) as client:
        for step in range(16):
            cancel = CancelAt(step)
            target = root / f"up{step}" if direction == "up" else tmp_path / f"down{step}"
            if direction == "up":
                future = client.submit_put(tmp_path / "f", target.name, on_progress=cancel)
            else:
                future = client.submit_get("g", target, on_progress=cancel)
            cancel.future.set_result(future)
            wait([future], WAIT_S)
            assert future.cancelled() != target.exists()
            if target.exists():
                assert target.read_bytes() == data
            if cancel.calls <= step:
                break  # it was never cancelled
        assert step > 1
        assert client.ping() >= 0


class CancelAt:
    """A callback for progress that cancels its own transfer with the call of number ``step``."""

    def __init__(self, step: int) -> None:
        self._step = step
        self.calls = 0
        self.future: Future[Future[TransferResult]] = Future()

    def __call__(self, moved: int, total: int) -> None:
        future = self.future.result(WAIT_S)
        if self.calls == self._step:
            assert future.cancel()
        self.calls += 1


@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="connecting sockets are not listed")
def test_cancel_while_connecting(tmp_path: Path) -> None:
    made(tmp_path / "f", 3)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as stack:
        port = full.getsockname()[1]
        # With the backlog full, another connection is neither accepted nor refused.
        for _ in range(3):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        before = connecting_to(port)
        with Client(Address(*full.getsockname()), timeout_s=10 * WAIT_S) as client:
            future = client.submit_put(tmp_path / "f")
            while connecting_to(port) == before:
                os.sched_yield()
            assert future.cancel()
            assert_cancelled(future)


def connecting_to(port: int) -> int:
    """Return how many sockets are connecting to a port of this computer."""
    lines = Path("/proc/net/tcp").read_text().splitlines()
    return sum(line.split()[2:4] == [f"0100007F:{port:04X}", "02"] for line in lines)


@pytest.mark.parametrize("greeted", [False, True])
def test_cancel_while_the_server_is_silent(tmp_path: Path, greeted: bool) -> None:
    made(tmp_path / "f", 3)
    received, over, retries = threading.Event(), threading.Event(), list[float]()

    def silent(peer: Peer) -> None:
        if greeted:
            peer.greet()
        peer.request()
        received.set()
        assert over.wait(WAIT_S)

    with (
        hostile(silent) as address,
        Client(Address(*address), timeout_s=10 * WAIT_S, retry_for_s=1e6) as client,
    ):
        future = client.submit_put(
            tmp_path / "f", on_retry=lambda error, delay: retries.append(delay)
        )
        assert received.wait(WAIT_S)
        assert future.cancel()
        assert_cancelled(future)
        over.set()
    assert retries == [], "a cancelled transfer is not retried"


def test_cancel_while_waiting_for_a_retry(tmp_path: Path) -> None:
    made(tmp_path / "f", 3)
    failed = threading.Event()
    with Client("127.0.0.1:1", retry_for_s=1e6) as client:
        future = client.submit_put(tmp_path / "f", on_retry=lambda error, delay: failed.set())
        assert failed.wait(WAIT_S)
        assert future.cancel()
        assert_cancelled(future)


def test_a_completed_transfer_cannot_be_cancelled(
    client: Client, root: Path, tmp_path: Path
) -> None:
    made(tmp_path / "f", 3)
    future = client.submit_put(tmp_path / "f")
    assert future.result().total == 3
    assert not future.cancel()
    assert not future.cancelled()
    assert future.result().total == 3
    assert client.submit_put(tmp_path / "f").result().total == 3, "over the same connection"


def test_cancelling_an_await_cancels_the_transfer(
    relay: Relay, through: Client, tmp_path: Path
) -> None:
    made(tmp_path / "f", BLOCK)
    released = threading.Event()
    relay.expect(Plan(up=(Hold(MIB, released),)))
    future = through.submit_put(tmp_path / "f")

    async def impatient() -> None:
        task = asyncio.ensure_future(asyncio.wrap_future(future))
        await asyncio.to_thread(relay.wait, lambda relay: relay.up >= MIB)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(impatient())
    assert_cancelled(future)
    released.set()


# Closing


def test_the_end_of_the_with_block_waits_for_transfers(
    server: Server, root: Path, tmp_path: Path
) -> None:
    made(tmp_path / "f", 2 * MIB)
    with Client(server.address, jobs=2) as client:
        futures = [client.submit_put(tmp_path / "f", f"f{number}") for number in range(8)]
    assert all(future.done() and not future.cancelled() for future in futures)
    assert len(published(root)) == 8


def test_an_exception_in_the_with_block_cancels_transfers(
    server: Server, root: Path, tmp_path: Path
) -> None:
    made(tmp_path / "f", 2 * BLOCK)
    released = threading.Event()
    with Relay(server.address) as relay:
        relay.expect(*[Plan(up=(Hold(MIB, released),))] * 2)
        client = Client(relay.address, jobs=2)
        futures = [client.submit_put(tmp_path / "f", f"f{number}") for number in range(8)]
        relay.wait(lambda relay: relay.up >= 2 * MIB)
        with pytest.raises(ZeroDivisionError), client:
            raise ZeroDivisionError
        released.set()
    assert all(future.cancelled() for future in futures)
    assert published(root) == {}


def test_a_closed_client_can_be_used_again(client: Client, tmp_path: Path) -> None:
    made(tmp_path / "f", 3)
    for _ in range(2):
        assert client.submit_put(tmp_path / "f").result().total == 3
        client.close()
        client.close(cancel_futures=True)


def test_an_interrupted_close_cancels_the_transfers(server: Server, tmp_path: Path) -> None:
    made(tmp_path / "f", BLOCK)
    released = threading.Event()
    with Relay(server.address) as relay:
        relay.expect(Plan(up=(Hold(MIB, released),)))
        client = Client(relay.address)
        future = client.submit_put(tmp_path / "f")
        relay.wait(lambda relay: relay.up >= MIB)
        assert client._pool is not None
        client._pool._executor.shutdown = _interrupted  # type: ignore[assignment]  # Ctrl-C
        with pytest.raises(KeyboardInterrupt):
            client.close()
        wait([future], WAIT_S)
        assert future.cancelled()
        released.set()
        client.close()


def _interrupted() -> None:
    raise KeyboardInterrupt


# Rate


@pytest.mark.parametrize("udp", [UdpMode.NO, UdpMode.ONLY])
def test_background_transfers_share_one_rate(server: Server, tmp_path: Path, udp: UdpMode) -> None:
    made(tmp_path / "f", MIB + 1)
    started = time.monotonic()
    with Client(server.address, bytes_per_s=4e6, jobs=4, udp=udp) as client:
        for number in range(4):
            client.submit_put(tmp_path / "f", f"f{number}")
    assert time.monotonic() - started >= 0.8 * 4 * MIB / 4e6


def test_udp_transfers_at_a_rate_run_one_by_one_and_stay_connected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp, "_PING_S", 0.5)
    data = made(tmp_path / "f", 1_000_000)
    # The server closes connections that are silent for as long as one transfer waits.
    with (
        Server(tmp_path / "root", port=0, limits=Limits(idle_timeout_s=1.5)) as server,
        Client(server.address, bytes_per_s=500e3, udp=UdpMode.ONLY) as client,
    ):
        futures = [client.submit_put(tmp_path / "f", f"f{number}") for number in range(2)]
        assert [future.result().total for future in futures] == [len(data)] * 2


# The token


def test_a_cancel_token_shuts_down_only_the_attached_connection() -> None:
    stop = CancelToken()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stop.attach(ours)
        stop.detach()
        stop.cancel()
        ours.sendall(b"still")
        assert theirs.recv(5) == b"still"
        with pytest.raises(Cancelled):
            stop.attach(ours)
    assert stop.is_cancelled()


@pytest.mark.parametrize("wait_for", [CancelToken.check, lambda stop: stop.sleep(1e6)])
def test_a_cancelled_token_ends_every_wait(wait_for: Callable[[CancelToken], None]) -> None:
    stop = CancelToken()
    stop.check()
    stop.sleep(0.0)
    stop.cancel()
    with pytest.raises(Cancelled):
        wait_for(stop)


def test_results_come_as_they_are_completed(client: Client, tmp_path: Path) -> None:
    made(tmp_path / "f", 3)
    pause = Pause()
    slow = client.submit_put(tmp_path / "f", "slow", on_progress=pause)
    assert pause.reached.wait(WAIT_S)
    quick = client.submit_put(tmp_path / "f", "quick")
    order = as_completed([slow, quick], WAIT_S)
    assert next(order) is quick
    pause.resume.set()
    assert next(order) is slow


def test_a_server_that_stops_ends_background_transfers(server: Server, tmp_path: Path) -> None:
    made(tmp_path / "f", 3)
    with Client(server.address, jobs=2) as client:
        assert client.submit_put(tmp_path / "f").result().total == 3
        server.stop(grace_s=0.0)
        with pytest.raises(ConnectionLostError):
            client.submit_put(tmp_path / "f").result()
