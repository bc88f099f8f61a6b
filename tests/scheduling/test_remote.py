"""A schedule that another process keeps: what it is told, and what it gives."""

from typing import Any

import pytest

from ftpkit.scheduling.flow import Account, State, Transfer
from ftpkit.scheduling.policies import POLICIES
from ftpkit.scheduling.remote import RemoteScheduler
from ftpkit.scheduling.scheduler import Scheduler
from tests.scheduling.trip import UP

MIB = 1024 * 1024
Told = list[dict[str, Any]]


def remote(*, slots: int | None = 1) -> tuple[RemoteScheduler, Told]:
    told: Told = []
    schedule = Scheduler(POLICIES["rr"], slots=slots)
    return RemoteScheduler(schedule, lambda **message: told.append(message)), told


def transfer(account: Account | None = None) -> Transfer:
    return Transfer(account or Account("ann"), "a", UP, MIB, 0.0)


def test_a_lane_asks_and_is_given() -> None:
    turns, told = remote()
    flow = turns.add_flow(transfer(Account("ann", weight=2.0, bytes_per_s={UP: 5.0})))
    assert told == [], "it may never want a turn"
    turns.ready(flow, 1.0)
    assert told == [
        {"call": "add_flow", "flow": 0, "order": 0, "user": "ann", "weight": 2.0,
         "bytes_per_s": {"up": 5.0}, "name": "a", "direction": "up", "total": MIB, "moved": 0},
        {"call": "ready", "flow": 0},
    ]  # fmt: skip
    assert turns.grant_next(1.0) is None
    assert turns.snapshot(1.0)[0].state is State.READY
    turns.granted(0, 1000)
    assert turns.grant_next(1.0) is flow
    assert (flow.size, turns.snapshot(1.0)[0].state) == (1000, State.RUNNING)
    assert turns.grant_next(1.0) is None
    turns.release(flow, 700, 2.0)
    assert told[2:] == [{"call": "release", "flow": 0, "moved": 700}]
    row = turns.snapshot(2.0)[0]
    assert (row.state, row.transfer.moved) == (State.BLOCKED, 700)
    turns.ready(flow, 2.0)
    turns.force_grant(flow, 6.0)
    assert flow.state is State.READY, "a small turn comes as others do"
    turns.remove(flow, 6.0)
    turns.remove(flow, 6.0)
    assert [each["call"] for each in told[3:]] == ["ready", "force_grant", "remove"]
    assert (turns.snapshot(6.0), flow.state) == ([], State.DONE)


def test_a_turn_for_one_that_has_left_is_nobodys() -> None:
    turns, _ = remote()
    one, other = turns.add_flow(transfer()), turns.add_flow(transfer())
    turns.ready(one, 0.0)
    turns.ready(other, 0.0)
    turns.granted(0, 5)
    turns.granted(1, 6)
    turns.remove(one, 0.0)
    assert turns.grant_next(0.0) is other
    assert turns.grant_next(0.0) is None


@pytest.mark.parametrize("slots", [1, None])
def test_one_that_has_left_stays_gone_whatever_it_still_moves(slots: int | None) -> None:
    turns, told = remote(slots=slots)
    flow = turns.add_flow(transfer())
    turns.remove(flow, 0.0)
    turns.release(flow, 100, 1.0)
    turns.remove(flow, 2.0)
    assert (flow.state, turns.snapshot(2.0), told) == (State.DONE, [], [])


def test_without_a_limit_nothing_is_told() -> None:
    turns, told = remote(slots=None)
    flow = turns.add_flow(transfer())
    turns.release(flow, 100, 1.0)
    assert (turns.has_limits, turns.snapshot(1.0)[0].transfer.moved) == (False, 100)
    other = turns.add_flow(transfer())
    turns.remove(other, 1.0)
    assert told == []
    turns.configure(POLICIES["fcfs"], slots=1, bytes_per_s={}, now=2.0)
    turns.release(flow, 50, 2.0)
    assert turns.has_limits
    assert [each["call"] for each in told] == ["add_flow", "release"], (
        "what took no turn counts too"
    )
    assert told[0]["moved"] == 100


def test_the_limit_of_an_account_holds_there() -> None:
    turns, told = remote(slots=None)
    account = Account("ann")
    turns.add_flow(transfer(account))
    turns.set_rates(account, {UP: 7.0}, 0.0)
    assert told == [{"call": "set_rates", "user": "ann", "bytes_per_s": {"up": 7.0}}]
    assert turns.has_limits


def test_positions_are_those_of_the_whole_queue() -> None:
    turns, _ = remote()
    for _ in range(2):
        turns.ready(turns.add_flow(transfer()), 0.0)
    turns.positions = {1: 9}
    assert [row.position for row in turns.snapshot(0.0)] == [None, 9]
