"""What is stored where, and taken for what is on its way: quotas are kept by these counts."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count as numbers
from typing import Final

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.names import is_in

# WIRE.md promises an answer within 5 seconds.
_PATIENCE_S: Final = 3.0
# A count that is older has not seen what was removed past the server.
_FRESH_S: Final = 5.0
# So often is counted for one request, where what is counted is moved about meanwhile.
_MOST_COUNTS: Final = 3

Count = Callable[[str, Callable[[], bool]], int]
"""Returns the bytes that are stored under a name, as long as the second argument is true."""

log = logging.getLogger("ftpkit.server")


class Ledgers:
    """Keeps, of each directory that has a quota, how much is in it at most.

    What is added is known to the byte. What is removed only makes known that a new count
    would say less; it is made when a request would have to be refused otherwise. One
    directory is counted by one thread, for as many as wait for it.
    """

    def __init__(
        self,
        count: Count,
        *,
        patience_s: float = _PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._count, self._patience_s, self._clock = count, patience_s, clock
        self._changed = threading.Condition()
        self._ledgers: dict[str, _Ledger] = {}
        self._taken: dict[int, _Taken] = {}
        self._numbers = numbers(1)
        self._closed = False

    def take(self, name: str, count: int, under: str, quota: int | None) -> int:
        """Take ``count`` bytes for ``name`` and return their number, or refuse; it may wait."""
        since: int | None = None
        deadline = self._clock() + self._patience_s
        with self._changed:
            while True:
                if quota is None or self._fits(under, quota, count, since):
                    return self._enter(name, count)
                ledger = self._ledgers[under]
                since = ledger.begun if since is None else since
                if ledger.begun - since >= _MOST_COUNTS and not ledger.counting:
                    raise _unknown()
                self._begin(under, ledger)
                if not self._changed.wait(max(0.0, deadline - self._clock())):
                    raise _unknown()

    def take_now(self, name: str, count: int, under: str, quota: int | None) -> int | None:
        """Do as ``take`` does, if that is possible at once."""
        with self._changed:
            if quota is None or self._fits(under, quota, count, None):
                return self._enter(name, count)
            return None

    def keep(self, number: int) -> None:
        """Note that what was taken is on the disk."""
        with self._changed:
            taken = self._taken.pop(number)
            for ledger, begun in taken.ledgers:
                ledger.taken -= taken.count
                ledger.stored += taken.count
                # A count that began since may have found it already.
                ledger.less = ledger.less or ledger.begun != begun
                ledger.kept += taken.count

    def give_back(self, number: int) -> None:
        """Note that what was taken is not on the disk."""
        with self._changed:
            taken = self._taken.pop(number)
            for ledger, _ in taken.ledgers:
                ledger.taken -= taken.count

    def freed(self, name: str) -> None:
        """Note that there may be less of ``name`` than was counted."""
        with self._changed:
            for under, ledger in self._ledgers.items():
                ledger.less = ledger.less or _touch(under, name)

    def moved(self, name: str, to: str) -> None:
        """Note that what was counted under ``name`` may be under ``to``."""
        with self._changed:
            for under, ledger in self._ledgers.items():
                ledger.less = ledger.less or _touch(under, name) or _touch(under, to)
                # A count that is under way may have looked there before, and here too early.
                if _touch(under, to) and (ledger.counting or not is_in(under, name)):
                    ledger.more = True

    def close(self) -> None:
        """End the counts that are under way."""
        with self._changed:
            self._closed = True
            threads = [each.thread for each in self._ledgers.values() if each.thread]
            self._changed.notify_all()
        for thread in threads:
            thread.join()

    # All that follows is called with the lock held, but for _run.

    def _fits(self, under: str, quota: int, count: int, since: int | None) -> bool:
        """Whether there is room for certain; refuse it if there is certainly none.

        ``since`` tells counts that began after the question from earlier ones.
        """
        ledger = self._ledgers.get(under) or self._open(under)
        if self._closed:
            raise RefusedError(Code.SHUTTING_DOWN, "the server is stopping")
        if ledger.more:
            return False
        left = quota - ledger.stored - ledger.taken
        if count <= left:
            return True
        asked = since is not None and ledger.ended > since
        if asked or not (ledger.less or self._clock() - ledger.at >= _FRESH_S):
            raise RefusedError(
                Code.QUOTA_EXCEEDED,
                f"{count:,} bytes are more than the {max(0, left):,} that are left"
                f" of a quota of {quota:,}",
            )
        return False

    def _open(self, under: str) -> "_Ledger":
        ledger = self._ledgers[under] = _Ledger()
        for taken in self._taken.values():
            if is_in(under, taken.name):
                taken.ledgers.append((ledger, ledger.begun))
                ledger.taken += taken.count
        return ledger

    def _enter(self, name: str, count: int) -> int:
        number = next(self._numbers)
        taken = self._taken[number] = _Taken(name, count)
        for under, ledger in self._ledgers.items():
            if is_in(under, name):
                taken.ledgers.append((ledger, ledger.begun))
                ledger.taken += count
        return number

    def _begin(self, under: str, ledger: "_Ledger") -> None:
        """Count, unless that is being done."""
        if ledger.thread is not None:
            return
        thread = threading.Thread(
            target=self._run, args=(under, ledger), name="ftpkit-count", daemon=True
        )
        thread.start()
        ledger.thread = thread
        ledger.begun += 1
        ledger.less = ledger.more = False
        ledger.kept = 0

    def _run(self, under: str, ledger: "_Ledger") -> None:
        stored: int | None = None
        try:
            stored = self._count(under, lambda: not self._closed)
        except Exception:  # whoever waits is told that it is not known
            log.exception("error", extra={"fields": {"at": "count", "under": under}})
        with self._changed:
            ledger.thread = None
            ledger.ended, ledger.at = ledger.begun, self._clock()
            if stored is None:
                ledger.more = True
            else:
                # What was kept meanwhile was found as well, or not.
                ledger.stored = stored + ledger.kept
                ledger.less = ledger.less or ledger.kept > 0
            self._changed.notify_all()


@dataclass(slots=True, eq=False)
class _Ledger:
    """One directory: ``stored`` and ``taken`` bytes, and how sure that is.

    ``less`` says that a new count may find less, ``more`` that it may find more.
    """

    stored: int = 0
    taken: int = 0
    less: bool = False
    more: bool = True
    begun: int = 0
    ended: int = 0
    at: float = 0.0
    kept: int = 0
    thread: threading.Thread | None = None

    @property
    def counting(self) -> bool:
        return self.thread is not None


@dataclass(frozen=True, slots=True)
class _Taken:
    name: str
    count: int
    ledgers: list[tuple[_Ledger, int]] = field(default_factory=list)


def _touch(under: str, name: str) -> bool:
    """Whether one of them is in the other."""
    return is_in(under, name) or is_in(name, under)


def _unknown() -> RefusedError:
    return RefusedError(Code.BUSY, "what is stored is still being counted; try again")
