"""The dispatcher with real threads: turns, waking, leaving, stopping, changing."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import pytest

from ftpkit.errors import Code, ConnectionLostError, RefusedError
from ftpkit.scheduling.blocking import BlockingScheduler, TurnHandle
from ftpkit.scheduling.flow import Account, State, Transfer
from ftpkit.scheduling.policies import POLICIES
from ftpkit.scheduling.rate_limit import Direction, Rates
from ftpkit.scheduling.remote import RemoteScheduler
from ftpkit.scheduling.scheduler import Scheduler

UP = Direction.UP
MIB = 1024 * 1024
LONG_S = 30.0
Make = Callable[..., BlockingScheduler]


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=8) as threads:
        yield threads


@pytest.fixture
def dispatcher(threads: ThreadPoolExecutor) -> Iterator[Make]:
    """Make dispatchers, and let nobody wait there when the test is over."""
    made: list[BlockingScheduler] = []

    def make(
        policy: str = "rr",
        *,
        slots: int | None = None,
        bytes_per_s: Rates | None = None,
        longest_wait_s: float = LONG_S,
    ) -> BlockingScheduler:
        schedule = Scheduler(POLICIES[policy], slots=slots, bytes_per_s=bytes_per_s)
        made.append(BlockingScheduler(schedule, longest_wait_s=longest_wait_s))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def join(
    turns: BlockingScheduler, account: Account | None = None, total: int | None = None
) -> TurnHandle:
    return turns.add_flow(Transfer(account or Account("ann"), "a", UP, total, 0.0))


def waiting(turns: BlockingScheduler, count: int) -> None:
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
    flow = join(turns, total=1000)
    assert flow.acquire() == 1000
    flow.release(600)
    assert flow.acquire() == 400
    flow.release(400)
    flow.close()
    assert turns.snapshot() == []


def test_the_next_is_woken_when_a_turn_ends(dispatcher: Make, threads: ThreadPoolExecutor) -> None:
    turns = dispatcher("fcfs", slots=1)
    flows = [join(turns) for _ in range(3)]
    assert flows[0].acquire() == 4 * MIB
    second = threads.submit(flows[1].acquire)
    third = threads.submit(flows[2].acquire)
    waiting(turns, 2)
    flows[0].release(4 * MIB)
    assert second.result(LONG_S) == 4 * MIB
    assert not third.done()
    flows[1].close()
    assert third.result(LONG_S) == 4 * MIB


def test_who_waits_for_a_rate_goes_on_when_it_is_due(
    dispatcher: Make, threads: ThreadPoolExecutor
) -> None:
    turns = dispatcher(bytes_per_s={UP: 2e6})
    flows = [join(turns) for _ in range(4)]

    def carry(flow: TurnHandle) -> int:
        moved = 0
        for _ in range(5):
            size = flow.acquire()
            flow.release(size)
            moved += size
        return moved

    moved = [future.result(LONG_S) for future in [threads.submit(carry, flow) for flow in flows]]
    assert moved == [5 * 65536] * 4


def test_a_cut_connection_waits_no_longer(dispatcher: Make, threads: ThreadPoolExecutor) -> None:
    turns = dispatcher(slots=1)
    first, second, third = (join(turns) for _ in range(3))
    first.acquire()
    cut = threads.submit(second.acquire)
    waiting(turns, 1)
    second.close()
    with pytest.raises(ConnectionLostError):
        cut.result(LONG_S)
    with pytest.raises(ConnectionLostError):
        second.acquire()
    first.release(0)
    assert third.acquire() == 4 * MIB


def test_another_watches_the_clock_when_the_watch_is_cut(
    dispatcher: Make, threads: ThreadPoolExecutor
) -> None:
    turns = dispatcher(bytes_per_s={UP: 1e6})
    spender, watch, other = (join(turns) for _ in range(3))
    spender.release(300_000)
    cut = threads.submit(watch.acquire)
    waiting(turns, 1)
    future = threads.submit(other.acquire)
    waiting(turns, 2)
    watch.close()
    with pytest.raises(ConnectionLostError):
        cut.result(LONG_S)
    assert future.result(LONG_S) == 50_000


def test_stopping_refuses_all_who_wait_and_who_come_later(
    dispatcher: Make, threads: ThreadPoolExecutor
) -> None:
    turns = dispatcher(slots=1)
    flows = [join(turns) for _ in range(8)]
    flows[0].acquire()
    futures = [threads.submit(flow.acquire) for flow in flows[1:]]
    waiting(turns, 7)
    turns.stop()
    assert {refusal(future) for future in futures} == {Code.SHUTTING_DOWN}
    flows[0].release(1)
    with pytest.raises(RefusedError):
        flows[0].acquire()
    for flow in flows:
        flow.close()
    assert turns.snapshot() == []


@pytest.mark.parametrize(
    ("slots", "rates"), [(1, {}), (None, {UP: 0.001})], ids=["more slots", "another rate"]
)
def test_other_limits_wake_who_may_go_on_now(
    dispatcher: Make, slots: int | None, rates: Rates, threads: ThreadPoolExecutor
) -> None:
    turns = dispatcher(slots=slots, bytes_per_s=rates)
    first, second = join(turns), join(turns)
    first.acquire()
    future = threads.submit(second.acquire)
    waiting(turns, 1)
    turns.configure(POLICIES["sjf"], slots=2, bytes_per_s={UP: 1e9})
    assert future.result(LONG_S) == 2_000_000


def test_another_limit_of_an_account_wakes_its_transfers(
    dispatcher: Make, threads: ThreadPoolExecutor
) -> None:
    turns, account = dispatcher(), Account("slow", bytes_per_s={UP: 0.001})
    flow, other = join(turns, account), join(turns)
    flow.release(1000)
    future = threads.submit(flow.acquire)
    waiting(turns, 1)
    assert other.acquire() == 4 * MIB
    assert not future.done()
    turns.set_rates(account, {})
    assert future.result(LONG_S) == 4 * MIB


def test_a_limit_on_a_running_server_holds_for_who_took_no_turns(dispatcher: Make) -> None:
    turns = dispatcher()
    flow = join(turns)
    assert not turns.has_limits
    flow.release(5000)
    turns.configure(POLICIES["rr"], slots=1, bytes_per_s={})
    assert turns.has_limits
    assert flow.acquire() == 4 * MIB
    assert turns.snapshot()[0].transfer.moved == 5000


@pytest.mark.parametrize("policy", POLICIES)
def test_no_wake_up_is_lost(dispatcher: Make, policy: str, threads: ThreadPoolExecutor) -> None:
    """Eight threads, two slots, a hundred thousand turns in all tests; a lost one would hang."""
    slots, running, most = 2, 0, 0
    turns, guard = dispatcher(policy, slots=slots), threading.Lock()

    def carry(account: Account) -> int:
        nonlocal running, most
        flow, moved = turns.add_flow(Transfer(account, "a", UP, None, 0.0)), 0
        for _ in range(2500):
            size = flow.acquire()
            with guard:
                running += 1
                most = max(most, running)
            moved += size
            with guard:
                running -= 1
            flow.release(size)
        flow.close()
        return moved

    accounts = [Account("a"), Account("b", weight=2)]
    futures = [threads.submit(carry, accounts[i % 2]) for i in range(8)]
    assert [future.result(LONG_S * 4) for future in futures] == [2500 * 4 * MIB] * 8
    assert most <= slots
    assert turns.snapshot() == []


def test_no_wake_up_is_lost_at_a_rate(dispatcher: Make, threads: ThreadPoolExecutor) -> None:
    """Many short turns, of an account that is over its limit now and then, and of others."""
    turns = dispatcher("fair", slots=3, bytes_per_s={UP: 5e9})
    accounts = [Account("slow", bytes_per_s={UP: 5e8}), Account("quick")]

    def carry(account: Account) -> None:
        for _ in range(40):
            flow = turns.add_flow(Transfer(account, "a", UP, 5 * 10**6, 0.0))
            for _ in range(5):
                flow.release(flow.acquire() // 4)
            flow.close()

    futures = [threads.submit(carry, accounts[i % 2]) for i in range(8)]
    for future in futures:
        future.result(LONG_S)
    assert turns.snapshot() == []


@pytest.mark.parametrize(
    "limits",
    [
        {"slots": 1},
        {"bytes_per_s": {UP: 1.0}},
        {"slots": 1, "bytes_per_s": {UP: 1.0}},
    ],
)
def test_nobody_waits_in_the_dark(dispatcher: Make, limits: dict[str, Any]) -> None:
    turns = dispatcher("fcfs", longest_wait_s=0.05, **limits)
    first, second = join(turns), join(turns)
    first.acquire()
    for _ in range(3):
        assert 0 < second.acquire() <= 64 * 1024
        second.release(1)
    first.release(1)
    assert turns.snapshot()[1].transfer.moved == 3


def test_turns_of_another_process_are_asked_for_and_handed_out(threads: ThreadPoolExecutor) -> None:
    told: SimpleQueue[str] = SimpleQueue()
    schedule = RemoteScheduler(
        Scheduler(POLICIES["rr"], slots=1), lambda call, **message: told.put(call)
    )
    turns = BlockingScheduler(schedule, longest_wait_s=0.05)
    carrier = join(turns)
    turn = threads.submit(carrier.acquire)
    try:
        assert [told.get(timeout=LONG_S) for _ in range(4)] == [
            "add_flow",
            "ready",
            *["force_grant"] * 2,
        ]
        schedule.granted(0, 7)
        turns.grant_due()
        assert turn.result(LONG_S) == 7
    finally:
        turns.stop()
