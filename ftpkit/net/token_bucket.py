"""Waiting until bytes may move: by a rate, or as a scheduler grants."""

import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from ftpkit.scheduling.rate_limit import RateLimiter

# A pause shorter than this is left to add up: sleeping has a granularity of its own.
_SHORTEST_S: Final = 0.002
# Time at the rate that one quantum takes, for an even flow.
_SLEEP_QUANTUM_S: Final = 0.02


class Limiter(Protocol):
    """Limits how fast bytes move: each quantum is acquired, used and released."""

    def acquire(self) -> int:
        """Wait for a quantum; return how many bytes may move in it."""

    def release(self, moved: int) -> None:
        """End the quantum, in which ``moved`` bytes moved."""


class TokenBucket:
    """A ``Limiter`` that keeps to ``bytes_per_s``, for all threads that share it together.

    Raises ValueError for a rate of 0 or less.
    """

    def __init__(
        self,
        bytes_per_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bucket = RateLimiter(bytes_per_s)
        self._bucket.due_s = clock()  # empty at first
        self._quantum = max(1024, min(int(bytes_per_s * _SLEEP_QUANTUM_S), 1024 * 1024))
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()

    def acquire(self) -> int:
        """Return how many bytes may move at once; does not wait."""
        return self._quantum

    def release(self, moved: int) -> None:
        """Charge ``moved`` bytes, and sleep for as long as they were early."""
        with self._lock:
            now = self._clock()
            self._bucket.charge(moved, now)
            early_s = self._bucket.due_s - now
        if early_s >= _SHORTEST_S:
            self._sleep(early_s)
