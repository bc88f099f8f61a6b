"""A schedule that another process keeps: what it is told, and what it gives."""

from typing import Any

import pytest

from ftpkit.scheduling.policies import POLICIES
from ftpkit.scheduling.remote import Remote
from ftpkit.scheduling.schedule import Schedule
from ftpkit.scheduling.transfer import Account, State, Transfer
from tests.scheduling.trip import UP

MIB = 1024 * 1024
Told = list[dict[str, Any]]


def remote(*, slots: int | None = 1) -> tuple[Remote, Told]:
    told: Told = []
    schedule = Schedule(POLICIES["rr"], slots=slots)
    return Remote(schedule, lambda **message: told.append(message)), told


def transfer(account: Account | None = None) -> Transfer:
    return Transfer(account or Account("ann"), "a", UP, MIB, 0.0)


def test_a_lane_asks_and_is_given() -> None:
    turns, told = remote()
    lane = turns.join(transfer(Account("ann", weight=2.0, rates_bps={UP: 5.0})))
    assert told == [], "it may never want a turn"
    turns.ready(lane, 1.0)
    assert told == [
        {"what": "joins", "lane": 0, "order": 0, "user": "ann", "weight": 2.0,
         "rates_bps": {"up": 5.0}, "name": "a", "direction": "up", "total": MIB, "moved": 0},
        {"what": "ready", "lane": 0},
    ]  # fmt: skip
    assert turns.next(1.0) is None
    assert turns.snapshot(1.0)[0].state is State.READY
    turns.arrived(0, 1000)
    assert turns.next(1.0) is lane
    assert (lane.size, turns.snapshot(1.0)[0].state) == (1000, State.RUNNING)
    assert turns.next(1.0) is None
    turns.gave_up(lane, 700, 2.0)
    assert told[2:] == [{"what": "gave_up", "lane": 0, "moved": 700}]
    row = turns.snapshot(2.0)[0]
    assert (row.state, row.moved) == (State.BLOCKED, 700)
    turns.ready(lane, 2.0)
    turns.hurry(lane, 6.0)
    assert lane.state is State.READY, "a small turn comes as others do"
    turns.leave(lane, 6.0)
    turns.leave(lane, 6.0)
    assert [each["what"] for each in told[3:]] == ["ready", "hurries", "leaves"]
    assert (turns.snapshot(6.0), lane.state) == ([], State.DONE)


def test_a_turn_for_one_that_has_left_is_nobodys() -> None:
    turns, _ = remote()
    one, other = turns.join(transfer()), turns.join(transfer())
    turns.ready(one, 0.0)
    turns.ready(other, 0.0)
    turns.arrived(0, 5)
    turns.arrived(1, 6)
    turns.leave(one, 0.0)
    assert turns.next(0.0) is other
    assert turns.next(0.0) is None


@pytest.mark.parametrize("slots", [1, None])
def test_one_that_has_left_stays_gone_whatever_it_still_moves(slots: int | None) -> None:
    turns, told = remote(slots=slots)
    lane = turns.join(transfer())
    turns.leave(lane, 0.0)
    turns.gave_up(lane, 100, 1.0)
    turns.leave(lane, 2.0)
    assert (lane.state, turns.snapshot(2.0), told) == (State.DONE, [], [])


def test_without_a_limit_nothing_is_told() -> None:
    turns, told = remote(slots=None)
    lane = turns.join(transfer())
    turns.gave_up(lane, 100, 1.0)
    assert (turns.shaped, turns.snapshot(1.0)[0].moved) == (False, 100)
    other = turns.join(transfer())
    turns.leave(other, 1.0)
    assert told == []
    turns.configure(POLICIES["fcfs"], slots=1, rates_bps={}, now=2.0)
    turns.gave_up(lane, 50, 2.0)
    assert turns.shaped
    assert [each["what"] for each in told] == ["joins", "gave_up"], "what took no turn counts too"
    assert told[0]["moved"] == 100


def test_the_limit_of_an_account_holds_there() -> None:
    turns, told = remote(slots=None)
    account = Account("ann")
    turns.join(transfer(account))
    turns.limit(account, {UP: 7.0}, 0.0)
    assert told == [{"what": "limit", "user": "ann", "rates_bps": {"up": 7.0}}]
    assert turns.shaped


def test_positions_are_those_of_the_whole_queue() -> None:
    turns, _ = remote()
    for _ in range(2):
        turns.ready(turns.join(transfer()), 0.0)
    turns.positions = {1: 9}
    assert [row.position for row in turns.snapshot(0.0)] == [None, 9]
