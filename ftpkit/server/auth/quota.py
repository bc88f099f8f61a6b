"""The bytes that are stored and reserved in each directory with a quota."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.names import is_in
from ftpkit.storage.quota import Reservation

# WIRE.md promises a reply within 5 seconds.
_TIMEOUT_S: Final = 3.0
# A count older than this does not show what was deleted without the server.
_FRESH_S: Final = 5.0
# Counts for one request, while renames keep making their results uncertain.
_MAX_COUNTS: Final = 3

UsedBytes = Callable[[str, Callable[[], bool]], int]
"""Returns the bytes that are stored under a name, as long as the second argument returns true."""

log = logging.getLogger("ftpkit.server")


class QuotaLedger:
    """The ``Quotas`` of a server: an upper bound of what each directory with a quota stores.

    Additions are known to the byte. A deletion only marks the directory for a new count,
    which is made when a request would be refused without it. One thread counts a directory
    for all requests that wait for it.
    """

    def __init__(
        self,
        used_bytes: UsedBytes,
        *,
        timeout_s: float = _TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._used_bytes, self._timeout_s, self._clock = used_bytes, timeout_s, clock
        self._changed = threading.Condition()
        self._usages: dict[str, _Usage] = {}
        self._reserved: set[_Reserved] = set()
        self._closed = False

    def reserve(self, name: str, count: int, under: str, quota: int | None) -> Reservation:
        deadline = self._clock() + self._timeout_s
        with self._changed:
            if quota is None:
                return self._add(name, count)
            usage = self._usage(under)
            max_started = usage.started + _MAX_COUNTS
            while not self._fits(usage, quota, count):
                if usage.thread is None:
                    if usage.started >= max_started:
                        raise _unknown()
                    self._start(under, usage)
                if not self._changed.wait(max(0.0, deadline - self._clock())):
                    raise _unknown()
            return self._add(name, count)

    def try_reserve(
        self, name: str, count: int, under: str, quota: int | None
    ) -> Reservation | None:
        """Do as ``reserve``, or return None where that would have to wait."""
        with self._changed:
            if quota is None or self._fits(self._usage(under), quota, count):
                return self._add(name, count)
            return None

    def note_deleted(self, name: str) -> None:
        with self._changed:
            for under, usage in self._usages.items():
                usage.note(less=_overlap(under, name))

    def note_renamed(self, name: str, to: str) -> None:
        with self._changed:
            for under, usage in self._usages.items():
                # A count that runs may have read the one too early and the other too late.
                arrives = usage.thread is not None or not is_in(under, name)
                usage.note(
                    less=_overlap(under, name) or _overlap(under, to),
                    more=_overlap(under, to) and arrives,
                )

    def close(self) -> None:
        """Stop the counts that run, and refuse the requests that wait for them."""
        with self._changed:
            self._closed = True
            threads = [each.thread for each in self._usages.values() if each.thread]
            self._changed.notify_all()
        for thread in threads:
            thread.join()

    # The methods below are called with the lock held, but for _release and _run.

    def _fits(self, usage: "_Usage", quota: int, count: int) -> bool:
        """Whether ``count`` certainly fits; raise RefusedError if it certainly does not."""
        if self._closed:
            raise RefusedError(Code.SHUTTING_DOWN, "the server is stopping")
        left = quota - usage.stored - usage.reserved
        if usage.more or count <= left:
            return not usage.more
        if usage.less or self._clock() - usage.counted_at >= _FRESH_S:
            return False
        raise RefusedError(
            Code.QUOTA_EXCEEDED,
            # How much is stored is not disclosed: a user may lack the permission to read.
            f"{count:,} bytes exceed the space left in the quota of {quota:,} bytes",
        )

    def _usage(self, under: str) -> "_Usage":
        usage = self._usages.get(under)
        if usage is None:
            usage = self._usages[under] = _Usage()
            for reserved in self._reserved:
                reserved.add_to(under, usage)
        return usage

    def _add(self, name: str, count: int) -> Reservation:
        reserved = _Reserved(name, count)
        self._reserved.add(reserved)
        for under, usage in self._usages.items():
            reserved.add_to(under, usage)
        return Reservation(partial(self._release, reserved))

    def _release(self, reserved: "_Reserved", committed: bool) -> None:
        with self._changed:
            self._reserved.remove(reserved)
            for usage, started in reserved.usages:
                usage.reserved -= reserved.count
                if committed:
                    usage.stored += reserved.count
                    usage.added += reserved.count
                    if usage.started != started or usage.thread is not None:
                        # A count that was started since may have found these bytes as well.
                        usage.note(less=True)

    def _start(self, under: str, usage: "_Usage") -> None:
        thread = threading.Thread(
            target=self._run, args=(under, usage), name="ftpkit-quota", daemon=True
        )
        thread.start()
        usage.thread = thread
        usage.started += 1
        usage.less_since = usage.more_since = False
        usage.added = 0

    def _run(self, under: str, usage: "_Usage") -> None:
        stored: int | None = None
        try:
            stored = self._used_bytes(under, lambda: not self._closed)
        except Exception:  # the requests that wait are refused as busy
            log.exception("error", extra={"fields": {"at": "count", "under": under}})
        with self._changed:
            usage.thread = None
            usage.counted_at = self._clock()
            if stored is not None:
                usage.stored = stored + usage.added
                usage.less, usage.more = usage.less_since, usage.more_since
            self._changed.notify_all()


@dataclass(slots=True, eq=False)
class _Usage:
    """The ``stored`` and ``reserved`` bytes of one directory, and how certain they are.

    ``less`` and ``more`` say that a new count may find less or more; ``_since``: since the
    last count was started. ``added`` bytes were committed since then.
    """

    stored: int = 0
    reserved: int = 0
    added: int = 0
    less: bool = False
    more: bool = True
    less_since: bool = False
    more_since: bool = False
    started: int = 0
    counted_at: float = 0.0
    thread: threading.Thread | None = None

    def note(self, *, less: bool, more: bool = False) -> None:
        self.less, self.less_since = self.less or less, self.less_since or less
        self.more, self.more_since = self.more or more, self.more_since or more


@dataclass(frozen=True, slots=True, eq=False)
class _Reserved:
    name: str
    count: int
    usages: list[tuple[_Usage, int]] = field(default_factory=list)
    """Each directory that it counts in, and how many counts had been started there."""

    def add_to(self, under: str, usage: _Usage) -> None:
        if is_in(under, self.name):
            self.usages.append((usage, usage.started))
            usage.reserved += self.count


def _overlap(under: str, name: str) -> bool:
    """Whether one of two names is in the other."""
    return is_in(under, name) or is_in(name, under)


def _unknown() -> RefusedError:
    return RefusedError(Code.BUSY, "the server is still counting the stored bytes; try again")
