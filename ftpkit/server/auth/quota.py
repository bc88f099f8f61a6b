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


class QuotaLedger:
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
        self._ledgers: dict[str, _Usage] = {}
        self._taken: dict[int, _Reserved] = {}
        self._numbers = numbers(1)
        self._closed = False

    def reserve(self, name: str, count: int, under: str, quota: int | None) -> int:
        """Take ``count`` bytes for ``name`` and return their number, or refuse; it may wait."""
        if quota is None:
            with self._changed:
                return self._enter(name, count)
        deadline = self._clock() + self._patience_s
        with self._changed:
            ledger = self._ledger(under)
            most = ledger.begun + _MOST_COUNTS
            while not self._fits(ledger, quota, count):
                if ledger.thread is None:
                    if ledger.begun >= most:
                        raise _unknown()
                    self._start(under, ledger)
                if not self._changed.wait(max(0.0, deadline - self._clock())):
                    raise _unknown()
            return self._enter(name, count)

    def reserve_now(self, name: str, count: int, under: str, quota: int | None) -> int | None:
        """Do as ``reserve`` does, if that is possible at once."""
        with self._changed:
            if quota is None or self._fits(self._ledger(under), quota, count):
                return self._enter(name, count)
            return None

    def commit(self, number: int) -> None:
        """Note that what was taken is on the disk."""
        with self._changed:
            taken = self._taken.pop(number)
            for ledger, begun in taken.ledgers:
                ledger.taken -= taken.count
                ledger.stored += taken.count
                ledger.kept += taken.count
                if ledger.begun != begun or ledger.thread is not None:
                    # A count that has begun since, or is under way, may have found it as well.
                    ledger.note(less=True)

    def cancel(self, number: int) -> None:
        """Note that what was taken is not on the disk."""
        with self._changed:
            taken = self._taken.pop(number)
            for ledger, _ in taken.ledgers:
                ledger.taken -= taken.count

    def freed(self, name: str) -> None:
        """Note that there may be less of ``name`` than was counted."""
        with self._changed:
            for under, ledger in self._ledgers.items():
                ledger.note(less=_touch(under, name))

    def moved(self, name: str, to: str) -> None:
        """Note that what was counted under ``name`` may be under ``to``."""
        with self._changed:
            for under, ledger in self._ledgers.items():
                # A count that is under way may have looked here too early, and there too late.
                comes = ledger.thread is not None or not is_in(under, name)
                ledger.note(
                    less=_touch(under, name) or _touch(under, to), more=_touch(under, to) and comes
                )

    def close(self) -> None:
        """End the counts that are under way."""
        with self._changed:
            self._closed = True
            threads = [each.thread for each in self._ledgers.values() if each.thread]
            self._changed.notify_all()
        for thread in threads:
            thread.join()

    # All that follows is called with the lock held, but for _run.

    def _fits(self, ledger: "_Usage", quota: int, count: int) -> bool:
        """Whether there is room for certain; refuse what there is certainly none for."""
        if self._closed:
            raise RefusedError(Code.SHUTTING_DOWN, "the server is stopping")
        left = quota - ledger.stored - ledger.taken
        if ledger.more or count <= left:
            return not ledger.more
        if ledger.less or self._clock() - ledger.at >= _FRESH_S:
            return False
        raise RefusedError(
            Code.QUOTA_EXCEEDED,
            # How much others have stored is not for who may only write.
            f"{count:,} bytes are more than is left of a quota of {quota:,}",
        )

    def _ledger(self, under: str) -> "_Usage":
        ledger = self._ledgers.get(under)
        if ledger is None:
            ledger = self._ledgers[under] = _Usage()
            for taken in self._taken.values():
                taken.enter(under, ledger)
        return ledger

    def _enter(self, name: str, count: int) -> int:
        number = next(self._numbers)
        taken = self._taken[number] = _Reserved(name, count)
        for under, ledger in self._ledgers.items():
            taken.enter(under, ledger)
        return number

    def _start(self, under: str, ledger: "_Usage") -> None:
        """Count what is stored."""
        thread = threading.Thread(
            target=self._run, args=(under, ledger), name="ftpkit-count", daemon=True
        )
        thread.start()
        ledger.thread = thread
        ledger.begun += 1
        ledger.less_since = ledger.more_since = False
        ledger.kept = 0

    def _run(self, under: str, ledger: "_Usage") -> None:
        stored: int | None = None
        try:
            stored = self._count(under, lambda: not self._closed)
        except Exception:  # whoever waits is told that it is not known
            log.exception("error", extra={"fields": {"at": "count", "under": under}})
        with self._changed:
            ledger.thread = None
            ledger.at = self._clock()
            if stored is not None:
                ledger.stored = stored + ledger.kept
                ledger.less, ledger.more = ledger.less_since, ledger.more_since
            self._changed.notify_all()


@dataclass(slots=True, eq=False)
class _Usage:
    """One directory: ``stored`` and ``taken`` bytes, and how sure that is.

    ``less`` says that a count may find less, ``more`` that it may find more; ``_since`` the
    last one has begun. ``kept`` came to be stored since then.
    """

    stored: int = 0
    taken: int = 0
    kept: int = 0
    less: bool = False
    more: bool = True
    less_since: bool = False
    more_since: bool = False
    begun: int = 0
    at: float = 0.0
    thread: threading.Thread | None = None

    def note(self, *, less: bool, more: bool = False) -> None:
        """Note what a count may find."""
        self.less, self.less_since = self.less or less, self.less_since or less
        self.more, self.more_since = self.more or more, self.more_since or more


@dataclass(frozen=True, slots=True)
class _Reserved:
    name: str
    count: int
    ledgers: list[tuple[_Usage, int]] = field(default_factory=list)
    """Where it is counted, and which count had begun there before."""

    def enter(self, under: str, ledger: _Usage) -> None:
        """Count it as taken, if it lies there."""
        if is_in(under, self.name):
            self.ledgers.append((ledger, ledger.begun))
            ledger.taken += self.count


def _touch(under: str, name: str) -> bool:
    """Whether one of them is in the other."""
    return is_in(under, name) or is_in(name, under)


def _unknown() -> RefusedError:
    return RefusedError(Code.BUSY, "what is stored is still being counted; try again")
