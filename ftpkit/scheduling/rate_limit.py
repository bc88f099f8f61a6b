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

    __slots__ = ("bytes_per_s", "due_s", "quantum")

    def __init__(self, bytes_per_s: float | None = None) -> None:
        self.bytes_per_s: float | None = None
        self.due_s = -math.inf
        self.quantum = 0
        self.change(bytes_per_s, 0.0)

    def charge(self, count: int, now: float) -> None:
        """Take ``count`` bytes for moved; a negative count gives back."""
        if self.bytes_per_s is not None:
            saved_up = now - _BURST_S
            due_s = self.due_s if self.due_s > saved_up else saved_up
            self.due_s = due_s + count / self.bytes_per_s

    def change(self, bytes_per_s: float | None, now: float) -> None:
        """Go on at another rate; bytes that are owed stay owed."""
        if bytes_per_s is not None and not bytes_per_s > 0:
            raise ValueError("a rate is more than 0 bytes a second")
        if bytes_per_s is None or self.bytes_per_s is None:
            self.due_s = -math.inf
        elif self.due_s > now:
            self.due_s = now + (self.due_s - now) * self.bytes_per_s / bytes_per_s
        self.bytes_per_s = bytes_per_s
        self.quantum = _quantum(bytes_per_s)


def _quantum(bytes_per_s: float | None) -> int:
    """Return 2 ms of a rate, but 64 KiB … 4 MiB.

    Of a rate so low that 64 KiB are more than 50 ms it is 50 ms.
    """
    if bytes_per_s is None:
        return _MAX_QUANTUM
    least = min(_MIN_QUANTUM, bytes_per_s * _LONGEST_QUANTUM_S)
    return max(1, int(max(least, min(bytes_per_s * _QUANTUM_S, _MAX_QUANTUM))))
