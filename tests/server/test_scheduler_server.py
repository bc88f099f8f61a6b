"""Turns of one schedule for several workers, which are given and taken over real channels."""

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
    """A worker that says what it is told to say."""

    def __init__(self, turns: SchedulerServer, number: int) -> None:
        ours, self._sock = socket.socketpair()
        self.member, self._channel = WorkerHandle(number, IpcChannel(ours)), IpcChannel(self._sock)
        self._turns = turns

    def say(self, call: str, lane: int, **message: Any) -> None:
        header: Header = {"call": call, "flow": lane, **message}
        self._turns.receive(self.member, header)

    def ready(self, lane: int, user: str = "ann", order: int | None = None, **keys: Any) -> None:
        """Let a new lane ask for a turn."""
        joins = {
            "order": lane if order is None else order, "user": user, "weight": 1.0, "name": "a",
            "bytes_per_s": {}, "direction": "up", "total": 100 * MIB, "moved": 0, **keys,
        }  # fmt: skip
        self.say("add_flow", lane, **joins)
        self.say("ready", lane)

    def turn(self) -> tuple[int, int]:
        """Return the lane and the size of the next turn."""
        assert os_sockets.wait_readable(self._sock, LONG_S), "a turn was lost"
        header = self.reserve()
        assert header["op"] == "grant"
        return header["flow"], header["quantum"]

    def reserve(self) -> Header:
        return self._channel.receive()[0]

    def heard_nothing(self) -> bool:
        return not os_sockets.wait_readable(self._sock, 0.05)

    def close(self) -> None:
        self.member.close()
        self._channel.close()


Start = Callable[..., tuple[SchedulerServer, Worker, Worker]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Make turns and two workers."""
    ends: list[Callable[[], None]] = []

    def make(**limits: Any) -> tuple[SchedulerServer, Worker, Worker]:
        turns = SchedulerServer(Limits(**limits))
        workers = [Worker(turns, number) for number in (1, 2)]
        turns.start()
        ends.extend((turns.stop, *(each.close for each in workers)))
        return turns, workers[0], workers[1]

    yield make
    for end in ends:
        end()


def test_slots_hold_for_all_workers(start: Start) -> None:
    turns, one, other = start(slots=1, schedule="fcfs")
    one.ready(0)
    assert one.turn() == (0, QUANTUM)
    other.ready(0)
    other.ready(1)
    assert other.heard_nothing()
    assert turns.positions(other.member) == {0: 1, 1: 2}
    assert turns.positions(one.member) == {}
    one.say("release", 0, moved=QUANTUM)
    assert other.turn() == (0, QUANTUM)
    other.say("remove", 0)
    assert other.turn() == (1, QUANTUM)
    other.say("release", 1, moved=5)
    one.say("ready", 0)
    assert one.turn() == (0, QUANTUM)


@pytest.mark.parametrize("running", [True, False])
def test_a_worker_that_ends_leaves_all_its_turns(start: Start, running: bool) -> None:
    turns, one, other = start(slots=1, schedule="fcfs")
    first, second = (one, other) if running else (other, one)
    first.ready(0)
    first.turn()
    second.ready(0)
    turns.leave(one.member)
    if running:
        assert other.turn() == (0, QUANTUM)
    other.say("release", 0, moved=1)
    other.ready(7)
    assert other.turn() == (7, QUANTUM)
    assert turns.positions(one.member) == {}


def test_the_clock_is_watched_while_nobody_says_anything(start: Start) -> None:
    _, one, other = start(bytes_per_s=1e6)
    one.ready(0)
    other.ready(0)
    for _ in range(3):
        for worker in (one, other):
            lane, size = worker.turn()
            worker.say("release", lane, moved=size)
            worker.say("ready", lane)


def test_an_account_is_one_in_all_workers(start: Start) -> None:
    turns, one, other = start(slots=4, schedule="fcfs")
    one.ready(0, bytes_per_s={"up": 0.001})
    assert one.turn() == (0, 1)
    one.say("release", 0, moved=1)
    other.ready(0, bytes_per_s={"up": 0.001})
    other.ready(1, "bob")
    assert other.turn() == (1, QUANTUM), "it shares the debt of ann"
    turns.receive(other.member, {"call": "set_rates", "user": "ann", "bytes_per_s": {}})
    turns.receive(other.member, {"call": "set_rates", "user": "nobody", "bytes_per_s": {}})
    assert other.turn() == (0, QUANTUM)


def test_what_a_worker_says_last_of_an_account_holds_for_all(start: Start) -> None:
    _, one, other = start(slots=1, schedule="fcfs")
    one.ready(0, bytes_per_s={"up": 0.001})
    assert one.turn() == (0, 1)
    one.say("release", 0, moved=1)
    one.say("ready", 0)
    assert one.heard_nothing()
    other.ready(0, bytes_per_s={})
    assert one.turn() == (0, QUANTUM), "it owes nothing any more"


def test_the_last_weight_of_an_account_is_its_share(start: Start) -> None:
    _, one, _ = start(slots=1, schedule="rr")
    one.ready(0, "ann", weight=1.0)
    one.ready(1, "ann", weight=4.0)
    one.ready(2, "bob")
    shares = {0: 0, 1: 0, 2: 0}
    for _ in range(25):
        lane, size = one.turn()
        shares[lane] += 1
        one.say("release", lane, moved=size)
        one.say("ready", lane)
    assert shares[0] + shares[1] >= 3 * shares[2]


def test_lanes_of_one_transfer_count_together(start: Start) -> None:
    turns, one, _ = start(slots=1, schedule="fcfs")
    one.ready(0, order=5, total=QUANTUM + 10)
    one.ready(1, order=5, total=QUANTUM + 10)
    one.turn()
    assert turns.positions(one.member) == {5: 1}
    one.say("release", 0, moved=QUANTUM)
    assert one.turn()[0] == 1
    one.say("release", 1, moved=0)
    one.say("ready", 0)
    assert one.turn() == (0, 10)


def test_who_waits_too_long_gets_a_small_turn_once(start: Start) -> None:
    _, one, other = start(slots=1, schedule="fcfs")
    one.ready(0)
    one.turn()
    other.ready(0)
    other.say("force_grant", 0)
    assert other.turn() == (0, 64 * 1024)
    other.say("force_grant", 0)
    assert other.heard_nothing(), "it has one"
    other.say("release", 0, moved=1)
    other.say("ready", 0)
    assert other.heard_nothing()
    one.say("release", 0, moved=1)
    assert other.turn() == (0, QUANTUM)


def test_other_limits_hold_at_once(start: Start) -> None:
    turns, one, other = start(slots=1, schedule="fcfs")
    one.ready(0)
    one.turn()
    other.ready(0)
    turns.configure(Limits(slots=2))
    assert other.turn() == (0, QUANTUM)


def test_a_worker_that_takes_nothing_any_more_is_in_nobodys_way(start: Start) -> None:
    _, one, other = start(slots=2)
    one.member.channel.interrupt()
    one.ready(0)
    other.ready(0)
    assert other.turn() == (0, QUANTUM)


def test_a_turn_that_a_worker_does_not_take_at_once_comes_later(start: Start) -> None:
    _, one, other = start(slots=2)
    messages = 0
    while one.member.offer("x"):
        messages += 1
    one.ready(0)
    other.ready(0)
    assert other.turn() == (0, QUANTUM)
    for _ in range(messages):
        one.reserve()
    assert one.turn() == (0, QUANTUM)
