"""Who may be connected: so many in all, and so many from one address."""

import threading
from collections import Counter
from collections.abc import Callable


class ConnectionLimiter:
    """Counts connections from their accept to their end."""

    def __init__(self, most: int, most_per_address: int) -> None:
        self._most, self._most_per_address = most, most_per_address
        self._changed = threading.Condition()
        self._from: Counter[str] = Counter()

    def acquire(self, host: str) -> bool:
        """Let a connection from ``host`` in, if there is a place for it."""
        with self._changed:
            if self._from.total() >= self._most or self._from[host] >= self._most_per_address:
                return False
            self._from[host] += 1
            return True

    def release(self, host: str) -> None:
        """Give the place of a connection free."""
        with self._changed:
            self._from[host] -= 1
            if not self._from[host]:
                del self._from[host]
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[int], bool], timeout_s: float | None = None) -> bool:
        """Wait until ``condition`` holds for the number of those who are connected.

        False says that the time has passed.
        """
        with self._changed:
            return self._changed.wait_for(lambda: condition(self._from.total()), timeout_s)

    def change(self, most: int, most_per_address: int) -> None:
        """Let other numbers hold; whoever is connected stays."""
        with self._changed:
            self._most, self._most_per_address = most, most_per_address
