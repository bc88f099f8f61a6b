"""The worker pool: which worker has which upload, while workers start and end."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from ftpkit.errors import WrongWorkerError
from ftpkit.osapi import sockets as os_sockets
from ftpkit.server.auth.shared_limits import LocalLimits
from ftpkit.server.connection_limit import ConnectionLimiter
from ftpkit.server.workers.ipc import IpcChannel
from ftpkit.server.workers.limits_server import SharedLimitsServer
from ftpkit.server.workers.pool import WorkerHandle, WorkerPool, WorkerState

pytestmark = pytest.mark.skipif(
    not os_sockets.HAS_FD_PASSING, reason="no passing of descriptors on this system"
)


class Worker:
    """A worker that sends what a test says."""

    def __init__(self, pool: WorkerPool, number: int) -> None:
        ours, theirs = socket.socketpair()
        theirs.settimeout(5.0)
        self.handle, self._channel = WorkerHandle(number, IpcChannel(ours)), IpcChannel(theirs)
        self._pool, self._theirs = pool, theirs
        pool.join(self.handle)
        self.say("ready")

    def say(self, op: str, **message: Any) -> None:
        self._pool.receive(self.handle, {"op": op, **message}, b"", [])

    def received(self) -> dict[str, Any]:
        header, _, fds = self._channel.receive()
        assert fds == []
        return {key: value for key, value in header.items() if key not in ("size", "fds")}

    def received_nothing(self) -> bool:
        return not os_sockets.wait_readable(self._theirs, 0.0)

    def close(self) -> None:
        self.handle.close()
        self._channel.close()


Join = Callable[[int], Worker]


@pytest.fixture
def limits() -> LocalLimits:
    return LocalLimits(lambda name, should_continue: 0)


@pytest.fixture
def pool(limits: LocalLimits) -> WorkerPool:
    return WorkerPool(ConnectionLimiter(), SharedLimitsServer(limits))


@pytest.fixture
def join(pool: WorkerPool) -> Iterator[Join]:
    with ExitStack() as stack:

        def start(number: int) -> Worker:
            worker = Worker(pool, number)
            stack.callback(worker.close)
            return worker

        yield start


def reply(call: int, holder: int) -> dict[str, Any]:
    return {"op": "reply", "call": call, "holder": holder}


def test_the_first_worker_that_asks_has_an_upload_until_it_releases_it(join: Join) -> None:
    one, two = join(1), join(2)
    one.say("acquire_upload", key="k", call=0)
    two.say("acquire_upload", key="k", call=5)
    assert (one.received(), two.received()) == (reply(0, 1), reply(5, 1))
    two.say("release_upload", key="k")  # another worker has it
    two.say("acquire_upload", key="k", call=6)
    assert two.received() == reply(6, 1)
    one.say("release_upload", key="k")
    two.say("acquire_upload", key="k", call=7)
    assert two.received() == reply(7, 2)


def test_the_uploads_of_a_reaped_worker_are_released(pool: WorkerPool, join: Join) -> None:
    one, two = join(1), join(2)
    one.say("acquire_upload", key="k", call=0)
    pool.reap(one.handle)
    two.say("acquire_upload", key="k", call=0)
    assert two.received() == reply(0, 2)


def test_a_draining_worker_gets_no_new_uploads(pool: WorkerPool, join: Join) -> None:
    old = join(1)
    old.handle.count("a", 1)
    old.say("acquire_upload", key="mine", call=0)
    new = join(2)
    pool.replace([new.handle])
    assert [old.received()["op"] for _ in range(2)] == ["reply", "drain"]
    old.say("acquire_upload", key="new", call=1)
    assert old.received() == reply(1, 2)
    new.say("acquire_upload", key="mine", call=0)
    assert new.received() == reply(0, 1)
    assert pool.serving() == [new.handle]


def test_the_uploads_of_a_worker_that_stops_are_waited_for(pool: WorkerPool, join: Join) -> None:
    old, new = join(1), join(2)
    old.say("acquire_upload", key="k", call=0)
    old.say("acquire_upload", key="l", call=1)
    pool.replace([new.handle])
    assert [old.received()["op"] for _ in range(4)] == ["reply", "reply", "drain", "stop"]
    assert old.handle.state is WorkerState.ENDED
    new.say("acquire_upload", key="k", call=3)
    new.say("acquire_upload", key="l", call=4)
    assert new.received_nothing()
    old.say("release_upload", key="l")
    assert new.received() == reply(4, 2)
    assert new.received_nothing()
    pool.reap(old.handle)
    assert new.received() == reply(3, 2)


def test_the_supervisor_takes_no_upload_of_a_worker_and_workers_wait_for_its_own(
    pool: WorkerPool, join: Join
) -> None:
    one, supervisor = join(1), pool
    one.say("acquire_upload", key="k", call=0)
    assert one.received() == reply(0, 1)
    with pytest.raises(WrongWorkerError):
        supervisor.acquire("k")
    supervisor.acquire("l")
    one.say("acquire_upload", key="l", call=1)
    assert one.received_nothing()
    supervisor.release("l")
    assert one.received() == reply(1, 1)


def test_a_connection_counts_until_its_worker_closes_it_or_is_reaped(limits: LocalLimits) -> None:
    limiter = ConnectionLimiter()
    pool = WorkerPool(limiter, SharedLimitsServer(limits))
    worker = Worker(pool, 1)
    for _ in range(2):
        assert limiter.acquire("a")
        worker.handle.count("a", 1)
    worker.say("closed", host="a")
    assert limiter.wait_for(lambda count: count == 1, 0.0)
    pool.reap(worker.handle)
    worker.say("closed", host="a")
    assert limiter.wait_for(lambda count: count == 0, 0.0)
    worker.close()
