"""When bytes may move, and how many: at a rate, or as somebody else decides."""

import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

# A pause shorter than this is kept as credit: sleeping has a granularity of its own.
_SHORTEST_S: Final = 0.002
_BURST_S: Final = 0.05
_PIECE_S: Final = 0.02


class Limiter(Protocol):
    """Says when bytes may move: each turn is waited for, used, and given up."""

    def acquire(self) -> int:
        """Wait for a turn; return how many bytes may move in it, at most."""

    def release(self, moved: int) -> None:
        """End the turn, in which so many bytes moved."""


class TokenBucket:
    """Keeps the bytes that pass to ``bytes_per_s`` bytes a second over any second or more.

    Several threads may share it: together they keep to the rate.
    """

    def __init__(
        self,
        bytes_per_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if bytes_per_s <= 0:
            raise ValueError("a rate is more than 0 bytes a second")
        self._bytes_per_s = bytes_per_s
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._due = clock()

    def acquire(self) -> int:
        """Return how many bytes to move, at most, so that the flow is even."""
        return max(1024, min(int(self._bytes_per_s * _PIECE_S), 1024 * 1024))

    def release(self, moved: int) -> None:
        """Note that so many bytes moved; sleep for as long as they were early."""
        with self._lock:
            now = self._clock()
            # Time that was not used is not saved up beyond a small burst.
            self._due = max(self._due, now - _BURST_S) + moved / self._bytes_per_s
            early = self._due - now
        if early >= _SHORTEST_S:
            self._sleep(early)
