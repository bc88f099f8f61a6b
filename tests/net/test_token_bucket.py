"""Pacing: the rate is kept, in a time that the tests make themselves."""

import threading
from time import sleep as give_way

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftpkit.net.token_bucket import TokenBucket


class Time:
    """A clock that stands still unless somebody sleeps or ``passes`` time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.now += seconds


def paced(bytes_per_s: float) -> tuple[TokenBucket, Time]:
    time = Time()
    return TokenBucket(bytes_per_s, clock=time.clock, sleep=time.sleep), time


@pytest.mark.parametrize("rate", [0, -1, -0.5])
def test_a_rate_is_more_than_nothing(rate: float) -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        TokenBucket(rate)


rates = st.floats(1e3, 1e10)
steps = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 3)), min_size=1, max_size=60)


@given(rates, steps)
def test_no_second_or_longer_carries_more_than_the_rate(
    rate: float, row: list[tuple[float, float]]
) -> None:
    pace, time = paced(rate)
    moved: list[tuple[float, float, int]] = []
    for share, idle in row:
        time.now += idle if idle > 1 else 0
        count = max(1, int(pace.acquire() * share))
        before = time.now
        pace.release(count)
        moved.append((before, time.now, count))
    # A burst after idle time, a pause too short to make, and one piece.
    slack = rate * (0.03 + 0.002) + pace.acquire()
    for i, (start, _, _) in enumerate(moved):
        carried = 0
        for moment, _, count in moved[i:]:
            carried += count
            assert carried <= rate * (moment - start) * (1 + 1e-9) + slack + 1


@given(rates, st.integers(1, 200))
def test_a_steady_flow_has_the_whole_rate(rate: float, pieces: int) -> None:
    pace, time = paced(rate)
    start = time.now
    for _ in range(pieces):
        pace.release(pace.acquire())
    ideal = pieces * pace.acquire() / rate
    assert ideal - 0.003 <= time.now - start <= ideal * (1 + 1e-6) + 1e-6


class Count(int):
    """Bytes whose time is reckoned so slowly that other threads come in between."""

    def __truediv__(self, rate: float) -> float:
        give_way(0)
        return int(self) / rate


def test_threads_keep_to_the_rate_together() -> None:
    pauses = list[float]()
    pace = TokenBucket(1000.0, clock=lambda: 0.0, sleep=pauses.append)

    def move() -> None:
        for _ in range(200):
            pace.release(Count(100))

    threads = [threading.Thread(target=move) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(pauses) == pytest.approx([0.1 * (number + 1) for number in range(800)])


def test_time_that_was_not_used_is_not_saved_up() -> None:
    pace, time = paced(1_000_000)
    time.now += 3600
    pace.release(1_000_000)
    assert sum(time.slept) == pytest.approx(0.97)


def test_a_slow_sender_never_sleeps() -> None:
    pace, time = paced(1_000_000)
    for _ in range(100):
        time.now += 0.1
        pace.release(30_000)
    assert time.slept == []


def test_pauses_too_short_for_a_sleep_add_up_to_one() -> None:
    pace, time = paced(1_000_000)
    for _ in range(10):
        pace.release(1_000)
    assert time.slept
    assert all(pause >= 0.002 for pause in time.slept)
    assert sum(time.slept) == pytest.approx(0.01, abs=0.002)


@given(st.floats(0.001, 1e15))
def test_a_piece_is_of_a_sensible_size(rate: float) -> None:
    assert 1024 <= paced(rate)[0].acquire() <= 1024 * 1024
