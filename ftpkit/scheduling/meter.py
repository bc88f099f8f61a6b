"""The current rate of a transfer."""

import math
from typing import Final

# Time constant of the average: older bytes count for about a third, and ever less.
_RECENT_S: Final = 1.0
# Bytes are summed up for so long before the average is updated: most calls cost one addition.
_STEP_S: Final = 0.05


class Meter:
    """Exponentially weighted average of bytes per second over about the last second.

    The bias towards the initial zero is corrected. Bytes are taken to have moved evenly since
    the call before, so that rare large ones make no peaks; a pause lowers the average once it
    is longer than the pause before it.
    """

    __slots__ = ("_at", "_gap_s", "_pending", "_rate", "_weight")

    def __init__(self, now: float) -> None:
        self._at = now
        self._gap_s = 0.0
        self._pending = 0
        self._rate = self._weight = 0.0

    def moved(self, count: int, now: float) -> None:
        """Note that ``count`` bytes have moved since the last call."""
        self._pending += count
        gap_s = now - self._at
        if gap_s >= _STEP_S:
            self._rate, self._weight = self._after(gap_s, self._pending)
            self._at, self._gap_s, self._pending = now, gap_s, 0

    def bytes_per_s(self, now: float) -> float:
        elapsed_s = now - self._at
        rate, weight = self._rate, self._weight
        if self._pending and (elapsed_s >= _STEP_S or not weight):
            rate, weight = self._after(max(elapsed_s, _STEP_S), self._pending)
        elif elapsed_s > self._gap_s:
            rate, weight = self._after(elapsed_s - self._gap_s, 0)
        return rate / weight if weight else 0.0

    def _after(self, seconds: float, count: int) -> tuple[float, float]:
        """Return the sums of rates and of weights when ``count`` more bytes took ``seconds``."""
        keep = math.exp(-seconds / _RECENT_S)
        return keep * self._rate + (1 - keep) * count / seconds, keep * self._weight + 1 - keep
