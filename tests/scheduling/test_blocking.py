"""BlockingScheduler with real threads: granting, waking, closing, stopping, changed limits."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import pytest

from ftpkit.errors import Code, ConnectionLostError, RefusedError
from ftpkit.scheduling.blocking import BlockingScheduler, TurnHandle
from ftpkit.scheduling.flow import Account, FlowState, Transfer
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
def make_scheduler(threads: ThreadPoolExecutor) -> Iterator[Make]:
    """Make schedulers, and stop them when the test is over."""
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
    scheduler: BlockingScheduler, account: Account | None = None, total: int | None = None
) -> TurnHandle:
    return scheduler.add_flow(Transfer(account or Account("ann"), "a", UP, total, 0.0))


def waiting(scheduler: BlockingScheduler, count: int) -> None:
    """Return once ``count`` transfers wait for a quantum."""
    done = threading.Event()
    while sum(each.state is FlowState.READY for each in scheduler.snapshot()) != count:
        assert not done.wait(0.001)


def refusal(future: "Future[int]") -> str:
    with pytest.raises(RefusedError) as caught:
        future.result(LONG_S)
    return caught.value.code


def test_a_quantum_is_granted_at_once_if_nobody_else_waits(make_scheduler: Make) -> None:
    scheduler = make_scheduler(slots=1)
    flow = join(scheduler, total=1000)
    assert flow.acquire() == 1000
    flow.release(600)
    assert flow.acquire() == 400
    flow.release(400)
    flow.close()
    assert scheduler.snapshot() == []


def test_a_release_wakes_the_next(make_scheduler: Make, threads: ThreadPoolExecutor) -> None:
    scheduler = make_scheduler("fcfs", slots=1)
    flows = [join(scheduler) for _ in range(3)]
    assert flows[0].acquire() == 4 * MIB
    second = threads.submit(flows[1].acquire)
    third = threads.submit(flows[2].acquire)
    waiting(scheduler, 2)
    flows[0].release(4 * MIB)
    assert second.result(LONG_S) == 4 * MIB
    assert not third.done()
    flows[1].close()
    assert third.result(LONG_S) == 4 * MIB


def test_a_thread_that_waits_for_a_rate_is_woken_when_it_is_due(
    make_scheduler: Make, threads: ThreadPoolExecutor
) -> None:
    scheduler = make_scheduler(bytes_per_s={UP: 2e6})
    flows = [join(scheduler) for _ in range(4)]

    def move(flow: TurnHandle) -> int:
        moved = 0
        for _ in range(5):
            size = flow.acquire()
            flow.release(size)
            moved += size
        return moved

    moved = [future.result(LONG_S) for future in [threads.submit(move, flow) for flow in flows]]
    assert moved == [5 * 65536] * 4


def test_close_ends_a_wait(make_scheduler: Make, threads: ThreadPoolExecutor) -> None:
    scheduler = make_scheduler(slots=1)
    first, second, third = (join(scheduler) for _ in range(3))
    first.acquire()
    closed = threads.submit(second.acquire)
    waiting(scheduler, 1)
    second.close()
    with pytest.raises(ConnectionLostError):
        closed.result(LONG_S)
    with pytest.raises(ConnectionLostError):
        second.acquire()
    first.release(0)
    assert third.acquire() == 4 * MIB


def test_another_thread_watches_the_clock_when_the_first_is_closed(
    make_scheduler: Make, threads: ThreadPoolExecutor
) -> None:
    scheduler = make_scheduler(bytes_per_s={UP: 1e6})
    spender, timer, other = (join(scheduler) for _ in range(3))
    spender.release(300_000)
    closed = threads.submit(timer.acquire)
    waiting(scheduler, 1)
    future = threads.submit(other.acquire)
    waiting(scheduler, 2)
    timer.close()
    with pytest.raises(ConnectionLostError):
        closed.result(LONG_S)
    assert future.result(LONG_S) == 50_000


def test_stop_refuses_waiting_and_later_acquires(
    make_scheduler: Make, threads: ThreadPoolExecutor
) -> None:
    scheduler = make_scheduler(slots=1)
    flows = [join(scheduler) for _ in range(8)]
    flows[0].acquire()
    futures = [threads.submit(flow.acquire) for flow in flows[1:]]
    waiting(scheduler, 7)
    scheduler.stop()
    assert {refusal(future) for future in futures} == {Code.SHUTTING_DOWN}
    flows[0].release(1)
    with pytest.raises(RefusedError):
        flows[0].acquire()
    for flow in flows:
        flow.close()
    assert scheduler.snapshot() == []


@pytest.mark.parametrize(
    ("slots", "rates"), [(1, {}), (None, {UP: 0.001})], ids=["more slots", "another rate"]
)
def test_a_changed_limit_wakes_the_threads_that_it_allows(
    make_scheduler: Make, slots: int | None, rates: Rates, threads: ThreadPoolExecutor
) -> None:
    scheduler = make_scheduler(slots=slots, bytes_per_s=rates)
    first, second = join(scheduler), join(scheduler)
    first.acquire()
    future = threads.submit(second.acquire)
    waiting(scheduler, 1)
    scheduler.configure(POLICIES["sjf"], slots=2, bytes_per_s={UP: 1e9})
    assert future.result(LONG_S) == 2_000_000


def test_a_changed_limit_of_an_account_wakes_its_transfers(
    make_scheduler: Make, threads: ThreadPoolExecutor
) -> None:
    scheduler, account = make_scheduler(), Account("slow", bytes_per_s={UP: 0.001})
    flow, other = join(scheduler, account), join(scheduler)
    flow.release(1000)
    future = threads.submit(flow.acquire)
    waiting(scheduler, 1)
    assert other.acquire() == 4 * MIB
    assert not future.done()
    scheduler.set_rates(account, {})
    assert future.result(LONG_S) == 4 * MIB


def test_a_new_limit_applies_to_flows_that_acquired_no_quantum_before(make_scheduler: Make) -> None:
    scheduler = make_scheduler()
    flow = join(scheduler)
    assert not scheduler.has_limits
    flow.release(5000)
    scheduler.configure(POLICIES["rr"], slots=1, bytes_per_s={})
    assert scheduler.has_limits
    assert flow.acquire() == 4 * MIB
    assert scheduler.snapshot()[0].transfer.moved == 5000


@pytest.mark.parametrize("policy", POLICIES)
def test_no_wake_up_is_lost(make_scheduler: Make, policy: str, threads: ThreadPoolExecutor) -> None:
    """Eight threads, two slots, 20,000 quanta for each policy; a lost wake-up would hang."""
    slots, running, most = 2, 0, 0
    scheduler, lock = make_scheduler(policy, slots=slots), threading.Lock()

    def move(account: Account) -> int:
        nonlocal running, most
        flow, moved = scheduler.add_flow(Transfer(account, "a", UP, None, 0.0)), 0
        for _ in range(2500):
            size = flow.acquire()
            with lock:
                running += 1
                most = max(most, running)
            moved += size
            with lock:
                running -= 1
            flow.release(size)
        flow.close()
        return moved

    accounts = [Account("a"), Account("b", weight=2)]
    futures = [threads.submit(move, accounts[i % 2]) for i in range(8)]
    assert [future.result(LONG_S * 4) for future in futures] == [2500 * 4 * MIB] * 8
    assert most <= slots
    assert scheduler.snapshot() == []


def test_no_wake_up_is_lost_at_a_rate(make_scheduler: Make, threads: ThreadPoolExecutor) -> None:
    """Many short quanta, of an account that is over its limit now and then, and of others."""
    scheduler = make_scheduler("fair", slots=3, bytes_per_s={UP: 5e9})
    accounts = [Account("slow", bytes_per_s={UP: 5e8}), Account("quick")]

    def move(account: Account) -> None:
        for _ in range(40):
            flow = scheduler.add_flow(Transfer(account, "a", UP, 5 * 10**6, 0.0))
            for _ in range(5):
                flow.release(flow.acquire() // 4)
            flow.close()

    futures = [threads.submit(move, accounts[i % 2]) for i in range(8)]
    for future in futures:
        future.result(LONG_S)
    assert scheduler.snapshot() == []


@pytest.mark.parametrize(
    "limits",
    [
        {"slots": 1},
        {"bytes_per_s": {UP: 1.0}},
        {"slots": 1, "bytes_per_s": {UP: 1.0}},
    ],
)
def test_a_long_wait_ends_with_a_small_quantum(
    make_scheduler: Make, limits: dict[str, Any]
) -> None:
    scheduler = make_scheduler("fcfs", longest_wait_s=0.05, **limits)
    first, second = join(scheduler), join(scheduler)
    first.acquire()
    for _ in range(3):
        assert 0 < second.acquire() <= 64 * 1024
        second.release(1)
    first.release(1)
    assert scheduler.snapshot()[1].transfer.moved == 3


def test_quanta_of_a_remote_scheduler_are_requested_and_granted(
    threads: ThreadPoolExecutor,
) -> None:
    sent: SimpleQueue[str] = SimpleQueue()
    schedule = RemoteScheduler(
        Scheduler(POLICIES["rr"], slots=1), lambda call, **message: sent.put(call)
    )
    scheduler = BlockingScheduler(schedule, longest_wait_s=0.05)
    handle = join(scheduler)
    quantum = threads.submit(handle.acquire)
    try:
        assert [sent.get(timeout=LONG_S) for _ in range(4)] == [
            "add_flow",
            "ready",
            *["force_grant"] * 2,
        ]
        schedule.granted(0, 7)
        scheduler.grant_due()
        assert quantum.result(LONG_S) == 7
    finally:
        scheduler.stop()
