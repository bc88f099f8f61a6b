"""The dispatcher with real threads: turns, waking, leaving, stopping, changing."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import pytest

from ftpkit.errors import Code, ConnectionLostError, RefusedError
from ftpkit.scheduling.dispatcher import Carrier, Dispatcher
from ftpkit.scheduling.limit import Direction, Rates
from ftpkit.scheduling.policies import POLICIES
from ftpkit.scheduling.remote import Remote
from ftpkit.scheduling.schedule import Schedule
from ftpkit.scheduling.transfer import Account, State, Transfer

UP = Direction.UP
MIB = 1024 * 1024
LONG_S = 30.0
Make = Callable[..., Dispatcher]


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=8) as threads:
        yield threads


@pytest.fixture
def dispatcher(threads: ThreadPoolExecutor) -> Iterator[Make]:
    """Make dispatchers, and let nobody wait there when the test is over."""
    made: list[Dispatcher] = []

    def make(
        policy: str = "rr",
        *,
        slots: int | None = None,
        rates_bps: Rates | None = None,
        longest_wait_s: float = LONG_S,
    ) -> Dispatcher:
        schedule = Schedule(POLICIES[policy], slots=slots, rates_bps=rates_bps)
        made.append(Dispatcher(schedule, longest_wait_s=longest_wait_s))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def join(turns: Dispatcher, account: Account | None = None, total: int | None = None) -> Carrier:
    return turns.join(Transfer(account or Account("ann"), "a", UP, total, 0.0))


def waiting(turns: Dispatcher, count: int) -> None:
    """Return once ``count`` transfers wait for their turn."""
    done = threading.Event()
    while sum(row.state is State.READY for row in turns.snapshot()) != count:
        assert not done.wait(0.001)


def refusal(future: "Future[int]") -> str:
    with pytest.raises(RefusedError) as caught:
        future.result(LONG_S)
    return caught.value.code


def test_a_turn_comes_at_once_where_nobody_is_in_the_way(dispatcher: Make) -> None:
    turns = dispatcher(slots=1)
    lane = join(turns, total=1000)
    assert lane.turn() == 1000
    lane.gave_up(600)
    assert lane.turn() == 400
    lane.gave_up(400)
    lane.leave()
    assert turns.snapshot() == []


def test_the_next_is_woken_when_a_turn_ends(dispatcher: Make, threads: ThreadPoolExecutor) -> None:
    turns = dispatcher("fcfs", slots=1)
    lanes = [join(turns) for _ in range(3)]
    assert lanes[0].turn() == 4 * MIB
    second = threads.submit(lanes[1].turn)
    third = threads.submit(lanes[2].turn)
    waiting(turns, 2)
    lanes[0].gave_up(4 * MIB)
    assert second.result(LONG_S) == 4 * MIB
    assert not third.done()
    lanes[1].leave()
    assert third.result(LONG_S) == 4 * MIB


def test_who_waits_for_a_rate_goes_on_when_it_is_due(
    dispatcher: Make, threads: ThreadPoolExecutor
) -> None:
    turns = dispatcher(rates_bps={UP: 2e6})
    lanes = [join(turns) for _ in range(4)]

    def carry(lane: Carrier) -> int:
        moved = 0
        for _ in range(5):
            size = lane.turn()
            lane.gave_up(size)
            moved += size
        return moved

    moved = [future.result(LONG_S) for future in [threads.submit(carry, lane) for lane in lanes]]
    assert moved == [5 * 65536] * 4


def test_a_cut_connection_waits_no_longer(dispatcher: Make, threads: ThreadPoolExecutor) -> None:
    turns = dispatcher(slots=1)
    first, second, third = (join(turns) for _ in range(3))
    first.turn()
    cut = threads.submit(second.turn)
    waiting(turns, 1)
    second.leave()
    with pytest.raises(ConnectionLostError):
        cut.result(LONG_S)
    with pytest.raises(ConnectionLostError):
        second.turn()
    first.gave_up(0)
    assert third.turn() == 4 * MIB


def test_another_watches_the_clock_when_the_watch_is_cut(
    dispatcher: Make, threads: ThreadPoolExecutor
) -> None:
    turns = dispatcher(rates_bps={UP: 1e6})
    spender, watch, other = (join(turns) for _ in range(3))
    spender.gave_up(300_000)
    cut = threads.submit(watch.turn)
    waiting(turns, 1)
    future = threads.submit(other.turn)
    waiting(turns, 2)
    watch.leave()
    with pytest.raises(ConnectionLostError):
        cut.result(LONG_S)
    assert future.result(LONG_S) == 50_000


def test_stopping_refuses_all_who_wait_and_who_come_later(
    dispatcher: Make, threads: ThreadPoolExecutor
) -> None:
    turns = dispatcher(slots=1)
    lanes = [join(turns) for _ in range(8)]
    lanes[0].turn()
    futures = [threads.submit(lane.turn) for lane in lanes[1:]]
    waiting(turns, 7)
    turns.stop()
    assert {refusal(future) for future in futures} == {Code.SHUTTING_DOWN}
    lanes[0].gave_up(1)
    with pytest.raises(RefusedError):
        lanes[0].turn()
    for lane in lanes:
        lane.leave()
    assert turns.snapshot() == []


@pytest.mark.parametrize(
    ("slots", "rates"), [(1, {}), (None, {UP: 0.001})], ids=["more slots", "another rate"]
)
def test_other_limits_wake_who_may_go_on_now(
    dispatcher: Make, slots: int | None, rates: Rates, threads: ThreadPoolExecutor
) -> None:
    turns = dispatcher(slots=slots, rates_bps=rates)
    first, second = join(turns), join(turns)
    first.turn()
    future = threads.submit(second.turn)
    waiting(turns, 1)
    turns.configure(POLICIES["sjf"], slots=2, rates_bps={UP: 1e9})
    assert future.result(LONG_S) == 2_000_000


def test_another_limit_of_an_account_wakes_its_transfers(
    dispatcher: Make, threads: ThreadPoolExecutor
) -> None:
    turns, account = dispatcher(), Account("slow", rates_bps={UP: 0.001})
    lane, other = join(turns, account), join(turns)
    lane.gave_up(1000)
    future = threads.submit(lane.turn)
    waiting(turns, 1)
    assert other.turn() == 4 * MIB
    assert not future.done()
    turns.limit(account, {})
    assert future.result(LONG_S) == 4 * MIB


def test_a_limit_on_a_running_server_holds_for_who_took_no_turns(dispatcher: Make) -> None:
    turns = dispatcher()
    lane = join(turns)
    assert not turns.shaped
    lane.gave_up(5000)
    turns.configure(POLICIES["rr"], slots=1, rates_bps={})
    assert turns.shaped
    assert lane.turn() == 4 * MIB
    assert turns.snapshot()[0].moved == 5000


@pytest.mark.parametrize("policy", POLICIES)
def test_no_wake_up_is_lost(dispatcher: Make, policy: str, threads: ThreadPoolExecutor) -> None:
    """Eight threads, two slots, a hundred thousand turns in all tests; a lost one would hang."""
    slots, running, most = 2, 0, 0
    turns, guard = dispatcher(policy, slots=slots), threading.Lock()

    def carry(account: Account) -> int:
        nonlocal running, most
        lane, moved = turns.join(Transfer(account, "a", UP, None, 0.0)), 0
        for _ in range(2500):
            size = lane.turn()
            with guard:
                running += 1
                most = max(most, running)
            moved += size
            with guard:
                running -= 1
            lane.gave_up(size)
        lane.leave()
        return moved

    accounts = [Account("a"), Account("b", weight=2)]
    futures = [threads.submit(carry, accounts[i % 2]) for i in range(8)]
    assert [future.result(LONG_S * 4) for future in futures] == [2500 * 4 * MIB] * 8
    assert most <= slots
    assert turns.snapshot() == []


def test_no_wake_up_is_lost_at_a_rate(dispatcher: Make, threads: ThreadPoolExecutor) -> None:
    """Many short turns, of an account that is over its limit now and then, and of others."""
    turns = dispatcher("fair", slots=3, rates_bps={UP: 5e9})
    accounts = [Account("slow", rates_bps={UP: 5e8}), Account("quick")]

    def carry(account: Account) -> None:
        for _ in range(40):
            lane = turns.join(Transfer(account, "a", UP, 5 * 10**6, 0.0))
            for _ in range(5):
                lane.gave_up(lane.turn() // 4)
            lane.leave()

    futures = [threads.submit(carry, accounts[i % 2]) for i in range(8)]
    for future in futures:
        future.result(LONG_S)
    assert turns.snapshot() == []


@pytest.mark.parametrize(
    "limits", [{"slots": 1}, {"rates_bps": {UP: 1.0}}, {"slots": 1, "rates_bps": {UP: 1.0}}]
)
def test_nobody_waits_in_the_dark(dispatcher: Make, limits: dict[str, Any]) -> None:
    turns = dispatcher("fcfs", longest_wait_s=0.05, **limits)
    first, second = join(turns), join(turns)
    first.turn()
    for _ in range(3):
        assert 0 < second.turn() <= 64 * 1024
        second.gave_up(1)
    first.gave_up(1)
    assert turns.snapshot()[1].moved == 3


def test_turns_of_another_process_are_asked_for_and_handed_out(threads: ThreadPoolExecutor) -> None:
    told: SimpleQueue[str] = SimpleQueue()
    schedule = Remote(Schedule(POLICIES["rr"], slots=1), lambda what, **message: told.put(what))
    turns = Dispatcher(schedule, longest_wait_s=0.05)
    carrier = join(turns)
    turn = threads.submit(carrier.turn)
    try:
        assert [told.get(timeout=LONG_S) for _ in range(4)] == ["joins", "ready", *["hurries"] * 2]
        schedule.arrived(0, 7)
        turns.hand_out()
        assert turn.result(LONG_S) == 7
    finally:
        turns.stop()
