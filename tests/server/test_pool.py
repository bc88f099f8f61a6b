"""Who has which upload, while workers come and go."""

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
from ftpkit.server.workers.pool import State, SupervisorLocks, WorkerHandle, WorkerPool

pytestmark = pytest.mark.skipif(
    not os_sockets.HAS_FD_PASSING, reason="connections cannot be handed to another process"
)


class Worker:
    """A worker that says what it is told to say."""

    def __init__(self, broker: WorkerPool, number: int) -> None:
        ours, theirs = socket.socketpair()
        theirs.settimeout(5.0)
        self.member, self._channel = WorkerHandle(number, IpcChannel(ours)), IpcChannel(theirs)
        self._broker, self._theirs = broker, theirs
        broker.join(self.member)
        self.say("ready")

    def say(self, op: str, **message: Any) -> None:
        self._broker.receive(self.member, {"op": op, **message}, b"", [])

    def heard(self) -> dict[str, Any]:
        header, _, fds = self._channel.receive()
        assert fds == []
        return {key: value for key, value in header.items() if key not in ("size", "fds")}

    def heard_nothing(self) -> bool:
        return not os_sockets.wait_readable(self._theirs, 0.0)

    def close(self) -> None:
        self.member.close()
        self._channel.close()


Join = Callable[[int], Worker]


@pytest.fixture
def house() -> LocalLimits:
    return LocalLimits(lambda name, go_on: 0)


@pytest.fixture
def broker(house: LocalLimits) -> WorkerPool:
    return WorkerPool(ConnectionLimiter(10, 10), SharedLimitsServer(house))


@pytest.fixture
def join(broker: WorkerPool) -> Iterator[Join]:
    with ExitStack() as stack:

        def start(number: int) -> Worker:
            worker = Worker(broker, number)
            stack.callback(worker.close)
            return worker

        yield start


def answer(call: int, holder: int) -> dict[str, Any]:
    return {"op": "answer", "call": call, "holder": holder}


def test_the_first_to_ask_has_it_until_it_gives_it_up(join: Join) -> None:
    one, two = join(1), join(2)
    one.say("claim", key="k", call=0)
    two.say("claim", key="k", call=5)
    assert (one.heard(), two.heard()) == (answer(0, 1), answer(5, 1))
    two.say("give_up", key="k")  # it is not its own
    two.say("claim", key="k", call=6)
    assert two.heard() == answer(6, 1)
    one.say("give_up", key="k")
    two.say("claim", key="k", call=7)
    assert two.heard() == answer(7, 2)


def test_what_a_dead_worker_had_is_free(broker: WorkerPool, join: Join) -> None:
    one, two = join(1), join(2)
    one.say("claim", key="k", call=0)
    broker.reap(one.member)
    two.say("claim", key="k", call=0)
    assert two.heard() == answer(0, 2)


def test_what_is_new_a_leaving_worker_leaves_to_others(broker: WorkerPool, join: Join) -> None:
    old = join(1)
    old.member.count("a", 1)
    old.say("claim", key="mine", call=0)
    new = join(2)
    broker.replace([new.member])
    assert [old.heard()["op"] for _ in range(2)] == ["answer", "leave"]
    old.say("claim", key="new", call=1)
    assert old.heard() == answer(1, 2)
    new.say("claim", key="mine", call=0)
    assert new.heard() == answer(0, 1)
    assert broker.serving() == [new.member]


def test_who_wants_what_an_ending_worker_has_waits_for_its_end(
    broker: WorkerPool, join: Join
) -> None:
    old, new = join(1), join(2)
    old.say("claim", key="k", call=0)
    old.say("claim", key="l", call=1)
    broker.replace([new.member])
    assert [old.heard()["op"] for _ in range(4)] == ["answer", "answer", "leave", "stop"]
    assert old.member.state is State.ENDED
    new.say("claim", key="k", call=3)
    new.say("claim", key="l", call=4)
    assert new.heard_nothing()
    old.say("give_up", key="l")
    assert new.heard() == answer(4, 2)
    assert new.heard_nothing()
    broker.reap(old.member)
    assert new.heard() == answer(3, 2)


def test_the_keeper_takes_nothing_from_workers_and_they_wait_for_it(
    broker: WorkerPool, join: Join
) -> None:
    one, keeper = join(1), SupervisorLocks(broker)
    one.say("claim", key="k", call=0)
    assert one.heard() == answer(0, 1)
    with pytest.raises(WrongWorkerError):
        keeper.acquire("k")
    keeper.acquire("l")
    one.say("claim", key="l", call=1)
    assert one.heard_nothing()
    keeper.release("l")
    assert one.heard() == answer(1, 1)


def test_a_connection_counts_until_its_worker_says_or_dies(house: LocalLimits) -> None:
    admission = ConnectionLimiter(10, 10)
    broker = WorkerPool(admission, SharedLimitsServer(house))
    worker = Worker(broker, 1)
    for _ in range(2):
        assert admission.acquire("a")
        worker.member.count("a", 1)
    worker.say("left", host="a")
    assert admission.wait_for(lambda count: count == 1, 0.0)
    broker.reap(worker.member)
    worker.say("left", host="a")
    assert admission.wait_for(lambda count: count == 0, 0.0)
    worker.close()
