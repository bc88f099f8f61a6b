"""The transfers of a server: each once, even if several connections carry it."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from weakref import WeakValueDictionary

from ftpkit.scheduling.blocking import BlockingScheduler, TurnHandle
from ftpkit.scheduling.flow import Account, Transfer
from ftpkit.scheduling.rate_limit import Direction
from ftpkit.server.limits import DEFAULT_LIMITS
from ftpkit.server.status import TransferTotals


class TransferRegistry:
    """Adds connections to transfers: those that carry the same upload share its progress."""

    def __init__(self, scheduler: BlockingScheduler | None = None) -> None:
        self.scheduler = scheduler or BlockingScheduler(DEFAULT_LIMITS.new_scheduler())
        self.ended = TransferTotals()
        self._lock = threading.Lock()
        self._accounts: WeakValueDictionary[str, Account] = WeakValueDictionary()
        self._uploads: WeakValueDictionary[str, Transfer] = WeakValueDictionary()

    def account(
        self, user: str, *, weight: float = 1.0, bytes_per_s: float | None = None
    ) -> Account:
        """Return the account of ``user``, which all connections of the user share.

        ``weight`` and ``bytes_per_s`` (in each direction) replace those of earlier calls.
        """
        rates = {} if bytes_per_s is None else dict.fromkeys(Direction, bytes_per_s)
        with self._lock:
            account = self._accounts.setdefault(user, Account(user, bytes_per_s=rates))
            account.weight = weight
            if account.bytes_per_s != rates:
                self.scheduler.set_rates(account, rates)
            return account

    def join(self, transfer: Transfer, upload_id: str | None) -> TurnHandle:
        """Return a handle for ``transfer``, or for the one that carries the same upload."""
        with self._lock:
            if upload_id is not None:
                transfer = self._uploads.setdefault(upload_id, transfer)
            return self.scheduler.add_flow(transfer)


@contextlib.contextmanager
def take_turn(
    scheduler: BlockingScheduler, handle: TurnHandle, moved: Callable[[], int]
) -> Iterator[int | None]:
    """Yield the size of a quantum of ``handle``, or None without limits; count what then moves.

    ``moved`` returns the bytes that have moved so far.
    """
    before, limited = moved(), scheduler.has_limits
    quantum = handle.acquire() if limited else None
    try:
        yield quantum
    finally:
        count = moved() - before
        if limited or count:
            handle.release(count)
