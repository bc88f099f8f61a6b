"""Whether to try again after a failure, and how long to wait before."""

import random
import time
from collections.abc import Callable
from typing import Final

from ftpkit.errors import CannotConnectError, Code, ConnectionLostError, FtpkitError, RefusedError

_FIRST_S: Final = 0.5
_LONGEST_S: Final = 15.0

# Refusals that say "not now"; any other one would be repeated for ever.
_NOT_NOW: Final = (Code.TOO_MANY_CONNECTIONS, Code.SHUTTING_DOWN, Code.TIMEOUT, Code.BUSY)

OnRetry = Callable[[FtpkitError, float], None]
"""Called with what failed, and how many seconds until the next try."""


def is_retryable(error: FtpkitError) -> bool:
    """Whether the same request could succeed later, without anybody changing it."""
    if isinstance(error, CannotConnectError):
        return not error.permanent
    if isinstance(error, RefusedError):
        return error.code in _NOT_NOW
    return isinstance(error, ConnectionLostError)


class Backoff:
    """Waits longer after each failure in a row, up to 15 s, and gives up after ``retry_for_s``.

    Time counts from the last progress. Half of each wait is random, so that
    many clients of one server do not come back all at once.
    """

    def __init__(
        self,
        retry_for_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._retry_for_s = retry_for_s
        self._clock, self._sleep, self._chance = clock, sleep, chance
        self._since: float | None = None
        self._wait_s = _FIRST_S
        self._furthest = -1

    def progress(self, moved: int) -> None:
        """Note how many bytes have been moved; only what was never reached before counts."""
        if moved > self._furthest:
            self._furthest = moved
            self._since, self._wait_s = None, _FIRST_S

    def wait(self, error: FtpkitError, on_retry: OnRetry) -> None:
        """Sleep until the next try, or raise ``error`` if there is to be none."""
        now = self._clock()
        if self._since is None:
            self._since = now
        left = self._since + self._retry_for_s - now
        if not is_retryable(error) or left <= 0:
            raise error
        delay = min(self._wait_s * (0.5 + 0.5 * self._chance()), left)
        self._wait_s = min(self._wait_s * 2, _LONGEST_S)
        on_retry(error, delay)
        self._sleep(delay)
