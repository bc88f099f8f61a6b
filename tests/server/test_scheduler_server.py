"""One scheduler for several workers, over real channels."""

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ftpkit.osapi import sockets as os_sockets
from ftpkit.protocol.frame import Header
from ftpkit.server.limits import Limits
from ftpkit.server.workers.ipc import IpcChannel
from ftpkit.server.workers.pool import WorkerHandle
from ftpkit.server.workers.scheduler_server import SchedulerServer

MIB = 1024 * 1024
QUANTUM = 4 * MIB
LONG_S = 20.0


class Worker:
    """A worker that sends what a test says."""

    def __init__(self, scheduler: SchedulerServer, number: int) -> None:
        ours, self._sock = socket.socketpair()
        self.handle, self._channel = WorkerHandle(number, IpcChannel(ours)), IpcChannel(self._sock)
        self._scheduler = scheduler

    def say(self, call: str, flow: int, **message: Any) -> None:
        header: Header = {"call": call, "flow": flow, **message}
        self._scheduler.receive(self.handle, header)

    def ready(self, flow: int, user: str = "ann", order: int | None = None, **keys: Any) -> None:
        """Let a new flow request a quantum."""
        joins = {
            "order": flow if order is None else order, "user": user, "weight": 1.0, "name": "a",
            "bytes_per_s": {}, "direction": "up", "total": 100 * MIB, "moved": 0, **keys,
        }  # fmt: skip
        self.say("add_flow", flow, **joins)
        self.say("ready", flow)

    def grant(self) -> tuple[int, int]:
        """Return the flow and the size of the next grant."""
        assert os_sockets.wait_readable(self._sock, LONG_S), "a grant is missing"
        header = self.receive()
        assert header["op"] == "grant"
        return header["flow"], header["quantum"]

    def receive(self) -> Header:
        return self._channel.receive()[0]

    def received_nothing(self) -> bool:
        return not os_sockets.wait_readable(self._sock, 0.05)

    def close(self) -> None:
        self.handle.close()
        self._channel.close()


Start = Callable[..., tuple[SchedulerServer, Worker, Worker]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a scheduler with two workers."""
    ends: list[Callable[[], None]] = []

    def make(**limits: Any) -> tuple[SchedulerServer, Worker, Worker]:
        scheduler = SchedulerServer(Limits(**limits))
        workers = [Worker(scheduler, number) for number in (1, 2)]
        scheduler.start()
        ends.extend((scheduler.stop, *(each.close for each in workers)))
        return scheduler, workers[0], workers[1]

    yield make
    for end in ends:
        end()


def test_slots_are_shared_by_all_workers(start: Start) -> None:
    scheduler, one, other = start(slots=1, schedule="fcfs")
    one.ready(0)
    assert one.grant() == (0, QUANTUM)
    other.ready(0)
    other.ready(1)
    assert other.received_nothing()
    assert scheduler.positions(other.handle) == {0: 1, 1: 2}
    assert scheduler.positions(one.handle) == {}
    one.say("release", 0, moved=QUANTUM)
    assert other.grant() == (0, QUANTUM)
    other.say("remove", 0)
    assert other.grant() == (1, QUANTUM)
    other.say("release", 1, moved=5)
    one.say("ready", 0)
    assert one.grant() == (0, QUANTUM)


@pytest.mark.parametrize("running", [True, False])
def test_the_flows_of_a_worker_that_ends_are_removed(start: Start, running: bool) -> None:
    scheduler, one, other = start(slots=1, schedule="fcfs")
    first, second = (one, other) if running else (other, one)
    first.ready(0)
    first.grant()
    second.ready(0)
    scheduler.leave(one.handle)
    if running:
        assert other.grant() == (0, QUANTUM)
    other.say("release", 0, moved=1)
    other.ready(7)
    assert other.grant() == (7, QUANTUM)
    assert scheduler.positions(one.handle) == {}


def test_grants_that_become_due_with_time_are_sent(start: Start) -> None:
    _, one, other = start(bytes_per_s=1e6)
    one.ready(0)
    other.ready(0)
    for _ in range(3):
        for worker in (one, other):
            flow, size = worker.grant()
            worker.say("release", flow, moved=size)
            worker.say("ready", flow)


def test_an_account_is_shared_by_all_workers(start: Start) -> None:
    scheduler, one, other = start(slots=4, schedule="fcfs")
    one.ready(0, bytes_per_s={"up": 0.001})
    assert one.grant() == (0, 1)
    one.say("release", 0, moved=1)
    other.ready(0, bytes_per_s={"up": 0.001})
    other.ready(1, "bob")
    assert other.grant() == (1, QUANTUM), "ann has no bytes left in either worker"
    scheduler.receive(other.handle, {"call": "set_rates", "user": "ann", "bytes_per_s": {}})
    scheduler.receive(other.handle, {"call": "set_rates", "user": "nobody", "bytes_per_s": {}})
    assert other.grant() == (0, QUANTUM)


def test_the_latest_rates_of_an_account_apply_in_all_workers(start: Start) -> None:
    _, one, other = start(slots=1, schedule="fcfs")
    one.ready(0, bytes_per_s={"up": 0.001})
    assert one.grant() == (0, 1)
    one.say("release", 0, moved=1)
    one.say("ready", 0)
    assert one.received_nothing()
    other.ready(0, bytes_per_s={})
    assert one.grant() == (0, QUANTUM), "it has no limit any more"


def test_the_latest_weight_of_an_account_applies(start: Start) -> None:
    _, one, _ = start(slots=1, schedule="rr")
    one.ready(0, "ann", weight=1.0)
    one.ready(1, "ann", weight=4.0)
    one.ready(2, "bob")
    shares = {0: 0, 1: 0, 2: 0}
    for _ in range(25):
        flow, size = one.grant()
        shares[flow] += 1
        one.say("release", flow, moved=size)
        one.say("ready", flow)
    assert shares[0] + shares[1] >= 3 * shares[2]


def test_flows_of_one_transfer_are_counted_together(start: Start) -> None:
    scheduler, one, _ = start(slots=1, schedule="fcfs")
    one.ready(0, order=5, total=QUANTUM + 10)
    one.ready(1, order=5, total=QUANTUM + 10)
    one.grant()
    assert scheduler.positions(one.handle) == {5: 1}
    one.say("release", 0, moved=QUANTUM)
    assert one.grant()[0] == 1
    one.say("release", 1, moved=0)
    one.say("ready", 0)
    assert one.grant() == (0, 10)


def test_a_forced_grant_is_small_and_made_once(start: Start) -> None:
    _, one, other = start(slots=1, schedule="fcfs")
    one.ready(0)
    one.grant()
    other.ready(0)
    other.say("force_grant", 0)
    assert other.grant() == (0, 64 * 1024)
    other.say("force_grant", 0)
    assert other.received_nothing(), "it has a grant"
    other.say("release", 0, moved=1)
    other.say("ready", 0)
    assert other.received_nothing()
    one.say("release", 0, moved=1)
    assert other.grant() == (0, QUANTUM)


def test_other_limits_apply_at_once(start: Start) -> None:
    scheduler, one, other = start(slots=1, schedule="fcfs")
    one.ready(0)
    one.grant()
    other.ready(0)
    scheduler.configure(Limits(slots=2))
    assert other.grant() == (0, QUANTUM)


def test_a_worker_that_has_ended_does_not_block_others(start: Start) -> None:
    _, one, other = start(slots=2)
    one.handle.channel.interrupt()
    one.ready(0)
    other.ready(0)
    assert other.grant() == (0, QUANTUM)


def test_a_grant_that_would_block_is_sent_later(start: Start) -> None:
    _, one, other = start(slots=2)
    messages = 0
    while one.handle.try_send("x"):
        messages += 1
    one.ready(0)
    other.ready(0)
    assert other.grant() == (0, QUANTUM)
    for _ in range(messages):
        one.receive()
    assert one.grant() == (0, QUANTUM)
