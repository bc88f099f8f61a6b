"""RemoteScheduler: the messages that it sends, and the grants that it receives."""

from typing import Any

import pytest

from ftpkit.scheduling.flow import Account, FlowState, Transfer
from ftpkit.scheduling.policies import POLICIES
from ftpkit.scheduling.remote import RemoteScheduler
from ftpkit.scheduling.scheduler import Scheduler
from tests.scheduling.simulation import UP

MIB = 1024 * 1024
Sent = list[dict[str, Any]]


def remote(*, slots: int | None = 1) -> tuple[RemoteScheduler, Sent]:
    sent: Sent = []
    schedule = Scheduler(POLICIES["rr"], slots=slots)
    return RemoteScheduler(schedule, lambda **message: sent.append(message)), sent


def transfer(account: Account | None = None) -> Transfer:
    return Transfer(account or Account("ann"), "a", UP, MIB, 0.0)


def test_a_flow_requests_and_is_granted_quanta() -> None:
    scheduler, sent = remote()
    flow = scheduler.add_flow(transfer(Account("ann", weight=2.0, bytes_per_s={UP: 5.0})))
    assert sent == [], "it may never need a quantum"
    scheduler.ready(flow, 1.0)
    assert sent == [
        {"call": "add_flow", "flow": 0, "order": 0, "user": "ann", "weight": 2.0,
         "bytes_per_s": {"up": 5.0}, "name": "a", "direction": "up", "total": MIB, "moved": 0},
        {"call": "ready", "flow": 0},
    ]  # fmt: skip
    assert scheduler.grant_next(1.0) is None
    assert scheduler.snapshot(1.0)[0].state is FlowState.READY
    scheduler.granted(0, 1000)
    assert scheduler.grant_next(1.0) is flow
    assert (flow.size, scheduler.snapshot(1.0)[0].state) == (1000, FlowState.RUNNING)
    assert scheduler.grant_next(1.0) is None
    scheduler.release(flow, 700, 2.0)
    assert sent[2:] == [{"call": "release", "flow": 0, "moved": 700}]
    snapshot = scheduler.snapshot(2.0)[0]
    assert (snapshot.state, snapshot.transfer.moved) == (FlowState.BLOCKED, 700)
    scheduler.ready(flow, 2.0)
    scheduler.force_grant(flow, 6.0)
    assert flow.state is FlowState.READY, "a small quantum is granted as others are"
    scheduler.remove(flow, 6.0)
    scheduler.remove(flow, 6.0)
    assert [each["call"] for each in sent[3:]] == ["ready", "force_grant", "remove"]
    assert (scheduler.snapshot(6.0), flow.state) == ([], FlowState.DONE)


def test_a_grant_for_a_removed_flow_is_dropped() -> None:
    scheduler, _ = remote()
    one, other = scheduler.add_flow(transfer()), scheduler.add_flow(transfer())
    scheduler.ready(one, 0.0)
    scheduler.ready(other, 0.0)
    scheduler.granted(0, 5)
    scheduler.granted(1, 6)
    scheduler.remove(one, 0.0)
    assert scheduler.grant_next(0.0) is other
    assert scheduler.grant_next(0.0) is None


@pytest.mark.parametrize("slots", [1, None])
def test_a_removed_flow_stays_removed_whatever_it_still_moves(slots: int | None) -> None:
    scheduler, sent = remote(slots=slots)
    flow = scheduler.add_flow(transfer())
    scheduler.remove(flow, 0.0)
    scheduler.release(flow, 100, 1.0)
    scheduler.remove(flow, 2.0)
    assert (flow.state, scheduler.snapshot(2.0), sent) == (FlowState.DONE, [], [])


def test_without_a_limit_nothing_is_sent() -> None:
    scheduler, sent = remote(slots=None)
    flow = scheduler.add_flow(transfer())
    scheduler.release(flow, 100, 1.0)
    assert (scheduler.has_limits, scheduler.snapshot(1.0)[0].transfer.moved) == (False, 100)
    other = scheduler.add_flow(transfer())
    scheduler.remove(other, 1.0)
    assert sent == []
    scheduler.configure(POLICIES["fcfs"], slots=1, bytes_per_s={}, now=2.0)
    scheduler.release(flow, 50, 2.0)
    assert scheduler.has_limits
    assert [each["call"] for each in sent] == ["add_flow", "release"], (
        "bytes without a quantum count too"
    )
    assert sent[0]["moved"] == 100


def test_the_limit_of_an_account_is_sent() -> None:
    scheduler, sent = remote(slots=None)
    account = Account("ann")
    scheduler.add_flow(transfer(account))
    scheduler.set_rates(account, {UP: 7.0}, 0.0)
    assert sent == [{"call": "set_rates", "user": "ann", "bytes_per_s": {"up": 7.0}}]
    assert scheduler.has_limits


def test_positions_are_those_of_the_other_process() -> None:
    scheduler, _ = remote()
    for _ in range(2):
        scheduler.ready(scheduler.add_flow(transfer()), 0.0)
    scheduler.positions = {1: 9}
    assert [snapshot.position for snapshot in scheduler.snapshot(0.0)] == [None, 9]
