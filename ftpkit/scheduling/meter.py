"""How fast bytes have moved of late."""

import math
from typing import Final

# What is older than this counts for about a third, and for ever less.
_RECENT_S: Final = 1.0
# Pieces are gathered for so long: most of them then cost an addition and no more.
_STEP_S: Final = 0.05


class Meter:
    """Averages a flow over about the last second, told of every piece that has moved.

    The average is exponentially weighted, and free of the zero that it starts from. A piece is
    taken to have moved evenly since the one before it, so that few large ones make no peaks; a
    silence counts as soon as it is longer than the one before.
    """

    __slots__ = ("_at", "_gap_s", "_held", "_rate", "_weight")

    def __init__(self, now: float) -> None:
        self._at = now
        self._gap_s = 0.0
        self._held = 0
        self._rate = self._weight = 0.0

    def moved(self, count: int, now: float) -> None:
        """Note that ``count`` bytes have moved since the last call."""
        self._held += count
        gap_s = now - self._at
        if gap_s >= _STEP_S:
            self._rate, self._weight = self._after(gap_s, self._held)
            self._at, self._gap_s, self._held = now, gap_s, 0

    def bytes_per_s(self, now: float) -> float:
        """Return how many bytes a second have moved of late."""
        elapsed_s = now - self._at
        rate, weight = self._rate, self._weight
        if self._held and (elapsed_s >= _STEP_S or not weight):
            rate, weight = self._after(max(elapsed_s, _STEP_S), self._held)
        elif elapsed_s > self._gap_s:
            rate, weight = self._after(elapsed_s - self._gap_s, 0)
        return rate / weight if weight else 0.0

    def _after(self, seconds: float, count: int) -> tuple[float, float]:
        """Return the sums of rates and of weights when ``count`` more bytes took ``seconds``."""
        keep = math.exp(-seconds / _RECENT_S)
        return keep * self._rate + (1 - keep) * count / seconds, keep * self._weight + 1 - keep
