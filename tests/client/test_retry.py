"""Which errors are retried, and after what delays."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftpkit.client.retry import Backoff, is_retryable
from ftpkit.errors import (
    CannotConnectError,
    Code,
    ConnectionLostError,
    CorruptDataError,
    FtpkitError,
    LocalFileError,
    RefusedError,
    SourceChangedError,
    StallTimeoutError,
    TruncatedError,
    UntrustedError,
)


class Clock:
    """A clock that only ``sleep`` advances."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def backoff(clock: Clock, retry_for_s: float, chance: float = 1.0) -> Backoff:
    return Backoff(retry_for_s, clock=clock.time, sleep=clock.sleep, chance=lambda: chance)


def waits(clock: Clock, tries: Backoff, error: FtpkitError) -> int:
    """Fail until it gives up; return the number of retries."""
    retries: list[float] = []
    with contextlib.suppress(type(error)):
        while True:
            tries.wait(error, lambda error, delay: retries.append(delay))
    return len(retries)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionLostError("lost"),
        StallTimeoutError("stalled"),
        TruncatedError(1, 2),
        CannotConnectError("refused"),
        RefusedError(Code.TOO_MANY_CONNECTIONS, "full"),
        RefusedError(Code.SHUTTING_DOWN, "stopping"),
        RefusedError(Code.BUSY, "taken over"),
        RefusedError(Code.TIMEOUT, "too slow"),
    ],
)
def test_retryable_errors(error: FtpkitError) -> None:
    assert is_retryable(error)


@pytest.mark.parametrize(
    "error",
    [
        CannotConnectError("no such host", permanent=True),
        UntrustedError("another key"),
        CorruptDataError("damaged"),
        LocalFileError("unreadable"),
        SourceChangedError("changed"),
        *(
            RefusedError(code, "no")
            for code in (
                Code.AUTH_FAILED,
                Code.AUTH_REQUIRED,
                Code.FORBIDDEN,
                Code.TLS_REQUIRED,
                Code.NO_SPACE,
                Code.BAD_NAME,
                Code.EXISTS,
                Code.NOT_FOUND,
                Code.INTERNAL,
            )
        ),
    ],
)
def test_other_errors_are_raised_at_once(error: FtpkitError) -> None:
    clock = Clock()
    assert waits(clock, backoff(clock, 600), error) == 0
    assert clock.slept == []


def test_delays_double_up_to_a_maximum_and_end_with_retry_for() -> None:
    clock = Clock()
    waits(clock, backoff(clock, 60), ConnectionLostError("lost"))
    assert clock.slept == [0.5, 1, 2, 4, 8, 15, 15, 14.5]
    assert clock.now == 160


def test_without_retry_for_there_is_no_retry() -> None:
    clock = Clock()
    assert waits(clock, backoff(clock, 0), ConnectionLostError("lost")) == 0


def test_progress_restarts_the_time() -> None:
    clock = Clock()
    tries = backoff(clock, 3)
    waits(clock, tries, ConnectionLostError("lost"))
    tries.progress(10)
    clock.slept.clear()
    waits(clock, tries, ConnectionLostError("lost"))
    assert sum(clock.slept) == pytest.approx(3)


def test_repeating_the_same_bytes_is_no_progress() -> None:
    clock = Clock()
    tries = backoff(clock, 3)
    tries.progress(10)
    waits(clock, tries, ConnectionLostError("lost"))
    tries.progress(10)
    assert waits(clock, tries, ConnectionLostError("lost")) == 0


@given(st.floats(0, 1, exclude_max=True), st.floats(0.1, 1000))
def test_jitter_shortens_a_delay_by_half_at_most(chance: float, retry_for_s: float) -> None:
    clock = Clock()
    waits(clock, backoff(clock, retry_for_s, chance), ConnectionLostError("lost"))
    assert sum(clock.slept) == pytest.approx(retry_for_s)
    assert all(delay <= 15 for delay in clock.slept)
    assert clock.slept[0] >= min(0.25, retry_for_s) - 1e-9


def test_on_retry_is_called_with_the_error_and_the_delay() -> None:
    calls: list[tuple[FtpkitError, float]] = []
    clock, error = Clock(), ConnectionLostError("lost")
    backoff(clock, 60).wait(error, lambda error, delay: calls.append((error, delay)))
    assert calls == [(error, 0.5)]
