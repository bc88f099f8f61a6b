"""Which errors are retried, and how long to wait before each retry."""

import random
import time
from collections.abc import Callable
from typing import Final

from ftpkit.errors import CannotConnectError, Code, ConnectionLostError, FtpkitError, RefusedError

_FIRST_S: Final = 0.5
_MAX_S: Final = 15.0

# Refusals that can end by themselves; any other would be repeated at every retry.
_TEMPORARY: Final = (Code.TOO_MANY_CONNECTIONS, Code.SHUTTING_DOWN, Code.TIMEOUT, Code.BUSY)

OnRetry = Callable[[FtpkitError, float], None]
"""Called with the error, and the seconds until the next try."""


def is_retryable(error: FtpkitError) -> bool:
    """Whether the same request may succeed later without a change to it."""
    if isinstance(error, CannotConnectError):
        return not error.permanent
    if isinstance(error, RefusedError):
        return error.code in _TEMPORARY
    return isinstance(error, ConnectionLostError)


class Backoff:
    """Exponential backoff from 0.5 s to 15 s; it gives up after ``retry_for_s`` without progress.

    Up to half of each wait is random, so that the clients of one server do not all reconnect at
    the same time.
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
        """Note that ``moved`` bytes are done in all; only more than ever before is progress."""
        if moved > self._furthest:
            self._furthest = moved
            self._since, self._wait_s = None, _FIRST_S

    def wait(self, error: FtpkitError, on_retry: OnRetry) -> None:
        """Sleep until the next try, or raise ``error`` if there is none."""
        now = self._clock()
        if self._since is None:
            self._since = now
        left = self._since + self._retry_for_s - now
        if not is_retryable(error) or left <= 0:
            raise error
        delay = min(self._wait_s * (0.5 + 0.5 * self._chance()), left)
        self._wait_s = min(self._wait_s * 2, _MAX_S)
        on_retry(error, delay)
        self._sleep(delay)
