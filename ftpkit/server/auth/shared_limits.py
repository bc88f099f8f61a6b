"""What is counted for a whole server, in whichever of its processes it happens."""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ftpkit.server.auth.quota import Count, QuotaLedger
from ftpkit.server.auth.throttle import LoginThrottle
from ftpkit.storage.quota import NO_RESERVATION, Reservation


class SharedLimits(Protocol):
    """Knows of a whole server who is connected, who guesses tokens, and what is stored where."""

    def enter(self, user: str, most: int | None) -> bool:
        """Let one more connection of ``user`` in; False says that it has ``most`` already."""

    def leave(self, user: str) -> None:
        """Note that a connection of ``user`` has ended."""

    def failed(self, host: str) -> float:
        """Note a bad token from ``host``; return the seconds that its refusal is to wait."""

    def reserve(self, name: str, count: int, under: str, quota: int | None) -> int:
        """Take room for ``count`` bytes under ``name``, and return the number of what was taken.

        Everything under ``under`` may come to ``quota`` bytes: RefusedError says that it
        would be more, or that this is not known yet. It may take seconds.
        """

    def commit(self, number: int) -> None:
        """Note that what was taken is on the disk."""

    def cancel(self, number: int) -> None:
        """Note that what was taken is not on the disk, and never will be."""

    def freed(self, name: str) -> None:
        """Note that something is gone, or smaller: ``name``, or what is in it, or it is in."""

    def moved(self, name: str, to: str) -> None:
        """Note that what stood under ``name`` stands under ``to``."""


class LocalLimits:
    """Counts in this process; ``count`` returns what is stored under a name."""

    def __init__(self, count: Count) -> None:
        self._lock = threading.Lock()
        self._users: Counter[str] = Counter()
        self._tries = LoginThrottle()
        self._ledgers = QuotaLedger(count)

    def enter(self, user: str, most: int | None) -> bool:
        """Let one more connection of ``user`` in, unless it has ``most``."""
        with self._lock:
            if most is not None and self._users[user] >= most:
                return False
            self._users[user] += 1
            return True

    def leave(self, user: str) -> None:
        """Note that a connection of ``user`` has ended."""
        with self._lock:
            self._users[user] -= 1
            if not self._users[user]:
                del self._users[user]

    def failed(self, host: str) -> float:
        """Note a bad token; return how long its refusal is to wait."""
        return self._tries.failed(host)

    def reserve(self, name: str, count: int, under: str, quota: int | None) -> int:
        """Take room, or refuse it; where that needs a count it waits, for 3 s at most."""
        return self._ledgers.reserve(name, count, under, quota)

    def reserve_now(self, name: str, count: int, under: str, quota: int | None) -> int | None:
        """Take room or refuse it, unless that needs a count."""
        return self._ledgers.reserve_now(name, count, under, quota)

    def commit(self, number: int) -> None:
        """Note that what was taken is on the disk."""
        self._ledgers.commit(number)

    def cancel(self, number: int) -> None:
        """Note that what was taken is not on the disk."""
        self._ledgers.cancel(number)

    def freed(self, name: str) -> None:
        """Note that there may be less of ``name``."""
        self._ledgers.freed(name)

    def moved(self, name: str, to: str) -> None:
        """Note that what stood under ``name`` stands under ``to``."""
        self._ledgers.moved(name, to)

    def close(self) -> None:
        """End the counts that are under way."""
        self._ledgers.close()


@dataclass(frozen=True, slots=True)
class AccountQuota:
    """The room of one who may have ``quota`` bytes under ``under``; None is no limit."""

    shared_limits: SharedLimits
    under: str
    quota: int | None

    def reserve(self, name: str, count: int) -> Reservation:
        """Take room for ``count`` bytes under ``name``."""
        if not count:
            return NO_RESERVATION
        return _Reservation(
            self.shared_limits, self.shared_limits.reserve(name, count, self.under, self.quota)
        )

    def freed(self, name: str) -> None:
        """Note that something is gone, or smaller."""
        self.shared_limits.freed(name)

    def moved(self, name: str, to: str) -> None:
        """Note that what stood under ``name`` stands under ``to``."""
        self.shared_limits.moved(name, to)


class _Reservation:
    """What was taken of a quota."""

    def __init__(self, shared_limits: SharedLimits, number: int) -> None:
        self._shared_limits, self._number = shared_limits, number
        self._settled = threading.Lock()

    def commit(self) -> None:
        """Note that it is on the disk."""
        self._settle(self._shared_limits.commit)

    def cancel(self) -> None:
        """Note that it is not."""
        self._settle(self._shared_limits.cancel)

    def _settle(self, tell: Callable[[int], None]) -> None:
        # Whoever takes a block over settles for a connection that will do it again.
        if self._settled.acquire(blocking=False):
            tell(self._number)
