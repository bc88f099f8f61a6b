"""How many bytes may pass in each direction, and in pieces of which size."""

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

_QUANTUM_S: Final = 0.002
_MIN_QUANTUM: Final = 64 * 1024
_MAX_QUANTUM: Final = 4 * 1024 * 1024
# A rate is met within 2 % over 5 s, so a quantum and a burst together are less than 0.1 s of it.
_LONGEST_QUANTUM_S: Final = 0.05
# Who is woken late finds so much saved up.
_BURST_S: Final = 0.03


class Direction(StrEnum):
    """The way of a transfer, as the client sees it."""

    UP = "up"
    DOWN = "down"


# Bytes a second; a direction that is missing has no limit.
Rates = Mapping[Direction, float]


class RateLimiter:
    """Bytes a second, kept by a clock that says when the debt for all that moved is paid.

    Whoever finds ``due_s`` in the past may go on, and is charged for all that it moves;
    ``quantum`` is how many bytes at most it should move at once.
    """

    __slots__ = ("due_s", "quantum", "rate_bps")

    def __init__(self, rate_bps: float | None = None) -> None:
        self.rate_bps: float | None = None
        self.due_s = -math.inf
        self.quantum = 0
        self.change(rate_bps, 0.0)

    def charge(self, count: int, now: float) -> None:
        """Take ``count`` bytes for moved; a negative count gives back."""
        if self.rate_bps is not None:
            saved_up = now - _BURST_S
            due_s = self.due_s if self.due_s > saved_up else saved_up
            self.due_s = due_s + count / self.rate_bps

    def change(self, rate_bps: float | None, now: float) -> None:
        """Go on at another rate; bytes that are owed stay owed."""
        if rate_bps is not None and not rate_bps > 0:
            raise ValueError("a rate is more than 0 bytes a second")
        if rate_bps is None or self.rate_bps is None:
            self.due_s = -math.inf
        elif self.due_s > now:
            self.due_s = now + (self.due_s - now) * self.rate_bps / rate_bps
        self.rate_bps = rate_bps
        self.quantum = _quantum(rate_bps)


def _quantum(rate_bps: float | None) -> int:
    """Return 2 ms of a rate, but 64 KiB … 4 MiB.

    Of a rate so low that 64 KiB are more than 50 ms it is 50 ms.
    """
    if rate_bps is None:
        return _MAX_QUANTUM
    least = min(_MIN_QUANTUM, rate_bps * _LONGEST_QUANTUM_S)
    return max(1, int(max(least, min(rate_bps * _QUANTUM_S, _MAX_QUANTUM))))
