"""RateLimiter: due times and quanta."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftpkit.scheduling.rate_limit import RateLimiter

KIB, MIB = 1024, 1024 * 1024


@pytest.mark.parametrize("rate", [0, -1, math.nan])
def test_a_rate_must_be_positive(rate: float) -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        RateLimiter(rate)


def test_without_a_rate_nothing_is_charged() -> None:
    limit = RateLimiter()
    limit.charge(10**12, 5.0)
    assert limit.due_s == -math.inf


def test_charged_bytes_move_the_due_time() -> None:
    limit = RateLimiter(1000)
    limit.charge(500, 100.0)
    limit.charge(2000, 100.0)
    assert limit.due_s == pytest.approx(100.0 - 0.03 + 2.5)


def test_a_negative_charge_is_a_refund() -> None:
    limit = RateLimiter(1000)
    limit.charge(500, 100.0)
    limit.charge(-400, 100.2)
    limit.charge(1000, 100.2)
    assert limit.due_s == pytest.approx(100.2 - 0.03 + 1.0)


@given(st.floats(1e3, 1e10), st.lists(st.tuples(st.floats(0, 0.1), st.floats(0.01, 1))))
def test_moving_only_when_due_keeps_to_the_rate(
    rate: float, moves: list[tuple[float, float]]
) -> None:
    limit, now, moved = RateLimiter(rate), 1000.0, 0
    for idle_s, share in moves:
        now = max(now, limit.due_s) + idle_s
        count = int(limit.quantum * share)
        limit.charge(count, now)
        moved += count
        assert moved <= rate * (now - 1000.0 + 0.03) * (1 + 1e-9) + limit.quantum + 1


def test_a_changed_rate_keeps_the_charged_bytes() -> None:
    limit = RateLimiter(1000)
    limit.charge(1030, 10.0)
    limit.set_rate(10_000, 10.0)
    assert limit.due_s == pytest.approx(10.1)
    limit.set_rate(100, 10.0)
    assert limit.due_s == pytest.approx(20.0)


def test_a_changed_rate_keeps_the_credit() -> None:
    limit = RateLimiter(1000)
    limit.charge(1, 10.0)
    due_s = limit.due_s
    limit.set_rate(1, 10.0)
    assert limit.due_s == due_s


def test_a_new_or_removed_rate_starts_without_charges() -> None:
    limit = RateLimiter(1000)
    limit.charge(10**6, 10.0)
    limit.set_rate(None, 10.0)
    assert limit.due_s == -math.inf
    limit.charge(10**6, 10.0)
    limit.set_rate(1000, 10.0)
    assert limit.due_s == -math.inf


@pytest.mark.parametrize(
    ("rate", "quantum"),
    [
        (None, 4 * MIB),
        (1e12, 4 * MIB),
        (1e9, 2_000_000),
        (10e6, 64 * KIB),
        (1e6, 50_000),
        (1000, 50),
        (0.001, 1),
    ],
)
def test_a_quantum_is_two_milliseconds_within_bounds(rate: float | None, quantum: int) -> None:
    assert RateLimiter(rate).quantum == quantum
