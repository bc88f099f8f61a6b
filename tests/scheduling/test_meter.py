import math

import pytest

from ftpkit.scheduling.meter import Meter

MEGA = 1_000_000.0


def flow(meter: Meter, bytes_per_s: float, piece: int, *, start: float, end: float) -> float:
    """Move pieces evenly from ``start`` on; return the time of the last."""
    step = piece / bytes_per_s
    count = math.floor((end - start) / step)
    for number in range(1, count + 1):
        meter.moved(piece, start + number * step)
    return start + count * step


def test_the_rate_is_0_before_any_byte() -> None:
    meter = Meter(5.0)
    assert meter.bytes_per_s(5.0) == meter.bytes_per_s(7.0) == 0


@pytest.mark.parametrize("piece", [1_000, 65_536, 1_048_576])
@pytest.mark.parametrize("seconds", [1.2, 5.0, 60.0])
def test_an_even_flow_shows_its_rate_from_the_start(piece: int, seconds: float) -> None:
    meter = Meter(100.0)
    now = flow(meter, MEGA, piece, start=100.0, end=100.0 + seconds)
    assert meter.bytes_per_s(now) == pytest.approx(MEGA, rel=0.01)


@pytest.mark.parametrize("now", [0.0, 0.001, 0.05, 0.1])
def test_the_first_piece_makes_no_peak(now: float) -> None:
    meter = Meter(0.0)
    meter.moved(1000, now)
    assert 10_000 <= meter.bytes_per_s(now) <= 20_000


def test_pieces_at_one_instant_are_added() -> None:
    meter = Meter(0.0)
    for _ in range(10):
        meter.moved(100_000, 1.0)
    assert meter.bytes_per_s(1.0) == pytest.approx(MEGA, rel=1)


def test_an_old_rate_fades() -> None:
    meter = Meter(0.0)
    now = flow(meter, 10 * MEGA, 65_536, start=0.0, end=30.0)
    now = flow(meter, MEGA, 65_536, start=now, end=now + 1.0)
    assert MEGA < meter.bytes_per_s(now) < 5 * MEGA
    now = flow(meter, MEGA, 65_536, start=now, end=now + 5.0)
    assert meter.bytes_per_s(now) == pytest.approx(MEGA, rel=0.1)


def test_a_stalled_transfer_goes_down_to_0() -> None:
    meter = Meter(0.0)
    now = flow(meter, MEGA, 65_536, start=0.0, end=10.0)
    rates = [meter.bytes_per_s(now + seconds) for seconds in (0, 1, 2, 5, 30)]
    assert rates == sorted(rates, reverse=True)
    assert rates[1] < 0.5 * MEGA
    assert rates[2] < 0.2 * MEGA
    assert rates[4] < 1


def test_rare_large_pieces_make_no_peaks() -> None:
    meter = Meter(0.0)
    for number in range(1, 20):
        now = number * 3.0
        meter.moved(300_000, now)
        for seconds in (0.0, 1.0, 2.9):
            assert meter.bytes_per_s(now + seconds) == pytest.approx(100_000, rel=0.1)


def test_reading_the_rate_does_not_change_it() -> None:
    read, other = Meter(0.0), Meter(0.0)
    for number in range(1, 100):
        for meter in (read, other):
            meter.moved(number * 100, number * 0.013)
        read.bytes_per_s(number * 0.013 + 0.01)
    assert read.bytes_per_s(2.0) == other.bytes_per_s(2.0)
