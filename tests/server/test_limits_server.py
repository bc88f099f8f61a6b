"""The shared limits of all workers, over real channels, while workers start and end."""

import contextlib
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any

import pytest

from ftpkit.errors import Code, ConnectionLostError
from ftpkit.osapi import sockets as os_sockets
from ftpkit.protocol.frame import Header
from ftpkit.server.auth.shared_limits import LocalLimits
from ftpkit.server.connection_limit import ConnectionLimiter
from ftpkit.server.workers.ipc import IpcChannel
from ftpkit.server.workers.limits_server import RemoteLimits, SharedLimitsServer
from ftpkit.server.workers.pool import WorkerHandle, WorkerPool, WorkerState
from tests.storage.stores import refused

pytestmark = pytest.mark.skipif(
    not os_sockets.HAS_FD_PASSING, reason="no passing of descriptors on this system"
)

LONG_S = 20.0


class Worker:
    """A worker and its handle in the supervisor; each receives in a thread of its own."""

    def __init__(self, pool: WorkerPool, number: int) -> None:
        ours, theirs = socket.socketpair()
        self.handle, self.channel = WorkerHandle(number, IpcChannel(ours)), IpcChannel(theirs)
        self.received: queue.SimpleQueue[Header] = queue.SimpleQueue()
        self.limits = RemoteLimits(self._request, self._send, lambda: True)
        self._pool = pool
        self._calls: dict[int, queue.SimpleQueue[Header]] = {}
        self._numbers = count()
        pool.join(self.handle)
        self._threads = [
            threading.Thread(target=self._receive_there),
            threading.Thread(target=self._receive_here),
        ]
        for thread in self._threads:
            thread.start()
        self._send_op("ready")
        assert self.handle.started.wait(LONG_S)

    def die(self) -> None:
        """End without a message, and be reaped."""
        self.end()
        self._pool.reap(self.handle)

    def end(self) -> None:
        self.channel.interrupt()
        for thread in self._threads:
            thread.join()
        self.handle.close()
        self.channel.close()

    def hand_over(self, user: str, to: int) -> None:
        """Hand a connection to another worker."""
        with socket.socket() as sock:
            self.handle.count("host", 1)
            self.channel.send(
                op="handoff",
                fds=[sock.fileno()],
                to=to,
                user=user,
                proxied=False,
                host="host",
                peer="host:1",
                index=0,
                handoff={},
            )

    def _request(self, **message: Any) -> Header:
        call, reply = next(self._numbers), queue.SimpleQueue[Header]()
        self._calls[call] = reply
        self._send(call=call, **message)
        return reply.get(timeout=LONG_S)

    def _send(self, **message: Any) -> None:
        self._send_op("shared_limits", **message)

    def _send_op(self, op: str, **message: Any) -> None:
        self.channel.send(op=op, **message)

    def _receive_there(self) -> None:
        with contextlib.suppress(ConnectionLostError):
            while True:
                self._pool.receive(self.handle, *self.handle.channel.receive())

    def _receive_here(self) -> None:
        with contextlib.suppress(ConnectionLostError):
            while True:
                header, _, fds = self.channel.receive()
                for fd in fds:
                    socket.close(fd)
                if header["op"] == "reply":
                    self._calls[header["call"]].put(header)
                else:
                    self.received.put(header)


Join = Callable[[int], Worker]


class Disk:
    """A number of stored bytes; a count of it can be delayed."""

    def __init__(self) -> None:
        self.used = 0
        self.counting, self.go = threading.Event(), threading.Event()
        self.go.set()

    def count(self, name: str, should_continue: Callable[[], bool]) -> int:
        self.counting.set()
        assert self.go.wait(LONG_S)
        return self.used


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def limits(disk: Disk) -> Iterator[LocalLimits]:
    limits = LocalLimits(disk.count)
    yield limits
    disk.go.set()
    limits.quotas.close()


@pytest.fixture
def join(limits: LocalLimits) -> Iterator[Join]:
    pool = WorkerPool(ConnectionLimiter(), SharedLimitsServer(limits))
    with ExitStack() as stack:

        def start(number: int) -> Worker:
            worker = Worker(pool, number)
            stack.callback(worker.end)
            return worker

        yield start


# Connections of a user


def test_connections_of_a_user_are_counted_over_all_workers(join: Join) -> None:
    one, two = join(1).limits, join(2).limits
    assert one.acquire("ada", 2)
    assert two.acquire("ada", 2)
    assert not one.acquire("ada", 2)
    assert one.acquire("bob", 1)
    assert two.acquire("cy", None)
    two.release("ada")
    assert two.acquire("ada", 2)
    assert not one.acquire("ada", 2)


def test_connections_of_a_worker_that_ended_are_released(join: Join) -> None:
    one, two = join(1), join(2)
    for _ in range(2):
        assert one.limits.acquire("ada", 3)
    assert two.limits.acquire("ada", 3)
    one.limits.release("ada")
    one.die()
    assert [two.limits.acquire("ada", 3) for _ in range(3)] == [True, True, False]


def test_a_connection_that_is_handed_over_counts_once(join: Join) -> None:
    one, two = join(1), join(2)
    assert one.limits.acquire("ada", 1)
    one.hand_over("ada", 2)
    assert two.received.get(timeout=LONG_S)["op"] == "serve"
    assert not one.limits.acquire("ada", 1)
    one.die()
    assert not two.limits.acquire("ada", 1)
    two.limits.release("ada")
    assert two.limits.acquire("ada", 1)


def test_a_connection_that_was_handed_over_is_released_with_its_successor(join: Join) -> None:
    one, two = join(1), join(2)
    assert one.limits.acquire("ada", 1)
    one.hand_over("ada", 2)
    two.received.get(timeout=LONG_S)
    two.die()
    assert one.limits.acquire("ada", 1)


def test_a_connection_without_a_user_is_handed_over(join: Join, limits: LocalLimits) -> None:
    one, two = join(1), join(2)
    one.hand_over("", 2)
    header = two.received.get(timeout=LONG_S)
    assert {key: header[key] for key in header.keys() & {"host", "peer", "user", "to"}} == {
        "host": "host",
        "peer": "host:1",
    }
    two.die()
    assert limits.acquire("", 1)


def test_a_connection_without_a_successor_is_released(join: Join, limits: LocalLimits) -> None:
    one = join(1)
    assert one.limits.acquire("ada", 1)
    one.handle.state = WorkerState.ENDED
    one.hand_over("ada", 2)
    one.limits.login_failed("10.0.0.1")  # the reply shows that the messages before were received
    assert limits.acquire("ada", 1)


# Failed logins


def test_failed_logins_are_counted_over_all_workers(join: Join) -> None:
    one, two = join(1).limits, join(2).limits
    assert [one.login_failed("10.0.0.1"), two.login_failed("10.0.0.1")] == [0.1, 0.2]


# Quotas


def test_a_quota_holds_for_all_workers(join: Join, disk: Disk) -> None:
    one, two = join(1).limits, join(2).limits
    reserved = one.quotas.reserve("d/f", 60, "d", 100)
    with refused(Code.QUOTA_EXCEEDED):
        two.quotas.reserve("d/g", 41, "d", 100)
    reserved.cancel()
    reserved = two.quotas.reserve("d/g", 100, "d", 100)
    reserved.commit()
    with refused(Code.QUOTA_EXCEEDED):
        one.quotas.reserve("d/f", 1, "d", 100)
    two.quotas.note_deleted("d/g")
    one.quotas.reserve("d/f", 100, "d", 100).commit()
    disk.used = 90
    two.quotas.note_deleted("d/f")
    with refused(Code.QUOTA_EXCEEDED):
        one.quotas.reserve("d/f", 11, "d", 100)
    disk.used = 100
    one.quotas.note_renamed("f", "d/f")
    with refused(Code.QUOTA_EXCEEDED):
        two.quotas.reserve("d/h", 1, "d", 100)


def test_bytes_reserved_by_a_worker_that_ended_are_counted_in_the_store(
    join: Join, disk: Disk
) -> None:
    one, two = join(1), join(2)
    one.limits.quotas.reserve("f", 60, "", 100)
    one.limits.quotas.reserve("g", 10, "", 100).commit()
    disk.used = 30
    one.die()
    with refused(Code.QUOTA_EXCEEDED):
        two.limits.quotas.reserve("h", 71, "", 100)
    two.limits.quotas.reserve("h", 70, "", 100)


def test_other_requests_do_not_wait_for_a_count(join: Join, disk: Disk) -> None:
    one = join(1)
    disk.go.clear()
    done = threading.Event()

    def reserve() -> None:
        one.limits.quotas.reserve("f", 60, "", 100)
        done.set()

    waiting = threading.Thread(target=reserve)
    waiting.start()
    assert disk.counting.wait(LONG_S)
    assert one.limits.login_failed("10.0.0.1") == 0.1
    one.limits.quotas.reserve("g", 30, "", None)
    assert not done.is_set()
    disk.go.set()
    waiting.join(LONG_S)
    assert done.is_set()
    with refused(Code.QUOTA_EXCEEDED):
        one.limits.quotas.reserve("h", 11, "", 100)


def test_a_reservation_made_after_its_worker_ended_is_cancelled(
    join: Join, disk: Disk, limits: LocalLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, cancelled = join(1), join(2), threading.Event()
    release = limits.quotas._release

    def note(reserved: Any, committed: bool) -> None:
        release(reserved, committed)
        if not committed:
            cancelled.set()

    monkeypatch.setattr(limits.quotas, "_release", note)
    disk.go.clear()
    one.channel.send(
        op="shared_limits", what="reserve", call=0, name="f", count=60, under="", quota=100
    )
    assert disk.counting.wait(LONG_S)
    one.die()
    disk.go.set()
    assert cancelled.wait(LONG_S)
    two.limits.quotas.reserve("f", 100, "", 100)


def test_without_quotas_nothing_is_sent() -> None:
    asked: list[str] = []

    def ask(**message: Any) -> Header:
        asked.append(message["what"])
        return {"number": 7}

    limits = RemoteLimits(ask, ask, lambda: False)
    reserved = limits.quotas.reserve("f", 60, "", None)
    reserved.commit()
    reserved.cancel()
    limits.quotas.note_deleted("f")
    limits.quotas.note_renamed("f", "g")
    assert asked == []
    limits.quotas.reserve("f", 60, "", 100).commit()
    assert asked == ["reserve", "commit"]
