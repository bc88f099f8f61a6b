"""A server of several processes: dispatch, shared limits, failures and reloads."""

import json
import os
import random
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import blake3
import pytest

from ftpkit import Client, UdpMode
from ftpkit.osapi import sockets as os_sockets
from ftpkit.server.limits import Limits
from ftpkit.server.workers import processes as processes_module
from ftpkit.server.workers.processes import next_delay
from ftpkit.server.workers.supervisor import Supervisor
from ftpkit.server.workers.worker import WorkerConfig
from ftpkit.storage import DirectoryStore
from ftpkit.tokens import Grant, Permission, Tokens
from tests.support.logs import Log
from tests.support.raw import Raw, Reply, frame
from tests.support.trees import published, staged

pytestmark = pytest.mark.skipif(
    not os_sockets.HAS_FD_PASSING, reason="no passing of descriptors on this system"
)

BLOCK = 64 * 1024
MIB = 1024 * 1024
DATA = random.Random(3).randbytes(4 * BLOCK + 5)
WAIT_S = 20.0


@pytest.fixture(autouse=True, scope="module")
def _tracker() -> None:
    """Start the resource tracker, which multiprocessing keeps until this process ends."""
    resource_tracker.ensure_running()


Serve = Callable[..., Supervisor]


@pytest.fixture
def serve(root: Path) -> Iterator[Serve]:
    """Start servers of two workers each."""
    with ExitStack() as stack:

        def start(**limits: Any) -> Supervisor:
            server = Supervisor(root, WorkerConfig(workers=2, limits=Limits(**limits)), port=0)
            server.start()
            stack.callback(server.stop, 0.0)
            return server

        yield start


@pytest.fixture
def workers(serve: Serve) -> Supervisor:
    """A server of two workers."""
    return serve(stall_timeout_s=10.0, idle_timeout_s=20.0)


@pytest.fixture
def connect(workers: Supervisor) -> Iterator[Callable[[], Raw]]:
    """Open raw connections, which the end of the test closes."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Raw(workers.address))


def b3(data: bytes) -> str:
    return f"blake3:{blake3.blake3(data).hexdigest()}"


def begin(raw: Raw, name: str = "f", total: int = len(DATA)) -> Reply:
    return raw.granted("begin", name=name, total=total, block=BLOCK)


def write(raw: Raw, upload: str, offset: int, data: bytes = DATA) -> Reply:
    body = data[offset : offset + BLOCK]
    return raw.ask("write", body, upload=upload, offset=offset, digest=b3(body))


def counts(server: Supervisor) -> list[int]:
    """Return the number of connections of each worker."""
    return [worker.connections for worker in server._pool.serving()]


def pids(server: Supervisor) -> list[int]:
    return [each.process.pid or 0 for each in server._processes._running.values()]


def two(connect: Callable[[], Raw], server: Supervisor) -> tuple[Raw, Raw]:
    """Return two connections that different workers serve."""
    one, other = connect(), connect()
    one.granted("ping")
    other.granted("ping")
    assert counts(server) == [1, 1]
    return one, other


# Connections


def test_each_connection_goes_to_the_worker_with_the_fewest(
    workers: Supervisor, connect: Callable[[], Raw]
) -> None:
    raws = [connect() for _ in range(10)]
    for raw in raws:
        raw.granted("ping")
    assert counts(workers) == [5, 5]
    for raw in raws[:4]:
        raw.close()
    workers.connection_limiter.wait_for(lambda count: count == 6)
    for _ in range(4):
        connect().granted("ping")
    assert counts(workers) == [5, 5]


def test_connection_limits_apply_to_all_workers_together(serve: Serve) -> None:
    server = serve(max_connections=3)
    with ExitStack() as stack:
        raws = [stack.enter_context(Raw(server.address)) for _ in range(4)]
        for raw in raws[:3]:
            raw.granted("ping")
        assert raws[3].receive().code == "too-many-connections"
        raws[0].close()
        server.connection_limiter.wait_for(lambda count: count == 2)
        stack.enter_context(Raw(server.address)).granted("ping")


def test_a_file_published_by_one_worker_is_served_by_the_other(
    workers: Supervisor, connect: Callable[[], Raw], root: Path
) -> None:
    one, other = two(connect, workers)
    one.granted("put", DATA, name="d/f")
    assert other.granted("get", name="d/f").body == DATA
    other.granted("delete", name="d", recursive=True)
    assert one.refused("get", name="d/f") == "not-found"
    assert unfinished(root) == []


# Uploads


def test_connections_of_one_upload_are_handed_to_one_worker(
    workers: Supervisor, connect: Callable[[], Raw], root: Path
) -> None:
    one, other = two(connect, workers)
    upload = begin(one)["upload"]
    for at, offset in enumerate(range(0, len(DATA), BLOCK)):
        assert write((one, other)[at % 2], upload, offset).ok
    assert sorted(counts(workers)) == [0, 2]
    reply = other.granted("commit", upload=upload, total=len(DATA), content_digest=b3(DATA))
    assert one.granted("commit", upload=upload, total=len(DATA)).header == reply.header
    assert published(root) == {"f": DATA}
    assert unfinished(root) == []


def test_bytes_read_ahead_are_handed_over(
    workers: Supervisor, connect: Callable[[], Raw], root: Path
) -> None:
    one, other = two(connect, workers)
    upload = begin(one)["upload"]
    body = DATA[:BLOCK]
    other.send(
        {"op": "write", "upload": upload, "offset": 0, "size": BLOCK, "digest": b3(body), "id": 7},
        body + frames({"op": "ping", "id": "p"}, {"op": "stat", "name": "", "id": 9}),
    )
    replies = [other.receive() for _ in range(3)]
    assert [reply["ok"] for reply in replies] == [True] * 3
    assert [reply["id"] for reply in replies] == [7, "p", 9]
    assert [record[0] for record in records(begin(one))] == [0]


def test_the_digest_chosen_by_hello_is_handed_over(
    workers: Supervisor, connect: Callable[[], Raw]
) -> None:
    one, other = two(connect, workers)
    third = connect()
    third.granted("hello", version=1, agent="t", digests=["sha256"])
    upload = begin(one)["upload"]
    write(one, upload, 0)
    assert begin(other)["size"] == 44
    assert begin(third)["size"] == 0
    assert third.refused("hello", version=1, agent="t") == "bad-request"


def test_a_begin_takes_over_an_upload_of_a_silent_connection_in_another_worker(
    workers: Supervisor, connect: Callable[[], Raw], root: Path
) -> None:
    silent, other = two(connect, workers)
    upload = begin(silent)["upload"]
    body = DATA[:BLOCK]
    head = {"op": "write", "upload": upload, "offset": 0, "size": BLOCK, "digest": b3(body)}
    # The reply to the ping shows that the rest is being read.
    silent.sock.sendall(frames({"op": "ping"}) + frame(head, body[: BLOCK // 2]))
    assert silent.receive().ok
    assert begin(other)["upload"] == upload
    for offset in range(0, len(DATA), BLOCK):
        assert write(other, upload, offset).ok
    silent.sock.sendall(body[BLOCK // 2 :])
    assert silent.receive().code == "busy"
    other.granted("commit", upload=upload, total=len(DATA))
    assert published(root) == {"f": DATA}


def test_a_connection_can_be_handed_over_and_back(
    workers: Supervisor, connect: Callable[[], Raw], root: Path
) -> None:
    one, other = two(connect, workers)
    first, second = begin(one, "a")["upload"], begin(other, "b")["upload"]
    third = connect()
    for offset in range(0, len(DATA), BLOCK):
        assert write(third, first, offset).ok
        assert write(third, second, offset).ok
    for upload in (first, second):
        third.granted("commit", upload=upload, total=len(DATA))
    assert published(root) == {"a": DATA, "b": DATA}


def test_uploads_that_ended_are_released(
    workers: Supervisor, connect: Callable[[], Raw], root: Path
) -> None:
    one, other = two(connect, workers)
    upload = begin(one, "a")["upload"]
    one.granted("abort", upload=upload)
    begin(other, "b")
    other.close()
    workers.connection_limiter.wait_for(lambda count: count == 1)
    begin(one, "b")
    one.close()
    workers.connection_limiter.wait_for(lambda count: count == 0)
    assert workers._pool._uploads == {}


@pytest.mark.skipif(not os_sockets.HAS_SHARED_PORTS, reason="no shared UDP ports on this system")
def test_datagrams_reach_the_worker_of_their_session(
    workers: Supervisor, connect: Callable[[], Raw], root: Path, tmp_path: Path
) -> None:
    one, other = two(connect, workers)
    begin(one, "a", 3 * MIB)
    begin(other, "b", 3 * MIB)
    for name in ("a", "b", "c", "d"):
        source = tmp_path / name
        source.write_bytes(random.Random(name).randbytes(3 * MIB))
        with Client(workers.address, udp=UdpMode.ONLY) as client:
            client.put(source)
            client.get(name, tmp_path / "back")
        assert (root / name).read_bytes() == source.read_bytes()
        assert (tmp_path / "back").read_bytes() == source.read_bytes()


# Status


def test_each_worker_requires_a_token_and_keeps_the_user_of_a_handoff(
    root: Path, tmp_path: Path
) -> None:
    tokens = Tokens(tmp_path / "tokens.json")
    can = frozenset({Permission.WRITE})
    token = tokens.add(Grant(user="ada", can=can, under="d", connections=2))
    server = Supervisor(root, WorkerConfig(workers=2, tokens=tokens.path), port=0)
    server.start()
    with ExitStack() as stack:
        stack.callback(server.stop, 0.0)
        one, other = (stack.enter_context(Raw(server.address)) for _ in range(2))
        for raw in (one, other):
            assert raw.refused("mkdir", name="d") == "auth-required"
            assert raw.refused("auth", token="wrong") == "auth-failed"
            raw.granted("auth", token=token)
            assert raw.refused("list") == "forbidden"
        assert counts(server) == [1, 1]
        upload = begin(one)["upload"]
        for at, offset in enumerate(range(0, len(DATA), BLOCK)):
            assert write((one, other)[at % 2], upload, offset).ok
        assert sorted(counts(server)) == [0, 2]
        assert other.refused("list") == "forbidden"
        with Raw(server.address) as third:
            assert third.refused("auth", token=token) == "too-many-connections"
        other.granted("commit", upload=upload, total=len(DATA))
        tokens.remove("ada")
        for raw in (one, other):
            assert raw.receive().code == "auth-required"
    assert published(root) == {"d/f": DATA}


def test_any_worker_returns_the_status_of_all(
    workers: Supervisor, connect: Callable[[], Raw], root: Path
) -> None:
    one, other = two(connect, workers)
    write(one, begin(one, "a")["upload"], 0)
    begin(other, "b")
    other.granted("put", DATA, name="c")
    for raw in (one, other):
        whole = status(raw)
        assert {(each["name"], each["moved"]) for each in whole["transfers"]} == {
            ("a", BLOCK),
            ("b", 0),
        }
        assert [(each["number"], each["connections"]) for each in whole["workers"]] == [
            (1, 1),
            (2, 1),
        ]
        assert [each["pid"] for each in whole["workers"]] == pids(workers)
        assert (whole["connections"], whole["totals"]["uploads"]) == (2, 1)
    assert workers.status()["connections"] == 2


def test_the_status_keeps_the_totals_of_old_workers_after_a_reload(
    workers: Supervisor, connect: Callable[[], Raw], log: Log
) -> None:
    one, other = two(connect, workers)
    upload = begin(one, "a")["upload"]
    other.granted("put", DATA, name="b")
    old = pids(workers)
    workers.change(WorkerConfig(workers=2, limits=Limits(max_connections=77)))
    while log.so_far("reloaded") == []:
        assert {each["name"] for each in status(one)["transfers"]} == {"a"}
    whole = status(other)
    assert (whole["max_connections"], whole["totals"]["uploads"]) == (77, 1)
    assert {each["name"] for each in whole["transfers"]} == {"a"}
    one.granted("abort", upload=upload)
    one.granted("ping")
    gone(workers, old)
    whole = status(one)
    assert [each["number"] for each in whole["workers"]] == [3, 4]
    assert (whole["totals"]["uploads"], whole["totals"]["unfinished"]) == (1, 1)


def test_the_status_does_not_wait_for_a_killed_or_stopped_worker(
    workers: Supervisor, connect: Callable[[], Raw], log: Log
) -> None:
    one, other = two(connect, workers)
    other.granted("put", DATA, name="b")
    assert status(one)["totals"]["uploads"] == 1
    mine, lost = pids(workers)
    os.kill(lost, signal.SIGSTOP)
    assert [each["pid"] for each in status(one)["workers"]] == [mine]
    one.send({"op": "status"})
    os.kill(lost, signal.SIGKILL)
    assert one.receive().ok
    log.wait_for("worker died")
    assert status(one)["totals"]["uploads"] == 1


# Limits


def test_the_rate_limit_applies_to_all_workers_together(serve: Serve, tmp_path: Path) -> None:
    rate = 16 * MIB
    server = serve(bytes_per_s=rate)
    started = time.monotonic()
    with uploads(server, tmp_path, count=4, size=4 * MIB):
        pass
    seconds = time.monotonic() - started
    assert 1.2 * rate * seconds >= 4 * 4 * MIB, "that many bytes need more time"
    assert server.status()["totals"]["uploads"] == 4
    wait_until(lambda: not server._scheduler._flows)


def test_one_slot_is_shared_by_all_workers(serve: Serve, tmp_path: Path) -> None:
    server = serve(slots=1, bytes_per_s=8 * MIB, schedule="rr")
    positions = set()
    with uploads(server, tmp_path, count=4, size=2 * MIB) as done:
        while not all(each.done() for each in done):
            whole = server.status()
            states = [each["state"] for each in whole["transfers"]]
            assert states.count("running") <= 2, (
                "one, and one of a status of another worker that is older"
            )
            assert server._scheduler._scheduler._running <= 1
            positions |= {each["position"] for each in whole["transfers"]}
            if len(whole["transfers"]) == 4:
                assert [each["connections"] for each in whole["workers"]] == [2, 2]
    assert {1, 2} < positions
    assert server.status()["totals"]["uploads"] == 4


def test_limits_of_a_reload_apply_to_open_connections(
    workers: Supervisor, connect: Callable[[], Raw], log: Log
) -> None:
    one, other = two(connect, workers)
    upload = begin(one)["upload"]
    write(one, upload, 0)
    assert status(one)["policy"] is None
    workers.change(WorkerConfig(workers=2, limits=Limits(slots=1, schedule="fcfs")))
    log.wait_for("reloaded")
    wait_until(lambda: bool(status(one)["policy"] == "fcfs"))
    write(one, upload, BLOCK)
    flows = workers._scheduler._flows
    wait_until(lambda: [flow.transfer.moved for flow in flows.values()] == [2 * BLOCK])
    workers.change(WorkerConfig(workers=2))
    log.wait_for("reloaded")
    wait_until(lambda: status(one)["policy"] is None)
    assert write(one, upload, 2 * BLOCK).ok
    other.granted("put", DATA, name="b")
    one.granted("abort", upload=upload)
    wait_until(lambda: not flows)


@contextmanager
def uploads(
    server: Supervisor, here: Path, *, count: int, size: int
) -> Iterator[list["Future[None]"]]:
    """Let ``count`` clients upload concurrently, and wait for all."""

    def put(number: int) -> None:
        source = here / f"{number}"
        source.write_bytes(bytes(size))
        with Client(server.address, retry_for_s=WAIT_S) as client:
            client.put(source)

    with ThreadPoolExecutor(max_workers=count) as threads:
        futures = [threads.submit(put, number) for number in range(count)]
        yield futures
        for future in futures:
            future.result(WAIT_S)


def status(raw: Raw) -> Any:
    return json.loads(raw.granted("status").body)


# Failures and reloads


def test_a_killed_worker_is_replaced_and_its_uploads_are_released(
    workers: Supervisor, connect: Callable[[], Raw], root: Path, log: Log
) -> None:
    one, other = two(connect, workers)
    upload = begin(one)["upload"]
    write(one, upload, 0)
    lost = next(m for m in workers._pool.serving() if m.number in holders(workers))
    os.kill(workers._processes._running[lost].process.pid or 0, signal.SIGKILL)
    assert log.wait_for("worker died")["number"] == lost.number
    with pytest.raises(OSError, match=r"ended|reset"):
        one.granted("ping")
    assert [record[0] for record in records(begin(other))] == [0]
    for offset in range(BLOCK, len(DATA), BLOCK):
        assert write(other, upload, offset).ok
    other.granted("commit", upload=upload, total=len(DATA))
    assert published(root) == {"f": DATA}
    assert workers.connection_limiter.wait_for(lambda count: count == 1, WAIT_S)
    connect().granted("ping")
    third = connect()
    third.granted("ping")


def test_new_workers_take_over_and_old_workers_drain(
    workers: Supervisor, connect: Callable[[], Raw], root: Path, log: Log
) -> None:
    one, other = two(connect, workers)
    third = connect()
    upload = begin(one)["upload"]
    write(one, upload, 0)
    old = pids(workers)
    workers.change(WorkerConfig(workers=3))
    log.wait_for("reloaded", workers=3)
    assert counts(workers) == [0, 0, 0]
    third.granted("hello", version=1, agent="t")

    def handed_over() -> bool:
        # They are handed over with the first request after their worker was whole to drain.
        other.granted("ping")
        third.granted("ping")
        return sum(counts(workers)) == 2

    wait_until(handed_over)
    for offset in range(BLOCK, len(DATA), BLOCK):
        assert write(one, upload, offset).ok
    assert [record[0] for record in records(begin(third))][:2] == [0, BLOCK]
    assert begin(third)["upload"] == upload
    third.close()
    one.granted("commit", upload=upload, total=len(DATA))
    one.granted("ping")
    assert published(root) == {"f": DATA}
    assert sum(counts(workers)) == 2
    gone(workers, old)


def test_workers_that_do_not_start_do_not_replace_the_present_ones(
    workers: Supervisor, connect: Callable[[], Raw], log: Log
) -> None:
    one, _ = two(connect, workers)
    before = pids(workers)
    workers.change(WorkerConfig(workers=2, on_start=fail))
    assert "did not start" in log.wait_for("error")["error"]
    one.granted("ping")
    assert pids(workers)[:2] == before
    assert counts(workers)[:2] == [1, 1]


def test_a_system_that_cannot_start_processes_loses_no_connection(
    workers: Supervisor, connect: Callable[[], Raw], log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def Process(self, **args: Any) -> None:
            raise OSError("no more processes")

    one, other = two(connect, workers)
    with monkeypatch.context() as patch:
        patch.setattr(processes_module, "_SPAWN", Full())
        workers.change(WorkerConfig(workers=2))
        log.wait_for("error", error="the new workers did not start")
        one.granted("ping")
        lost = workers._pool.serving()[0]
        os.kill(workers._processes._running[lost].process.pid or 0, signal.SIGKILL)
        log.wait_for("worker died")
        log.wait_for("error")
    connect().granted("ping")
    assert {one_alive(one), one_alive(other)} == {True, False}
    wait_until(lambda: len(workers._pool.serving()) == 2)


def one_alive(raw: Raw) -> bool:
    try:
        return raw.ask("ping").ok
    except OSError:
        return False


def test_a_server_whose_workers_do_not_start_raises(root: Path) -> None:
    server = Supervisor(root, WorkerConfig(workers=2, on_start=fail), port=0)
    with pytest.raises(OSError, match="did not start"):
        server.start()


def test_a_store_that_was_passed_in_is_shared_and_not_closed(root: Path) -> None:
    with DirectoryStore(root) as store:
        server = Supervisor(store, WorkerConfig(workers=2), port=0)
        server.start()
        try:
            with Raw(server.address) as raw:
                raw.granted("put", DATA, name="f")
        finally:
            server.stop(0.0)
        assert store.stat("f").total == len(DATA)


def test_the_delay_before_a_restart_grows_while_workers_die_at_once() -> None:
    delay, delays = 0.0, []
    for _ in range(8):
        delay = next_delay(delay, 0.2)
        delays.append(delay)
    assert delays == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    assert next_delay(2.0, 3600.0) == 0.0


def test_a_stop_lets_running_transfers_finish(
    workers: Supervisor, connect: Callable[[], Raw], root: Path
) -> None:
    one, other = two(connect, workers)
    upload = begin(one)["upload"]
    stopping = threading.Thread(target=workers.stop, args=(WAIT_S,))
    stopping.start()
    assert other.receive().code == "shutting-down"
    for offset in range(0, len(DATA), BLOCK):
        assert write(one, upload, offset).ok
    one.granted("commit", upload=upload, total=len(DATA))
    assert one.receive().code == "shutting-down"
    stopping.join(WAIT_S)
    assert not stopping.is_alive()
    assert published(root) == {"f": DATA}
    assert unfinished(root) == []
    with pytest.raises(ConnectionRefusedError):
        Raw(("127.0.0.1", 1))


def unfinished(root: Path) -> list[str]:
    """Return the staged files, without the directories of the workers."""
    return [name for name in staged(root) if not (root / ".ftpkit" / name).is_dir()]


def fail() -> None:
    raise SystemExit(3)


def frames(*headers: dict[str, Any]) -> bytes:
    return b"".join(map(frame, headers))


def records(reply: Reply) -> list[tuple[int, int]]:
    return [(offset, length) for offset, length, _ in struct.iter_unpack("!QI32s", reply.body)]


def holders(server: Supervisor) -> set[int]:
    return set(server._pool._uploads.values())


def gone(server: Supervisor, old: list[int]) -> None:
    """Wait until processes were joined."""
    wait_until(lambda: not set(old) & {*pids(server)})


def wait_until(holds: Callable[[], bool]) -> None:
    pause, deadline = threading.Event(), time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        pause.wait(0.02)
