"""Counts and limits connections: those of each client address, or of each user."""

import threading
from collections import Counter
from collections.abc import Callable


class ConnectionLimiter:
    """Counts connections by a key, from their start to their end."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._counts: Counter[str] = Counter()

    def acquire(
        self, key: str, max_connections: int | None = None, max_total: int | None = None
    ) -> bool:
        """Count one more connection of ``key``; False if it or all keys together reach a limit."""
        with self._changed:
            if max_total is not None and self._counts.total() >= max_total:
                return False
            if max_connections is not None and self._counts[key] >= max_connections:
                return False
            self._counts[key] += 1
            return True

    def release(self, key: str) -> None:
        with self._changed:
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[int], bool], timeout_s: float | None = None) -> bool:
        """Wait until ``condition`` holds for the number of connections; False after a timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self._counts.total()), timeout_s)
