"""The scheduler in simulated time: order, shares, limits, and starvation."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftpkit.scheduling.flow import Account, FlowState, Transfer
from ftpkit.scheduling.policies import POLICIES
from ftpkit.scheduling.rate_limit import Rates
from ftpkit.scheduling.scheduler import Scheduler
from tests.scheduling.simulation import DOWN, UP, Simulation

MIB = 1024 * 1024
RATE = 50e6
QUANTUM = 100_000


def simulation(
    policy: str, *, slots: int | None = None, bytes_per_s: Rates | None = None
) -> Simulation:
    rates = {UP: RATE} if bytes_per_s is None else bytes_per_s
    return Simulation(Scheduler(POLICIES[policy], slots=slots, bytes_per_s=rates))


def names(grants: Simulation) -> list[str]:
    return [transfer.name for transfer in grants.order()]


# Order.


def test_fcfs_serves_in_the_order_of_arrival() -> None:
    sim, ann = simulation("fcfs", slots=1), Account("ann")
    for size in (300_000, 250_000, 100):
        sim.send(ann, size)
    sim.run()
    assert names(sim) == ["300000"] * 3 + ["250000"] * 3 + ["100"]


def test_sjf_serves_the_transfer_with_least_left() -> None:
    sim, ann = simulation("sjf", slots=1), Account("ann")
    sim.send(ann, 450_000)
    sim.send(ann, 250_000)
    sim.send(ann, 40_000, at=0.00001)
    sim.run()
    assert names(sim) == ["250000", "40000", *["250000"] * 2, *["450000"] * 5]


def test_a_newcomer_waits_for_the_current_quantum_only() -> None:
    for policy in ("sjf", "mlfq", "rr", "fair"):
        sim, ann, bob = simulation(policy, slots=1), Account("ann"), Account("bob")
        sim.send(ann, 100 * MIB)
        small = sim.send(bob, 1000, at=0.5)
        sim.run(1.0)
        assert sim.done[small] - 0.5 < 3 * QUANTUM / RATE, policy


def test_rr_grants_equal_bytes_in_rotation() -> None:
    sim, ann = simulation("rr"), Account("ann")
    for size in (300_000, 300_001, 300_002):
        sim.send(ann, size)
    sim.run()
    assert names(sim)[:9] == ["300000", "300001", "300002"] * 3


def test_mlfq_orders_by_level_and_rotates_within_one() -> None:
    sim, ann = simulation("mlfq", slots=1), Account("ann")
    sim.send(ann, 250_000)
    sim.send(ann, 250_001)
    sim.run()
    # Both are in the first level until 100 KiB, and then in the second.
    assert names(sim)[:4] == ["250000", "250001", "250000", "250001"]


def test_a_small_transfer_is_charged_its_size_only() -> None:
    sim, ann = simulation("rr"), Account("ann")
    for _ in range(5000):
        sim.send(ann, 2000)
    sim.run()
    assert sim.now == pytest.approx(5000 * 2000 / RATE - 0.03, abs=0.001)


def test_a_transfer_of_several_flows_has_the_share_of_one() -> None:
    sim, ann = simulation("rr"), Account("ann")
    many, one = sim.send(ann, None, flows=4), sim.send(ann, None)
    sim.run(5.0)
    assert many.moved == pytest.approx(one.moved, rel=0.02)


# Shares.


def test_rr_shares_by_weight_between_transfers() -> None:
    sim, ann, bob = simulation("rr"), Account("ann", weight=3), Account("bob")
    one, two, three = sim.send(ann, None), sim.send(bob, None), sim.send(bob, None)
    sim.run(5.0)
    assert one.moved == pytest.approx(3 * two.moved, rel=0.02)
    assert two.moved == pytest.approx(three.moved, rel=0.02)


def test_fair_shares_between_accounts_however_many_transfers_they_have() -> None:
    sim, ann, bob = simulation("fair"), Account("ann", weight=2), Account("bob")
    for _ in range(20):
        sim.send(bob, None, flows=2)
    sim.send(ann, None)
    sim.run(10.0)
    assert sim.moved(0, 10, ann) == pytest.approx(2 * sim.moved(0, 10, bob), rel=0.02)


def test_fair_serves_the_shortest_of_each_account() -> None:
    sim, ann, bob = simulation("fair", slots=1), Account("ann"), Account("bob")
    for account, sizes in ((ann, (300_000, 200_000)), (bob, (300_001, 100_001))):
        for size in sizes:
            sim.send(account, size)
    sim.run()
    # The last byte of bob's first transfer costs little, so that bob is next again.
    ends = ["300001", *["300000", "300001"] * 3]
    assert names(sim) == ["200000", "100001", "200000", "100001", *ends]


def test_fair_serves_an_occasional_account_before_a_full_rotation() -> None:
    sim, ann = simulation("fair", slots=1), Account("ann")
    for number in range(8):
        sim.send(Account(f"bulk{number}"), None)
    small = [sim.send(ann, QUANTUM, at=0.5 + number / 20) for number in range(40)]
    sim.run(3.0)
    waits = [sim.done[each] - each.arrived_s for each in small]
    assert max(waits) < 1.1 * QUANTUM / RATE


def test_fair_gives_no_credit_for_absence() -> None:
    sim, ann, bob = simulation("fair"), Account("ann"), Account("bob")
    sim.send(bob, None)
    sim.send(ann, None, at=5.0)
    sim.run(10.0)
    assert sim.moved(5, 10, ann) == pytest.approx(sim.moved(5, 10, bob), rel=0.02)


@given(st.lists(st.floats(0.2, 5), min_size=2, max_size=5), st.sampled_from(["rr", "fair"]))
@settings(max_examples=15, deadline=None)
def test_weights_are_met(weights: list[float], policy: str) -> None:
    sim = simulation(policy, slots=1)
    accounts = [Account(str(i), weight=weight) for i, weight in enumerate(weights)]
    for account in accounts:
        sim.send(account, None)
    sim.run(5.0)
    shares = [sim.moved(0, 5, account) / account.weight for account in accounts]
    least = min(weights)
    assert max(shares) - min(shares) <= 3 * QUANTUM / least


# Limits.


def met(sim: Simulation, bytes_per_s: float, *accounts: Account, until: float = 20.0) -> None:
    """Check that every period of 5 s carries the rate."""
    for tenth in range(int((until - 5) * 10)):
        since = tenth / 10
        moved = sim.moved(since, since + 5, *accounts)
        assert moved == pytest.approx(5 * bytes_per_s, rel=0.02), since


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("rate", [10e3, 1e6, 50e6, 1e9])
def test_the_rate_is_met(policy: str, rate: float) -> None:
    sim, ann, bob = (
        simulation(policy, bytes_per_s={UP: rate}),
        Account("ann"),
        Account("bob"),
    )
    for account in (ann, ann, bob):
        sim.send(account, None)
    sim.run(7.0)
    met(sim, rate, until=7.0)


def test_each_direction_has_its_own_rate() -> None:
    sim, ann = simulation("fair", bytes_per_s={UP: 20e6, DOWN: 5e6}), Account("ann")
    sim.send(ann, None)
    sim.send(ann, None, direction=DOWN)
    sim.run(5.0)
    up = sum(grant.size for grant in sim.grants if grant.transfer.direction is UP)
    down = sum(grant.size for grant in sim.grants if grant.transfer.direction is DOWN)
    assert up == pytest.approx(100e6, rel=0.02)
    assert down == pytest.approx(25e6, rel=0.02)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_limited_account_keeps_to_its_rate_and_does_not_hold_up_others(policy: str) -> None:
    sim = simulation(policy)
    slow, quick = Account("slow", bytes_per_s={UP: 5e6}), Account("quick")
    sim.send(slow, 10**10)
    sim.send(slow, 10**10 + 1)
    sim.send(quick, 10**12, at=0.01)
    sim.run(8.0)
    met(sim, 5e6, slow, until=8.0)
    met(sim, RATE - 5e6, quick, until=8.0)


def test_an_account_below_its_limit_is_not_slowed() -> None:
    sim, ann = simulation("rr"), Account("ann", bytes_per_s={UP: 2 * RATE, DOWN: 1})
    sim.send(ann, None)
    sim.run(5.0)
    met(sim, RATE, until=5.0)


def test_an_account_of_many_small_files_keeps_to_its_rate() -> None:
    sim, ann = simulation("sjf"), Account("ann", bytes_per_s={UP: 1e6})
    for i in range(3000):
        sim.send(ann, 10_000, at=i / 1000)
    sim.run(10.0)
    met(sim, 1e6, until=10.0)


def test_the_best_flow_of_a_limited_account_goes_first() -> None:
    sim, ann = simulation("sjf"), Account("ann", bytes_per_s={UP: 1e6})
    sim.send(ann, 10_000_000)
    small = sim.send(ann, 10_000, at=1.0)
    sim.run(2.0)
    assert sim.done[small] < 1.2


@pytest.mark.parametrize("policy", POLICIES)
def test_no_more_flows_run_than_there_are_slots(policy: str) -> None:
    sim, ann = simulation(policy, slots=3, bytes_per_s={}), Account("ann")
    sim.capacity_bytes_per_s = 1e8
    for i in range(20):
        sim.send(ann, 10 * MIB, direction=(UP, DOWN)[i % 2])
    sim.run()
    assert (sim.most_running, len(sim.done)) == (3, 20)


def test_the_directions_alternate_for_a_slot() -> None:
    sim, ann = simulation("sjf", slots=1, bytes_per_s={}), Account("ann")
    for _ in range(4):
        sim.send(ann, 8 * MIB)
        sim.send(ann, 80 * MIB, direction=DOWN)
    sim.run(0.001)
    directions = [grant.transfer.direction for grant in sim.grants]
    assert directions == [(UP, DOWN)[i % 2] for i in range(len(directions))]


def test_without_limits_all_run_at_once() -> None:
    sim, ann = simulation("fcfs", bytes_per_s={}), Account("ann")
    for _ in range(50):
        sim.send(ann, MIB)
    sim.run()
    assert sim.most_running == 50


def test_quanta_are_charged_when_they_are_granted() -> None:
    sim, ann = simulation("rr"), Account("ann")
    sim.capacity_bytes_per_s = 1e3
    for _ in range(100):
        sim.send(ann, None)
    sim.run(0.1)
    assert sim.moved(0, 1) <= RATE * 0.13 + QUANTUM


# Starvation.


def favour(scheduler: Scheduler, favourite: Transfer, grants: int, now: float) -> list[Transfer]:
    """Grant quanta; after each of ``favourite`` another transfer like it arrives."""
    granted = []
    for _ in range(grants):
        flow = scheduler.grant_next(now)
        assert flow is not None
        scheduler.release(flow, flow.size, now)
        favourite.moved = 0
        scheduler.ready(flow, now)
        granted.append(flow.transfer)
        now = scheduler.next_at()
    return granted


def test_the_longest_waiting_flow_gets_a_twentieth_of_the_bytes() -> None:
    scheduler, ann = (
        Scheduler(POLICIES["mlfq"], slots=1, bytes_per_s={UP: RATE}),
        Account("ann"),
    )
    starving = [
        Transfer(account, "large", UP, 10**9, 0.0, moved=10**8) for account in (ann, Account("bob"))
    ]
    favourite = Transfer(ann, "small", UP, QUANTUM, 0.0)
    for transfer in (*starving, favourite):
        scheduler.ready(scheduler.add_flow(transfer), 0.0)
    favour(scheduler, favourite, 4000, 0.0)
    for transfer in starving:
        assert transfer.moved - 10**8 == pytest.approx(100 * QUANTUM, abs=QUANTUM)


def test_a_grant_by_rank_counts_for_aging() -> None:
    scheduler, ann = (
        Scheduler(POLICIES["mlfq"], slots=1, bytes_per_s={UP: RATE}),
        Account("ann"),
    )
    large = [Transfer(ann, "large", UP, 10**9, 0.0, moved=10**8) for _ in range(2)]
    favourite = Transfer(ann, "small", UP, QUANTUM, 0.0)
    for transfer in large:
        scheduler.ready(scheduler.add_flow(transfer), 0.0)
    assert set(favour(scheduler, favourite, 101, 0.0)) == set(large)
    now = scheduler.next_at()
    scheduler.ready(scheduler.add_flow(favourite), now)
    assert favour(scheduler, favourite, 19, now) == [favourite] * 19
    assert favour(scheduler, favourite, 1, scheduler.next_at()) != [favourite]


sizes = st.lists(
    st.tuples(st.integers(1, 3_000_000), st.floats(0, 0.3), st.integers(0, 2), st.integers(1, 3)),
    min_size=1,
    max_size=30,
)


@given(sizes, st.sampled_from(list(POLICIES)), st.sampled_from([None, 1, 4]), st.booleans())
@settings(max_examples=100, deadline=None)
def test_every_transfer_ends_and_no_time_is_lost(
    arrivals: list[tuple[int, float, int, int]], policy: str, slots: int | None, known: bool
) -> None:
    sim = simulation(policy, slots=slots)
    accounts = [
        Account("a"),
        Account("b", weight=3),
        Account("c", bytes_per_s={UP: RATE / 2}),
    ]
    for size, at, user, flows in arrivals:
        sim.send(accounts[user], size, at=at, flows=flows, known=known)
    sim.run()
    assert len(sim.done) == len(arrivals)
    assert sim.moved(0, math.inf) == sum(size for size, *_ in arrivals)
    assert sim.most_running <= (slots or 1000)
    last = max(at for _, at, *_ in arrivals)
    assert sim.now <= last + 2 * sum(size for size, *_ in arrivals) / RATE + 0.1
    assert sim.scheduler.snapshot(sim.now) == []
    assert sim.scheduler.next_at() == math.inf


# Changes during transfers.


def test_a_changed_rate_applies_at_once() -> None:
    sim, ann = simulation("rr"), Account("ann")
    sim.send(ann, None)
    sim.at(5.0, lambda: configure(sim, "rr", {UP: RATE / 10}))
    sim.run(10.0)
    assert sim.moved(5, 10) == pytest.approx(RATE / 2, rel=0.02)


def test_a_removed_limit_no_longer_applies() -> None:
    sim, ann = (
        simulation("rr", slots=1, bytes_per_s={UP: 1}),
        Account("ann", bytes_per_s={UP: 1}),
    )
    sim.send(ann, 10_000)
    sim.at(1.0, lambda: configure(sim, "rr", {}))
    sim.at(2.0, lambda: sim.scheduler.set_rates(ann, {}, sim.now))
    sim.run(3.0)
    assert list(sim.done.values()) == [pytest.approx(2.0, abs=0.1)]
    assert not sim.scheduler.has_limits


def test_an_account_can_be_limited_during_transfers() -> None:
    sim, ann, bob = simulation("fair"), Account("ann"), Account("bob")
    for account in (ann, ann, bob):
        sim.send(account, None)
    sim.at(5.0, lambda: sim.scheduler.set_rates(ann, {UP: 1e6}, sim.now))
    sim.run(10.0)
    assert sim.moved(5, 10, ann) == pytest.approx(5e6, rel=0.03)
    assert sim.moved(5, 10) == pytest.approx(5 * RATE, rel=0.02)


def test_a_changed_policy_reorders_waiting_flows() -> None:
    sim, ann = simulation("fcfs"), Account("ann")
    sim.send(ann, 10**9)
    small = sim.send(ann, 1000, at=0.5)
    sim.at(1.0, lambda: configure(sim, "sjf", {UP: RATE}))
    sim.run(1.1)
    assert 1.0 < sim.done[small] < 1.01


@pytest.mark.parametrize("before", ["fcfs", "sjf", "rr", "mlfq"])
def test_a_changed_policy_resets_the_shares(before: str) -> None:
    sim, ann, bob = simulation(before), Account("ann"), Account("bob")
    sim.send(bob, 10**9)
    for _ in range(10):
        sim.send(ann, 9 * 10**8)
    sim.at(5.0, lambda: configure(sim, "fair", {UP: RATE}))
    sim.run(10.0)
    assert sim.moved(5, 10, ann) == pytest.approx(sim.moved(5, 10, bob), rel=0.02)


@pytest.mark.parametrize("policy", ["rr", "fair"])
def test_bytes_moved_without_a_quantum_do_not_count_against_a_share(policy: str) -> None:
    sim, ann, bob = (
        simulation(policy, slots=1, bytes_per_s={}),
        Account("ann"),
        Account("bob"),
    )
    old = Transfer(ann, "old", UP, None, 0.0)
    flow = sim.scheduler.add_flow(old)
    sim.scheduler.release(flow, 10**12, 0.0)
    sim.scheduler.configure(POLICIES[policy], slots=1, bytes_per_s={UP: RATE}, now=0.0)
    sim.send(bob, None)
    sim.at(0.1, lambda: sim.scheduler.ready(flow, sim.now))
    sim.run(5.0)
    assert sim.moved(0.1, 5, ann) == pytest.approx(sim.moved(0.1, 5, bob), rel=0.02)


def configure(sim: Simulation, policy: str, bytes_per_s: Rates) -> None:
    sim.scheduler.configure(
        POLICIES[policy],
        slots=None,
        bytes_per_s=bytes_per_s,
        now=sim.now,
    )


# States and removal.


def test_a_transfer_goes_through_its_states() -> None:
    scheduler, ann = Scheduler(POLICIES["rr"], slots=1), Account("ann")
    one, two = (Transfer(ann, name, UP, 10 * MIB, 0.0) for name in "ab")
    seen = [one.state]
    flow, other = scheduler.add_flow(one), scheduler.add_flow(two)
    seen.append(one.state)
    scheduler.ready(flow, 0.0)
    seen.append(one.state)
    assert scheduler.grant_next(0.0) is flow
    seen.append(one.state)
    scheduler.ready(other, 0.0)
    assert (two.state, scheduler.grant_next(0.0)) == (FlowState.READY, None)
    assert scheduler.next_at() == math.inf
    scheduler.release(flow, 1000, 0.0)
    seen.append(one.state)
    assert (one.moved, one.left) == (1000, 10 * MIB - 1000)
    scheduler.remove(flow, 0.0)
    seen.append(one.state)
    assert seen == ["done", "blocked", "ready", "running", "blocked", "done"]


def test_a_transfer_runs_if_one_of_its_flows_does() -> None:
    scheduler, transfer = Scheduler(POLICIES["rr"]), Transfer(Account("ann"), "a", UP, None, 0.0)
    idle, runs, waits = (scheduler.add_flow(transfer) for _ in range(3))
    scheduler.ready(runs, 0.0)
    assert scheduler.grant_next(0.0) is runs
    scheduler.ready(waits, 0.0)
    assert transfer.state is FlowState.RUNNING
    assert idle.state is FlowState.BLOCKED


@pytest.mark.parametrize("running", [False, True])
def test_a_removed_flow_returns_its_slot_share_and_rate(running: bool) -> None:
    scheduler, ann = (
        Scheduler(POLICIES["fair"], slots=1, bytes_per_s={UP: 1000}),
        Account("ann"),
    )
    gone = scheduler.add_flow(Transfer(ann, "gone", UP, None, 0.0))
    stays = scheduler.add_flow(Transfer(ann, "stays", UP, None, 0.0))
    scheduler.ready(gone, 0.0)
    if running:
        assert scheduler.grant_next(0.0) is gone
    scheduler.remove(gone, 0.0)
    scheduler.remove(gone, 0.0)
    assert scheduler.grant_next(0.0) is None
    scheduler.ready(stays, 0.0)
    assert scheduler.grant_next(0.0) is stays


def test_a_removed_flow_returns_the_share_of_its_transfer() -> None:
    scheduler, ann = Scheduler(POLICIES["rr"], slots=1), Account("ann")
    one, two = (Transfer(ann, name, UP, None, 0.0) for name in "ab")
    gone = scheduler.add_flow(one)
    for flow in (scheduler.add_flow(one), gone, scheduler.add_flow(two)):
        scheduler.ready(flow, 0.0)
    scheduler.remove(gone, 0.0)
    order = []
    for _ in range(6):
        granted = scheduler.grant_next(0.0)
        assert granted is not None
        order.append(granted.transfer)
        scheduler.release(granted, granted.size, 0.0)
        scheduler.ready(granted, 0.0)
    assert order == [one, two] * 3


def test_bytes_moved_after_removal_or_without_a_quantum_are_charged() -> None:
    scheduler, ann = Scheduler(POLICIES["fair"], bytes_per_s={UP: 1000}), Account("ann")
    transfer = Transfer(ann, "a", UP, None, 0.0)
    flow = scheduler.add_flow(transfer)
    scheduler.release(flow, 530, 1.0)
    scheduler.remove(flow, 1.0)
    scheduler.release(flow, 500, 1.0)
    assert (transfer.moved, flow.state) == (1030, FlowState.DONE)
    scheduler.ready(scheduler.add_flow(transfer), 1.0)
    assert scheduler.grant_next(1.9) is None
    assert scheduler.next_at() == pytest.approx(2.0)


def test_a_transfer_that_returns_keeps_its_order() -> None:
    scheduler, ann = Scheduler(POLICIES["fcfs"], slots=1), Account("ann")
    old, young = (Transfer(ann, name, UP, None, 0.0) for name in "ab")
    scheduler.remove(scheduler.add_flow(old), 0.0)
    flows = scheduler.add_flow(young), scheduler.add_flow(old)
    for flow in flows:
        scheduler.ready(flow, 0.0)
    assert scheduler.grant_next(0.0) is flows[1]


@pytest.mark.parametrize(
    ("slots", "rates", "account", "limited"),
    [
        (None, {}, {}, False),
        (1, {}, {}, True),
        (None, {DOWN: 1.0}, {}, True),
        (None, {}, {DOWN: 1.0}, True),
    ],
)
def test_any_limit_is_reported(
    slots: int | None, rates: Rates, account: Rates, limited: bool
) -> None:
    scheduler = Scheduler(POLICIES["fair"], slots=slots, bytes_per_s=rates)
    flow = scheduler.add_flow(Transfer(Account("ann", bytes_per_s=account), "a", UP, None, 0.0))
    assert scheduler.has_limits is limited
    scheduler.remove(flow, 0.0)
    assert scheduler.has_limits is (limited and not account)


def test_a_weight_must_be_positive() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        Account("ann", weight=0)


# Snapshots.


def test_a_snapshot_has_state_and_position_of_each_transfer() -> None:
    scheduler, ann, bob = Scheduler(POLICIES["sjf"], slots=1), Account("ann"), Account("bob")
    sizes = {"large": 90 * MIB, "small": MIB, "middle": 20 * MIB}
    for name, size in sizes.items():
        scheduler.ready(scheduler.add_flow(Transfer(ann, name, UP, size, 7.0)), 7.0)
    scheduler.ready(scheduler.add_flow(Transfer(bob, "back", DOWN, None, 8.0, moved=200_000)), 8.0)
    flow = scheduler.grant_next(8.0)
    assert flow is not None
    scheduler.release(flow, 1, 8.0)
    snapshots = scheduler.snapshot(8.0)
    assert [
        (arrivals.transfer.name, arrivals.state, arrivals.position) for arrivals in snapshots
    ] == [
        ("large", FlowState.READY, 2),
        ("small", FlowState.BLOCKED, None),
        ("middle", FlowState.READY, 1),
        ("back", FlowState.READY, 1),
    ]
    assert snapshots[1].transfer.moved == 1


def test_positions_under_fair_alternate_between_accounts() -> None:
    scheduler, ann, bob = Scheduler(POLICIES["fair"], slots=1), Account("ann"), Account("bob")
    for account, name in ((ann, "1"), (ann, "3"), (bob, "2"), (bob, "4")):
        scheduler.ready(scheduler.add_flow(Transfer(account, name, UP, 100 * MIB, 0.0)), 0.0)
    assert [arrivals.position for arrivals in scheduler.snapshot(0.0)] == [1, 3, 2, 4]


def test_without_limits_a_transfer_that_has_just_moved_is_running() -> None:
    scheduler = Scheduler(POLICIES["rr"])
    flow = scheduler.add_flow(Transfer(Account("ann"), "a", UP, MIB, 0.0))
    scheduler.release(flow, 1, 5.0)
    assert [arrivals.state for arrivals in scheduler.snapshot(5.01)] == [FlowState.RUNNING]
    assert [arrivals.state for arrivals in scheduler.snapshot(7.0)] == [FlowState.BLOCKED]
