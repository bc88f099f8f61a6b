"""The schedule in simulated time: order, shares, limits, and that nothing starves."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftpkit.scheduling.flow import Account, State, Transfer
from ftpkit.scheduling.policies import POLICIES
from ftpkit.scheduling.rate_limit import Rates
from ftpkit.scheduling.scheduler import Scheduler
from tests.scheduling.trip import DOWN, UP, Trip

MIB = 1024 * 1024
RATE = 50e6
QUANTUM = 100_000


def trip(policy: str, *, slots: int | None = None, bytes_per_s: Rates | None = None) -> Trip:
    rates = {UP: RATE} if bytes_per_s is None else bytes_per_s
    return Trip(Scheduler(POLICIES[policy], slots=slots, bytes_per_s=rates))


def names(turns: Trip) -> list[str]:
    return [transfer.name for transfer in turns.order()]


# Order.


def test_fcfs_ends_what_came_first_first() -> None:
    line, ann = trip("fcfs", slots=1), Account("ann")
    for size in (300_000, 250_000, 100):
        line.send(ann, size)
    line.run()
    assert names(line) == ["300000"] * 3 + ["250000"] * 3 + ["100"]


def test_sjf_takes_what_has_least_left() -> None:
    line, ann = trip("sjf", slots=1), Account("ann")
    line.send(ann, 450_000)
    line.send(ann, 250_000)
    line.send(ann, 40_000, at=0.00001)
    line.run()
    assert names(line) == ["250000", "40000", *["250000"] * 2, *["450000"] * 5]


def test_a_newcomer_has_its_turn_after_the_quantum_under_way() -> None:
    for policy in ("sjf", "mlfq", "rr", "fair"):
        line, ann, bob = trip(policy, slots=1), Account("ann"), Account("bob")
        line.send(ann, 100 * MIB)
        small = line.send(bob, 1000, at=0.5)
        line.run(1.0)
        assert line.done[small] - 0.5 < 3 * QUANTUM / RATE, policy


def test_rr_gives_all_the_same_bytes_in_turn() -> None:
    line, ann = trip("rr"), Account("ann")
    for size in (300_000, 300_001, 300_002):
        line.send(ann, size)
    line.run()
    assert names(line)[:9] == ["300000", "300001", "300002"] * 3


def test_mlfq_goes_by_what_moved_and_in_turn_within_a_level() -> None:
    line, ann = trip("mlfq", slots=1), Account("ann")
    line.send(ann, 250_000)
    line.send(ann, 250_001)
    line.run()
    # Both are in the first level until 100 KiB, and then in the second.
    assert names(line)[:4] == ["250000", "250001", "250000", "250001"]


def test_a_small_transfer_is_charged_what_it_has() -> None:
    line, ann = trip("rr"), Account("ann")
    for _ in range(5000):
        line.send(ann, 2000)
    line.run()
    assert line.now == pytest.approx(5000 * 2000 / RATE - 0.03, abs=0.001)


def test_a_transfer_of_several_lanes_has_the_share_of_one() -> None:
    line, ann = trip("rr"), Account("ann")
    many, one = line.send(ann, None, flows=4), line.send(ann, None)
    line.run(5.0)
    assert many.moved == pytest.approx(one.moved, rel=0.02)


# Shares.


def test_rr_shares_by_weight_between_transfers() -> None:
    line, ann, bob = trip("rr"), Account("ann", weight=3), Account("bob")
    one, two, three = line.send(ann, None), line.send(bob, None), line.send(bob, None)
    line.run(5.0)
    assert one.moved == pytest.approx(3 * two.moved, rel=0.02)
    assert two.moved == pytest.approx(three.moved, rel=0.02)


def test_fair_shares_between_accounts_however_many_transfers_they_have() -> None:
    line, ann, bob = trip("fair"), Account("ann", weight=2), Account("bob")
    for _ in range(20):
        line.send(bob, None, flows=2)
    line.send(ann, None)
    line.run(10.0)
    assert line.moved(0, 10, ann) == pytest.approx(2 * line.moved(0, 10, bob), rel=0.02)


def test_fair_takes_the_shortest_of_each_account() -> None:
    line, ann, bob = trip("fair", slots=1), Account("ann"), Account("bob")
    for account, sizes in ((ann, (300_000, 200_000)), (bob, (300_001, 100_001))):
        for size in sizes:
            line.send(account, size)
    line.run()
    # The last byte of bob's first one is cheap, so that bob is next again.
    ends = ["300001", *["300000", "300001"] * 3]
    assert names(line) == ["200000", "100001", "200000", "100001", *ends]


def test_fair_does_not_let_who_needs_little_wait_for_a_round() -> None:
    line, ann = trip("fair", slots=1), Account("ann")
    for number in range(8):
        line.send(Account(f"bulk{number}"), None)
    small = [line.send(ann, QUANTUM, at=0.5 + number / 20) for number in range(40)]
    line.run(3.0)
    waits = [line.done[each] - each.arrived_s for each in small]
    assert max(waits) < 1.1 * QUANTUM / RATE


def test_fair_saves_up_nothing_for_who_was_away() -> None:
    line, ann, bob = trip("fair"), Account("ann"), Account("bob")
    line.send(bob, None)
    line.send(ann, None, at=5.0)
    line.run(10.0)
    assert line.moved(5, 10, ann) == pytest.approx(line.moved(5, 10, bob), rel=0.02)


@given(st.lists(st.floats(0.2, 5), min_size=2, max_size=5), st.sampled_from(["rr", "fair"]))
@settings(max_examples=15, deadline=None)
def test_weights_are_met(weights: list[float], policy: str) -> None:
    line = trip(policy, slots=1)
    accounts = [Account(str(i), weight=weight) for i, weight in enumerate(weights)]
    for account in accounts:
        line.send(account, None)
    line.run(5.0)
    shares = [line.moved(0, 5, account) / account.weight for account in accounts]
    least = min(weights)
    assert max(shares) - min(shares) <= 3 * QUANTUM / least


# Limits.


def met(line: Trip, bytes_per_s: float, *accounts: Account, until: float = 20.0) -> None:
    """Check that 5 s carry the rate, wherever they begin."""
    for tenth in range(int((until - 5) * 10)):
        since = tenth / 10
        moved = line.moved(since, since + 5, *accounts)
        assert moved == pytest.approx(5 * bytes_per_s, rel=0.02), since


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("rate", [10e3, 1e6, 50e6, 1e9])
def test_the_rate_is_met(policy: str, rate: float) -> None:
    line, ann, bob = (
        trip(policy, bytes_per_s={UP: rate}),
        Account("ann"),
        Account("bob"),
    )
    for account in (ann, ann, bob):
        line.send(account, None)
    line.run(7.0)
    met(line, rate, until=7.0)


def test_both_directions_have_a_rate_of_their_own() -> None:
    line, ann = trip("fair", bytes_per_s={UP: 20e6, DOWN: 5e6}), Account("ann")
    line.send(ann, None)
    line.send(ann, None, direction=DOWN)
    line.run(5.0)
    up = sum(turn.size for turn in line.turns if turn.transfer.direction is UP)
    down = sum(turn.size for turn in line.turns if turn.transfer.direction is DOWN)
    assert up == pytest.approx(100e6, rel=0.02)
    assert down == pytest.approx(25e6, rel=0.02)


@pytest.mark.parametrize("policy", POLICIES)
def test_an_account_keeps_to_its_rate_and_stands_in_nobodys_way(policy: str) -> None:
    line = trip(policy)
    slow, quick = Account("slow", bytes_per_s={UP: 5e6}), Account("quick")
    line.send(slow, 10**10)
    line.send(slow, 10**10 + 1)
    line.send(quick, 10**12, at=0.01)
    line.run(8.0)
    met(line, 5e6, slow, until=8.0)
    met(line, RATE - 5e6, quick, until=8.0)


def test_an_account_under_its_limit_loses_nothing_to_it() -> None:
    line, ann = trip("rr"), Account("ann", bytes_per_s={UP: 2 * RATE, DOWN: 1})
    line.send(ann, None)
    line.run(5.0)
    met(line, RATE, until=5.0)


def test_an_account_of_files_without_end_keeps_to_its_rate() -> None:
    line, ann = trip("sjf"), Account("ann", bytes_per_s={UP: 1e6})
    for i in range(3000):
        line.send(ann, 10_000, at=i / 1000)
    line.run(10.0)
    met(line, 1e6, until=10.0)


def test_the_best_lane_of_a_limited_account_goes_first() -> None:
    line, ann = trip("sjf"), Account("ann", bytes_per_s={UP: 1e6})
    line.send(ann, 10_000_000)
    small = line.send(ann, 10_000, at=1.0)
    line.run(2.0)
    assert line.done[small] < 1.2


@pytest.mark.parametrize("policy", POLICIES)
def test_no_more_than_the_slots_have_a_turn(policy: str) -> None:
    line, ann = trip(policy, slots=3, bytes_per_s={}), Account("ann")
    line.line_bps = 1e8
    for i in range(20):
        line.send(ann, 10 * MIB, direction=(UP, DOWN)[i % 2])
    line.run()
    assert (line.most_running, len(line.done)) == (3, 20)


def test_the_directions_take_turns_for_a_slot() -> None:
    line, ann = trip("sjf", slots=1, bytes_per_s={}), Account("ann")
    for _ in range(4):
        line.send(ann, 8 * MIB)
        line.send(ann, 80 * MIB, direction=DOWN)
    line.run(0.001)
    directions = [turn.transfer.direction for turn in line.turns]
    assert directions == [(UP, DOWN)[i % 2] for i in range(len(directions))]


def test_without_limits_all_run_at_once() -> None:
    line, ann = trip("fcfs", bytes_per_s={}), Account("ann")
    for _ in range(50):
        line.send(ann, MIB)
    line.run()
    assert line.most_running == 50


def test_turns_are_not_given_before_those_under_way_are_paid_for() -> None:
    line, ann = trip("rr"), Account("ann")
    line.line_bps = 1e3
    for _ in range(100):
        line.send(ann, None)
    line.run(0.1)
    assert line.moved(0, 1) <= RATE * 0.13 + QUANTUM


# Nothing starves.


def favour(schedule: Scheduler, favourite: Transfer, turns: int, now: float) -> list[Transfer]:
    """Give turns; whenever ``favourite`` had one, the next one like it comes."""
    given = []
    for _ in range(turns):
        flow = schedule.grant_next(now)
        assert flow is not None
        schedule.release(flow, flow.size, now)
        favourite.moved = 0
        schedule.ready(flow, now)
        given.append(flow.transfer)
        now = schedule.next_at()
    return given


def test_what_waits_longest_has_a_twentieth_of_the_bytes() -> None:
    schedule, ann = (
        Scheduler(POLICIES["mlfq"], slots=1, bytes_per_s={UP: RATE}),
        Account("ann"),
    )
    starving = [
        Transfer(account, "large", UP, 10**9, 0.0, moved=10**8) for account in (ann, Account("bob"))
    ]
    favourite = Transfer(ann, "small", UP, QUANTUM, 0.0)
    for transfer in (*starving, favourite):
        schedule.ready(schedule.add_flow(transfer), 0.0)
    favour(schedule, favourite, 4000, 0.0)
    for transfer in starving:
        assert transfer.moved - 10**8 == pytest.approx(100 * QUANTUM, abs=QUANTUM)


def test_a_turn_that_comes_by_rank_counts_as_well() -> None:
    schedule, ann = (
        Scheduler(POLICIES["mlfq"], slots=1, bytes_per_s={UP: RATE}),
        Account("ann"),
    )
    large = [Transfer(ann, "large", UP, 10**9, 0.0, moved=10**8) for _ in range(2)]
    favourite = Transfer(ann, "small", UP, QUANTUM, 0.0)
    for transfer in large:
        schedule.ready(schedule.add_flow(transfer), 0.0)
    assert set(favour(schedule, favourite, 101, 0.0)) == set(large)
    now = schedule.next_at()
    schedule.ready(schedule.add_flow(favourite), now)
    assert favour(schedule, favourite, 19, now) == [favourite] * 19
    assert favour(schedule, favourite, 1, schedule.next_at()) != [favourite]


sizes = st.lists(
    st.tuples(st.integers(1, 3_000_000), st.floats(0, 0.3), st.integers(0, 2), st.integers(1, 3)),
    min_size=1,
    max_size=30,
)


@given(sizes, st.sampled_from(list(POLICIES)), st.sampled_from([None, 1, 4]), st.booleans())
@settings(max_examples=100, deadline=None)
def test_all_ends_and_no_time_is_lost(
    row: list[tuple[int, float, int, int]], policy: str, slots: int | None, known: bool
) -> None:
    line = trip(policy, slots=slots)
    accounts = [
        Account("a"),
        Account("b", weight=3),
        Account("c", bytes_per_s={UP: RATE / 2}),
    ]
    for size, at, user, flows in row:
        line.send(accounts[user], size, at=at, flows=flows, known=known)
    line.run()
    assert len(line.done) == len(row)
    assert line.moved(0, math.inf) == sum(size for size, *_ in row)
    assert line.most_running <= (slots or 1000)
    last = max(at for _, at, *_ in row)
    assert line.now <= last + 2 * sum(size for size, *_ in row) / RATE + 0.1
    assert line.schedule.snapshot(line.now) == []
    assert line.schedule.next_at() == math.inf


# Changes on the way.


def test_another_rate_holds_at_once() -> None:
    line, ann = trip("rr"), Account("ann")
    line.send(ann, None)
    line.at(5.0, lambda: configure(line, "rr", {UP: RATE / 10}))
    line.run(10.0)
    assert line.moved(5, 10) == pytest.approx(RATE / 2, rel=0.02)


def test_a_limit_that_is_taken_away_is_gone() -> None:
    line, ann = (
        trip("rr", slots=1, bytes_per_s={UP: 1}),
        Account("ann", bytes_per_s={UP: 1}),
    )
    line.send(ann, 10_000)
    line.at(1.0, lambda: configure(line, "rr", {}))
    line.at(2.0, lambda: line.schedule.set_rates(ann, {}, line.now))
    line.run(3.0)
    assert list(line.done.values()) == [pytest.approx(2.0, abs=0.1)]
    assert not line.schedule.has_limits


def test_an_account_is_limited_on_the_way() -> None:
    line, ann, bob = trip("fair"), Account("ann"), Account("bob")
    for account in (ann, ann, bob):
        line.send(account, None)
    line.at(5.0, lambda: line.schedule.set_rates(ann, {UP: 1e6}, line.now))
    line.run(10.0)
    assert line.moved(5, 10, ann) == pytest.approx(5e6, rel=0.03)
    assert line.moved(5, 10) == pytest.approx(5 * RATE, rel=0.02)


def test_another_policy_orders_what_waits() -> None:
    line, ann = trip("fcfs"), Account("ann")
    line.send(ann, 10**9)
    small = line.send(ann, 1000, at=0.5)
    line.at(1.0, lambda: configure(line, "sjf", {UP: RATE}))
    line.run(1.1)
    assert 1.0 < line.done[small] < 1.01


@pytest.mark.parametrize("before", ["fcfs", "sjf", "rr", "mlfq"])
def test_shares_begin_anew_with_a_policy(before: str) -> None:
    line, ann, bob = trip(before), Account("ann"), Account("bob")
    line.send(bob, 10**9)
    for _ in range(10):
        line.send(ann, 9 * 10**8)
    line.at(5.0, lambda: configure(line, "fair", {UP: RATE}))
    line.run(10.0)
    assert line.moved(5, 10, ann) == pytest.approx(line.moved(5, 10, bob), rel=0.02)


@pytest.mark.parametrize("policy", ["rr", "fair"])
def test_what_moved_without_turns_is_not_held_against_anybody(policy: str) -> None:
    line, ann, bob = (
        trip(policy, slots=1, bytes_per_s={}),
        Account("ann"),
        Account("bob"),
    )
    old = Transfer(ann, "old", UP, None, 0.0)
    flow = line.schedule.add_flow(old)
    line.schedule.release(flow, 10**12, 0.0)
    line.schedule.configure(POLICIES[policy], slots=1, bytes_per_s={UP: RATE}, now=0.0)
    line.send(bob, None)
    line.at(0.1, lambda: line.schedule.ready(flow, line.now))
    line.run(5.0)
    assert line.moved(0.1, 5, ann) == pytest.approx(line.moved(0.1, 5, bob), rel=0.02)


def configure(line: Trip, policy: str, bytes_per_s: Rates) -> None:
    line.schedule.configure(
        POLICIES[policy],
        slots=None,
        bytes_per_s=bytes_per_s,
        now=line.now,
    )


# States, and leaving.


def test_a_transfer_goes_through_its_states() -> None:
    schedule, ann = Scheduler(POLICIES["rr"], slots=1), Account("ann")
    one, two = (Transfer(ann, name, UP, 10 * MIB, 0.0) for name in "ab")
    seen = [one.state]
    flow, other = schedule.add_flow(one), schedule.add_flow(two)
    seen.append(one.state)
    schedule.ready(flow, 0.0)
    seen.append(one.state)
    assert schedule.grant_next(0.0) is flow
    seen.append(one.state)
    schedule.ready(other, 0.0)
    assert (two.state, schedule.grant_next(0.0)) == (State.READY, None)
    assert schedule.next_at() == math.inf
    schedule.release(flow, 1000, 0.0)
    seen.append(one.state)
    assert (one.moved, one.left) == (1000, 10 * MIB - 1000)
    schedule.remove(flow, 0.0)
    seen.append(one.state)
    assert seen == ["done", "blocked", "ready", "running", "blocked", "done"]


def test_a_transfer_runs_if_one_of_its_lanes_does() -> None:
    schedule, transfer = Scheduler(POLICIES["rr"]), Transfer(Account("ann"), "a", UP, None, 0.0)
    idle, runs, waits = (schedule.add_flow(transfer) for _ in range(3))
    schedule.ready(runs, 0.0)
    assert schedule.grant_next(0.0) is runs
    schedule.ready(waits, 0.0)
    assert transfer.state is State.RUNNING
    assert idle.state is State.BLOCKED


@pytest.mark.parametrize("running", [False, True])
def test_who_leaves_gives_back_slot_share_and_rate(running: bool) -> None:
    schedule, ann = (
        Scheduler(POLICIES["fair"], slots=1, bytes_per_s={UP: 1000}),
        Account("ann"),
    )
    gone = schedule.add_flow(Transfer(ann, "gone", UP, None, 0.0))
    stays = schedule.add_flow(Transfer(ann, "stays", UP, None, 0.0))
    schedule.ready(gone, 0.0)
    if running:
        assert schedule.grant_next(0.0) is gone
    schedule.remove(gone, 0.0)
    schedule.remove(gone, 0.0)
    assert schedule.grant_next(0.0) is None
    schedule.ready(stays, 0.0)
    assert schedule.grant_next(0.0) is stays


def test_a_lane_that_leaves_gives_back_the_share_of_its_transfer() -> None:
    schedule, ann = Scheduler(POLICIES["rr"], slots=1), Account("ann")
    one, two = (Transfer(ann, name, UP, None, 0.0) for name in "ab")
    gone = schedule.add_flow(one)
    for flow in (schedule.add_flow(one), gone, schedule.add_flow(two)):
        schedule.ready(flow, 0.0)
    schedule.remove(gone, 0.0)
    order = []
    for _ in range(6):
        given = schedule.grant_next(0.0)
        assert given is not None
        order.append(given.transfer)
        schedule.release(given, given.size, 0.0)
        schedule.ready(given, 0.0)
    assert order == [one, two] * 3


def test_bytes_moved_after_leaving_or_without_a_turn_are_charged() -> None:
    schedule, ann = Scheduler(POLICIES["fair"], bytes_per_s={UP: 1000}), Account("ann")
    transfer = Transfer(ann, "a", UP, None, 0.0)
    flow = schedule.add_flow(transfer)
    schedule.release(flow, 530, 1.0)
    schedule.remove(flow, 1.0)
    schedule.release(flow, 500, 1.0)
    assert (transfer.moved, flow.state) == (1030, State.DONE)
    schedule.ready(schedule.add_flow(transfer), 1.0)
    assert schedule.grant_next(1.9) is None
    assert schedule.next_at() == pytest.approx(2.0)


def test_a_transfer_that_comes_back_keeps_its_place() -> None:
    schedule, ann = Scheduler(POLICIES["fcfs"], slots=1), Account("ann")
    old, young = (Transfer(ann, name, UP, None, 0.0) for name in "ab")
    schedule.remove(schedule.add_flow(old), 0.0)
    flows = schedule.add_flow(young), schedule.add_flow(old)
    for flow in flows:
        schedule.ready(flow, 0.0)
    assert schedule.grant_next(0.0) is flows[1]


@pytest.mark.parametrize(
    ("slots", "rates", "account", "shaped"),
    [
        (None, {}, {}, False),
        (1, {}, {}, True),
        (None, {DOWN: 1.0}, {}, True),
        (None, {}, {DOWN: 1.0}, True),
    ],
)
def test_any_limit_shapes(slots: int | None, rates: Rates, account: Rates, shaped: bool) -> None:
    schedule = Scheduler(POLICIES["fair"], slots=slots, bytes_per_s=rates)
    flow = schedule.add_flow(Transfer(Account("ann", bytes_per_s=account), "a", UP, None, 0.0))
    assert schedule.has_limits is shaped
    schedule.remove(flow, 0.0)
    assert schedule.has_limits is (shaped and not account)


def test_a_weight_is_more_than_nothing() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        Account("ann", weight=0)


# What people see.


def test_a_snapshot_tells_how_each_stands() -> None:
    schedule, ann, bob = Scheduler(POLICIES["sjf"], slots=1), Account("ann"), Account("bob")
    sizes = {"large": 90 * MIB, "small": MIB, "middle": 20 * MIB}
    for name, size in sizes.items():
        schedule.ready(schedule.add_flow(Transfer(ann, name, UP, size, 7.0)), 7.0)
    schedule.ready(schedule.add_flow(Transfer(bob, "back", DOWN, None, 8.0, moved=200_000)), 8.0)
    flow = schedule.grant_next(8.0)
    assert flow is not None
    schedule.release(flow, 1, 8.0)
    rows = schedule.snapshot(8.0)
    assert [(row.transfer.name, row.state, row.position) for row in rows] == [
        ("large", State.READY, 2),
        ("small", State.BLOCKED, None),
        ("middle", State.READY, 1),
        ("back", State.READY, 1),
    ]
    assert rows[1].transfer.moved == 1


def test_positions_under_fair_go_between_accounts() -> None:
    schedule, ann, bob = Scheduler(POLICIES["fair"], slots=1), Account("ann"), Account("bob")
    for account, name in ((ann, "1"), (ann, "3"), (bob, "2"), (bob, "4")):
        schedule.ready(schedule.add_flow(Transfer(account, name, UP, 100 * MIB, 0.0)), 0.0)
    assert [row.position for row in schedule.snapshot(0.0)] == [1, 3, 2, 4]


def test_without_turns_who_has_just_moved_runs() -> None:
    schedule = Scheduler(POLICIES["rr"])
    flow = schedule.add_flow(Transfer(Account("ann"), "a", UP, MIB, 0.0))
    schedule.release(flow, 1, 5.0)
    assert [row.state for row in schedule.snapshot(5.01)] == [State.RUNNING]
    assert [row.state for row in schedule.snapshot(7.0)] == [State.BLOCKED]
