"""What holds for all workers of a server, asked over real channels while they come and go."""

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
from ftpkit.server.workers.pool import State, WorkerHandle, WorkerPool
from tests.storage.stores import refused

pytestmark = pytest.mark.skipif(
    not os_sockets.HAS_FD_PASSING, reason="connections cannot be handed to another process"
)

LONG_S = 20.0


class Worker:
    """A worker, and what its supervisor has of it: each receives in a thread of its own."""

    def __init__(self, broker: WorkerPool, number: int) -> None:
        ours, theirs = socket.socketpair()
        self.member, self.channel = WorkerHandle(number, IpcChannel(ours)), IpcChannel(theirs)
        self.told: queue.SimpleQueue[Header] = queue.SimpleQueue()
        self.house = RemoteLimits(self._ask, self._tell, lambda: True)
        self._broker = broker
        self._calls: dict[int, queue.SimpleQueue[Header]] = {}
        self._numbers = count()
        broker.join(self.member)
        self._threads = [
            threading.Thread(target=self._receive_there),
            threading.Thread(target=self._receive_here),
        ]
        for thread in self._threads:
            thread.start()
        self._tell_op("ready")
        assert self.member.settled.wait(LONG_S)

    def die(self) -> None:
        """Be killed, and buried."""
        self.end()
        self._broker.reap(self.member)

    def end(self) -> None:
        self.channel.interrupt()
        for thread in self._threads:
            thread.join()
        self.member.close()
        self.channel.close()

    def pass_on(self, user: str, to: int) -> None:
        """Hand a connection to another worker."""
        with socket.socket() as sock:
            self.member.count("host", 1)
            self.channel.send(
                op="pass",
                fds=[sock.fileno()],
                to=to,
                user=user,
                lent=False,
                host="host",
                peer="host:1",
                at=0,
                moved={},
            )

    def _ask(self, **message: Any) -> Header:
        call, answer = next(self._numbers), queue.SimpleQueue[Header]()
        self._calls[call] = answer
        self._tell(call=call, **message)
        return answer.get(timeout=LONG_S)

    def _tell(self, **message: Any) -> None:
        self._tell_op("house", **message)

    def _tell_op(self, op: str, **message: Any) -> None:
        self.channel.send(op=op, **message)

    def _receive_there(self) -> None:
        with contextlib.suppress(ConnectionLostError):
            while True:
                self._broker.receive(self.member, *self.member.channel.receive())

    def _receive_here(self) -> None:
        with contextlib.suppress(ConnectionLostError):
            while True:
                header, _, fds = self.channel.receive()
                for fd in fds:
                    socket.close(fd)
                if header["op"] == "answer":
                    self._calls[header["call"]].put(header)
                else:
                    self.told.put(header)


Join = Callable[[int], Worker]


class Disk:
    """What is stored; a count of it can be held up."""

    def __init__(self) -> None:
        self.used = 0
        self.counting, self.go = threading.Event(), threading.Event()
        self.go.set()

    def count(self, name: str, go_on: Callable[[], bool]) -> int:
        self.counting.set()
        assert self.go.wait(LONG_S)
        return self.used


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def house(disk: Disk) -> Iterator[LocalLimits]:
    house = LocalLimits(disk.count)
    yield house
    disk.go.set()
    house.close()


@pytest.fixture
def join(house: LocalLimits) -> Iterator[Join]:
    broker = WorkerPool(ConnectionLimiter(10, 10), SharedLimitsServer(house))
    with ExitStack() as stack:

        def start(number: int) -> Worker:
            worker = Worker(broker, number)
            stack.callback(worker.end)
            return worker

        yield start


# Connections of a user


def test_connections_of_a_user_are_counted_over_all_workers(join: Join) -> None:
    one, two = join(1).house, join(2).house
    assert one.enter("ada", 2)
    assert two.enter("ada", 2)
    assert not one.enter("ada", 2)
    assert one.enter("bob", 1)
    assert two.enter("cy", None)
    two.leave("ada")
    assert two.enter("ada", 2)
    assert not one.enter("ada", 2)


def test_connections_of_a_worker_that_died_are_no_more(join: Join) -> None:
    one, two = join(1), join(2)
    for _ in range(2):
        assert one.house.enter("ada", 3)
    assert two.house.enter("ada", 3)
    one.house.leave("ada")
    one.die()
    assert [two.house.enter("ada", 3) for _ in range(3)] == [True, True, False]


def test_a_connection_that_moves_counts_once_wherever_it_ends(join: Join) -> None:
    one, two = join(1), join(2)
    assert one.house.enter("ada", 1)
    one.pass_on("ada", 2)
    assert two.told.get(timeout=LONG_S)["op"] == "serve"
    assert not one.house.enter("ada", 1)
    one.die()
    assert not two.house.enter("ada", 1)
    two.house.leave("ada")
    assert two.house.enter("ada", 1)


def test_a_connection_that_moved_ends_with_its_heir(join: Join) -> None:
    one, two = join(1), join(2)
    assert one.house.enter("ada", 1)
    one.pass_on("ada", 2)
    two.told.get(timeout=LONG_S)
    two.die()
    assert one.house.enter("ada", 1)


def test_a_connection_of_nobody_moves_as_well(join: Join, house: LocalLimits) -> None:
    one, two = join(1), join(2)
    one.pass_on("", 2)
    header = two.told.get(timeout=LONG_S)
    assert {key: header[key] for key in header.keys() & {"host", "peer", "user", "to"}} == {
        "host": "host",
        "peer": "host:1",
    }
    two.die()
    assert house.enter("", 1)


def test_a_connection_that_nobody_takes_is_no_more(join: Join, house: LocalLimits) -> None:
    one = join(1)
    assert one.house.enter("ada", 1)
    one.member.state = State.ENDED
    one.pass_on("ada", 2)
    one.house.failed("10.0.0.1")  # what was said before has been heard
    assert house.enter("ada", 1)


# Bad tokens


def test_bad_tokens_are_counted_over_all_workers(join: Join) -> None:
    one, two = join(1).house, join(2).house
    assert [one.failed("10.0.0.1"), two.failed("10.0.0.1")] == [0.1, 0.2]


# Room


def test_a_quota_holds_for_all_workers(join: Join, disk: Disk) -> None:
    one, two = join(1).house, join(2).house
    number = one.reserve("d/f", 60, "d", 100)
    with refused(Code.QUOTA_EXCEEDED):
        two.reserve("d/g", 41, "d", 100)
    one.cancel(number)
    number = two.reserve("d/g", 100, "d", 100)
    two.commit(number)
    with refused(Code.QUOTA_EXCEEDED):
        one.reserve("d/f", 1, "d", 100)
    two.freed("d/g")
    one.commit(one.reserve("d/f", 100, "d", 100))
    disk.used = 90
    two.freed("d/f")
    with refused(Code.QUOTA_EXCEEDED):
        one.reserve("d/f", 11, "d", 100)
    disk.used = 100
    one.moved("f", "d/f")
    with refused(Code.QUOTA_EXCEEDED):
        two.reserve("d/h", 1, "d", 100)


def test_what_a_worker_that_died_had_taken_is_what_is_found(join: Join, disk: Disk) -> None:
    one, two = join(1), join(2)
    one.house.reserve("f", 60, "", 100)
    one.house.commit(one.house.reserve("g", 10, "", 100))
    disk.used = 30
    one.die()
    with refused(Code.QUOTA_EXCEEDED):
        two.house.reserve("h", 71, "", 100)
    two.house.reserve("h", 70, "", 100)


def test_nobody_else_waits_while_room_is_counted(join: Join, disk: Disk) -> None:
    one = join(1)
    disk.go.clear()
    numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
    waiting = threading.Thread(target=lambda: numbers.put(one.house.reserve("f", 60, "", 100)))
    waiting.start()
    assert disk.counting.wait(LONG_S)
    assert one.house.failed("10.0.0.1") == 0.1
    assert one.house.reserve("g", 30, "", None)
    assert numbers.empty()
    disk.go.set()
    waiting.join(LONG_S)
    assert numbers.get_nowait()
    with refused(Code.QUOTA_EXCEEDED):
        one.house.reserve("h", 11, "", 100)


def test_what_a_worker_is_given_after_its_death_is_free(
    join: Join, disk: Disk, house: LocalLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, given_back = join(1), join(2), threading.Event()
    cancel = house.cancel

    def note(number: int) -> None:
        cancel(number)
        given_back.set()

    monkeypatch.setattr(house, "give_back", note)
    disk.go.clear()
    one.channel.send(op="house", what="take", call=0, name="f", count=60, under="", quota=100)
    assert disk.counting.wait(LONG_S)
    one.die()
    disk.go.set()
    assert given_back.wait(LONG_S)
    assert two.house.reserve("f", 100, "", 100)


def test_where_nobody_has_a_quota_nothing_is_told_of_what_is_stored() -> None:
    asked: list[str] = []

    def ask(**message: Any) -> Header:
        asked.append(message["what"])
        return {"number": 7}

    house = RemoteLimits(ask, ask, lambda: False)
    number = house.reserve("f", 60, "", None)
    house.commit(number)
    house.cancel(number)
    house.freed("f")
    house.moved("f", "g")
    assert asked == []
    house.commit(house.reserve("f", 60, "", 100))
    assert asked == ["take", "keep"]
