"""Rate limits: when bytes may move again, and how many at once."""

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

_QUANTUM_S: Final = 0.002
_MIN_QUANTUM: Final = 64 * 1024
_MAX_QUANTUM: Final = 4 * 1024 * 1024
# A rate is met within 2 % over 5 s, so a quantum and a burst together are less than 0.1 s of it.
_LONGEST_QUANTUM_S: Final = 0.05
# Credit that makes up for a thread that wakes late.
_BURST_S: Final = 0.03


class Direction(StrEnum):
    """Direction of a transfer, as the client sees it."""

    UP = "up"
    DOWN = "down"


# Bytes per second; a missing direction is not limited.
Rates = Mapping[Direction, float]


class RateLimiter:
    """A token bucket without a clock of its own: every method takes the time in seconds.

    Bytes may move from ``due_s`` on, at most ``quantum`` of them at once, and are then charged.
    ``bytes_per_s`` None is no limit; ValueError for a rate of 0 or less.
    """

    __slots__ = ("bytes_per_s", "due_s", "quantum")

    def __init__(self, bytes_per_s: float | None = None) -> None:
        self.bytes_per_s: float | None = None
        self.due_s = -math.inf
        self.quantum = 0
        self.set_rate(bytes_per_s, 0.0)

    def charge(self, count: int, now: float) -> None:
        """Charge ``count`` bytes; a negative count is a refund."""
        if self.bytes_per_s is not None:
            earliest_s = now - _BURST_S
            due_s = self.due_s if self.due_s > earliest_s else earliest_s
            self.due_s = due_s + count / self.bytes_per_s

    def set_rate(self, bytes_per_s: float | None, now: float) -> None:
        """Change the rate; bytes that were charged ahead stay charged."""
        if bytes_per_s is not None and not bytes_per_s > 0:
            raise ValueError("a rate must be greater than 0 bytes per second")
        if bytes_per_s is None or self.bytes_per_s is None:
            self.due_s = -math.inf
        elif self.due_s > now:
            self.due_s = now + (self.due_s - now) * self.bytes_per_s / bytes_per_s
        self.bytes_per_s = bytes_per_s
        self.quantum = _quantum(bytes_per_s)


def _quantum(bytes_per_s: float | None) -> int:
    """Return 2 ms of the rate within 64 KiB … 4 MiB, but never more than 50 ms of it."""
    if bytes_per_s is None:
        return _MAX_QUANTUM
    least = min(_MIN_QUANTUM, bytes_per_s * _LONGEST_QUANTUM_S)
    return max(1, int(max(least, min(bytes_per_s * _QUANTUM_S, _MAX_QUANTUM))))
