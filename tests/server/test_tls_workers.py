"""Workers and TLS: the worker with the keys proxies a connection to another."""

import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest

from ftpkit import Client, Grant, Identity, Tokens, UdpMode, Url
from ftpkit.osapi import sockets as os_sockets
from ftpkit.server.workers.supervisor import Supervisor
from ftpkit.server.workers.worker import WorkerConfig
from tests.server import test_workers
from tests.server.test_workers import (
    BLOCK,
    DATA,
    WAIT_S,
    b3,
    begin,
    counts,
    gone,
    holders,
    pids,
    records,
    two,
    unfinished,
    write,
)
from tests.support.logs import Log
from tests.support.raw import Raw
from tests.support.tls import secure
from tests.support.trees import published

pytestmark = pytest.mark.skipif(
    not os_sockets.HAS_FD_PASSING, reason="no passing of descriptors on this system"
)

IDENTITY = Identity.make()

Serve = Callable[..., Supervisor]


@pytest.fixture(autouse=True, scope="module")
def _tracker() -> None:
    """Start the resource tracker, which multiprocessing keeps until this process ends."""
    resource_tracker.ensure_running()


@pytest.fixture
def serve(root: Path) -> Iterator[Serve]:
    """Start servers of two workers, which require TLS."""
    with ExitStack() as stack:

        def start(**config: Any) -> Supervisor:
            server = Supervisor(root, WorkerConfig(workers=2, identity=IDENTITY, **config), port=0)
            server.start()
            stack.callback(server.stop, 0.0)
            return server

        yield start


@pytest.fixture
def workers(serve: Serve) -> Supervisor:
    """A server of two workers."""
    return serve()


@pytest.fixture
def connect(workers: Supervisor) -> Iterator[Callable[[], Raw]]:
    """Open raw connections, which the end of the test closes."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(secure(Raw(workers.address)))


def test_connections_of_one_upload_are_proxied_to_one_worker(
    workers: Supervisor, connect: Callable[[], Raw], root: Path
) -> None:
    one, other = two(connect, workers)
    upload = begin(one)["upload"]
    for at, offset in enumerate(range(0, len(DATA), BLOCK)):
        assert write((one, other)[at % 2], upload, offset).ok
    reply = other.granted("commit", upload=upload, total=len(DATA), content_digest=b3(DATA))
    assert one.granted("commit", upload=upload, total=len(DATA)).header == reply.header
    assert published(root) == {"f": DATA}
    assert unfinished(root) == []
    assert workers.status()["connections"] == 2
    one.close()
    other.close()
    assert workers.connection_limiter.wait_for(lambda count: count == 0, WAIT_S)


@pytest.mark.parametrize(
    "test",
    [
        test_workers.test_a_file_published_by_one_worker_is_served_by_the_other,
        test_workers.test_bytes_read_ahead_are_handed_over,
        test_workers.test_a_begin_takes_over_an_upload_of_a_silent_connection_in_another_worker,
        test_workers.test_a_connection_can_be_handed_over_and_back,
    ],
)
def test_a_test_of_workers_passes_over_tls(
    test: Callable[[Supervisor, Callable[[], Raw], Path], None],
    workers: Supervisor,
    connect: Callable[[], Raw],
    root: Path,
) -> None:
    test(workers, connect, root)


@pytest.mark.parametrize("killed", ["proxy", "successor"])
def test_a_killed_worker_ends_its_proxied_connections_alone(
    workers: Supervisor, connect: Callable[[], Raw], root: Path, log: Log, killed: str
) -> None:
    one, other = two(connect, workers)
    upload = begin(one)["upload"]
    assert write(other, upload, 0).ok
    (holder,) = holders(workers)
    serving = workers._pool.serving()
    victim = next(each for each in serving if (each.number == holder) == (killed == "successor"))
    os.kill(workers._processes._running[victim].process.pid or 0, signal.SIGKILL)
    assert log.wait_for("worker died")["number"] == victim.number
    with pytest.raises(OSError, match=r"ended|reset|EOF"):
        other.granted("ping")
    again = one if killed == "proxy" else connect()
    assert [record[0] for record in records(begin(again))] == [0]
    for offset in range(BLOCK, len(DATA), BLOCK):
        assert write(again, upload, offset).ok
    again.granted("commit", upload=upload, total=len(DATA))
    assert published(root) == {"f": DATA}


def test_after_a_reload_new_connections_find_the_new_key_and_open_ones_stay(
    workers: Supervisor, connect: Callable[[], Raw], tmp_path: Path, log: Log
) -> None:
    one, other = two(connect, workers)
    upload = begin(one)["upload"]
    old, identity = pids(workers), Identity.make()
    workers.change(WorkerConfig(workers=2, identity=identity))
    log.wait_for("reloaded")
    for at, offset in enumerate(range(0, len(DATA), BLOCK)):
        assert write((one, other)[at % 2], upload, offset).ok
    other.granted("commit", upload=upload, total=len(DATA))
    with Client(Url(workers.address, identity.pin)) as client:
        assert client.stat("f").total == len(DATA)
    one.close()
    other.close()
    gone(workers, old)


def test_a_proxied_connection_counts_once_for_its_user(serve: Serve, tmp_path: Path) -> None:
    path = str(tmp_path / "tokens.json")
    tokens = Tokens(path)
    token = tokens.add(Grant(user="ada", connections=2))
    server = serve(tokens=path)
    with ExitStack() as stack:

        def connect() -> Raw:
            return stack.enter_context(secure(Raw(server.address)))

        raws = [connect(), connect()]
        for raw in raws:
            raw.granted("auth", token=token)
        upload = begin(raws[0])["upload"]
        for at, offset in enumerate(range(0, len(DATA), BLOCK)):
            assert write(raws[at % 2], upload, offset).ok
        assert connect().refused("auth", token=token) == "too-many-connections"
        raws[1].close()
        assert server.connection_limiter.wait_for(lambda count: count == 1, WAIT_S)
        raws.append(connect())
        raws[2].granted("auth", token=token)
        assert write(raws[2], upload, 0).ok
        tokens.remove("ada")
        for raw in (raws[0], raws[2]):
            assert raw.receive().code == "auth-required"
    assert server.connection_limiter.wait_for(lambda count: count == 0, WAIT_S)


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit of another process needs Linux")
@pytest.mark.parametrize("without", ["proxy", "successor"])
def test_a_connection_that_cannot_be_proxied_is_released(
    serve: Serve, tmp_path: Path, without: str
) -> None:
    path = str(tmp_path / "tokens.json")
    token = Tokens(path).add(Grant(user="ada", connections=2))
    server = serve(tokens=path)
    with ExitStack() as stack:
        raws = [stack.enter_context(secure(Raw(server.address))) for _ in range(2)]
        for raw in raws:
            raw.granted("auth", token=token)
        upload = begin(raws[0])["upload"]
        assert write(raws[0], upload, 0).ok
        (holder,) = holders(server)
        serving = server._pool.serving()
        poor = next(each for each in serving if (each.number == holder) == (without == "successor"))
        pid = server._processes._running[poor].process.pid or 0
        import resource  # not everywhere

        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = set(map(int, os.listdir(f"/proc/{pid}/fd")))
        free = min(set(range(len(used) + 1)) - used)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, before[1]))
        with pytest.raises(OSError, match=r"ended|reset|EOF"):
            write(raws[1], upload, BLOCK)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        assert server._shared_limits.connections.wait_for(lambda count: count == 1, WAIT_S)
        again = stack.enter_context(secure(Raw(server.address)))
        again.granted("auth", token=token)
        assert write(again, upload, BLOCK).ok
        assert server._shared_limits.connections.wait_for(lambda count: count == 2, WAIT_S)


@pytest.mark.skipif(not os_sockets.HAS_SHARED_PORTS, reason="no shared UDP ports on this system")
def test_datagrams_of_a_proxied_session_arrive(
    workers: Supervisor, connect: Callable[[], Raw], root: Path, tmp_path: Path
) -> None:
    one, other = two(connect, workers)
    source = tmp_path / "source"
    source.write_bytes(random.Random(4).randbytes(9 * BLOCK))
    begin(one, "a", 9 * BLOCK)
    begin(other, "b", 9 * BLOCK)
    for name in ("a", "b"):
        with Client(Url(workers.address, IDENTITY.pin), udp=UdpMode.ONLY) as client:
            client.put(source, name)
            client.get(name, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == source.read_bytes()


def test_a_quota_applies_to_all_workers_together(serve: Serve, tmp_path: Path) -> None:
    path = str(tmp_path / "tokens.json")
    token = Tokens(path).add(Grant(user="ada", quota=BLOCK))
    server = serve(tokens=path)
    with ExitStack() as stack:
        raws = [stack.enter_context(secure(Raw(server.address))) for _ in range(2)]
        for raw in raws:
            raw.granted("auth", token=token)
        assert counts(server) == [1, 1]
        raws[0].granted("put", bytes(BLOCK - 1), name="a")
        assert raws[1].refused("put", bytes(2), name="b") == "quota-exceeded"
        raws[1].granted("put", bytes(1), name="b")
        assert raws[0].refused("put", bytes(1), name="c") == "quota-exceeded"
        raws[1].granted("delete", name="a")
        raws[0].granted("put", bytes(BLOCK - 1), name="c")
