"""TokenBucket keeps to its rate, in simulated time."""

import threading
from time import sleep as yield_thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftpkit.net.token_bucket import TokenBucket


class Time:
    """A clock that only sleeping advances."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.now += seconds


def bucket_and_time(bytes_per_s: float) -> tuple[TokenBucket, Time]:
    time = Time()
    return TokenBucket(bytes_per_s, clock=time.clock, sleep=time.sleep), time


@pytest.mark.parametrize("rate", [0, -1, -0.5])
def test_a_rate_must_be_positive(rate: float) -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        TokenBucket(rate)


rates = st.floats(1e3, 1e10)
steps = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 3)), min_size=1, max_size=60)


@given(rates, steps)
def test_no_period_carries_more_than_the_rate(
    rate: float, moves: list[tuple[float, float]]
) -> None:
    bucket, time = bucket_and_time(rate)
    moved: list[tuple[float, float, int]] = []
    for share, idle in moves:
        time.now += idle if idle > 1 else 0
        count = max(1, int(bucket.acquire() * share))
        before = time.now
        bucket.release(count)
        moved.append((before, time.now, count))
    # A burst after idle time, a pause too short for a sleep, and one quantum.
    slack = rate * (0.03 + 0.002) + bucket.acquire()
    for i, (start, _, _) in enumerate(moved):
        carried = 0
        for moment, _, count in moved[i:]:
            carried += count
            assert carried <= rate * (moment - start) * (1 + 1e-9) + slack + 1


@given(rates, st.integers(1, 200))
def test_a_steady_flow_has_the_whole_rate(rate: float, pieces: int) -> None:
    bucket, time = bucket_and_time(rate)
    start = time.now
    for _ in range(pieces):
        bucket.release(bucket.acquire())
    ideal = pieces * bucket.acquire() / rate
    assert ideal - 0.003 <= time.now - start <= ideal * (1 + 1e-6) + 1e-6


class Count(int):
    """A count whose division yields to other threads."""

    def __truediv__(self, rate: float) -> float:
        yield_thread(0)
        return int(self) / rate


def test_threads_keep_to_the_rate_together() -> None:
    pauses = list[float]()
    bucket = TokenBucket(1000.0, clock=lambda: 0.0, sleep=pauses.append)

    def move() -> None:
        for _ in range(200):
            bucket.release(Count(100))

    threads = [threading.Thread(target=move) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(pauses) == pytest.approx([0.1 * (number + 1) for number in range(800)])


def test_unused_time_is_not_saved_beyond_the_burst() -> None:
    bucket, time = bucket_and_time(1_000_000)
    time.now += 3600
    bucket.release(1_000_000)
    assert sum(time.slept) == pytest.approx(0.97)


def test_a_slow_sender_never_sleeps() -> None:
    bucket, time = bucket_and_time(1_000_000)
    for _ in range(100):
        time.now += 0.1
        bucket.release(30_000)
    assert time.slept == []


def test_pauses_too_short_for_a_sleep_add_up() -> None:
    bucket, time = bucket_and_time(1_000_000)
    for _ in range(10):
        bucket.release(1_000)
    assert time.slept
    assert all(pause >= 0.002 for pause in time.slept)
    assert sum(time.slept) == pytest.approx(0.01, abs=0.002)


@given(st.floats(0.001, 1e15))
def test_a_quantum_is_within_its_bounds(rate: float) -> None:
    assert 1024 <= bucket_and_time(rate)[0].acquire() <= 1024 * 1024
