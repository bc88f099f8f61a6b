"""Limits the number of connections: in total, and from one address."""

import threading
from collections import Counter
from collections.abc import Callable


class ConnectionLimiter:
    """Counts connections from their accept to their end."""

    def __init__(self, maximum: int, maximum_per_address: int) -> None:
        self._maximum, self._maximum_per_address = maximum, maximum_per_address
        self._changed = threading.Condition()
        self._from: Counter[str] = Counter()

    def acquire(self, host: str) -> bool:
        """Count a connection from ``host``; False if that would exceed a limit."""
        with self._changed:
            if self._from.total() >= self._maximum or self._from[host] >= self._maximum_per_address:
                return False
            self._from[host] += 1
            return True

    def release(self, host: str) -> None:
        """Stop counting a connection from ``host``."""
        with self._changed:
            self._from[host] -= 1
            if not self._from[host]:
                del self._from[host]
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[int], bool], timeout_s: float | None = None) -> bool:
        """Wait until ``condition`` holds for the number of connections; False after a timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self._from.total()), timeout_s)

    def change(self, maximum: int, maximum_per_address: int) -> None:
        """Set other limits; open connections stay open."""
        with self._changed:
            self._maximum, self._maximum_per_address = maximum, maximum_per_address
