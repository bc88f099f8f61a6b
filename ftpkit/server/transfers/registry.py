"""The transfers of a server: each once, even if several connections carry it."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from weakref import WeakValueDictionary

from ftpkit.scheduling.blocking import BlockingScheduler, TurnHandle
from ftpkit.scheduling.flow import Account, Transfer
from ftpkit.scheduling.policies import DEFAULT_POLICY, POLICIES
from ftpkit.scheduling.rate_limit import Direction
from ftpkit.scheduling.scheduler import Scheduler
from ftpkit.server.status import TransferTotals
from ftpkit.storage.api import Upload


class TransferRegistry:
    """Adds connections to transfers: those that carry the same upload share its progress."""

    def __init__(self, scheduler: BlockingScheduler | None = None) -> None:
        self.scheduler = scheduler or BlockingScheduler(Scheduler(POLICIES[DEFAULT_POLICY]))
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
            account = self._accounts.get(user)
            if account is None:
                account = self._accounts[user] = Account(user, weight=weight, bytes_per_s=rates)
            account.weight = weight
            if account.bytes_per_s != rates:
                self.scheduler.set_rates(account, rates)
            return account

    def upload(self, account: Account, peer: str, upload: Upload) -> TurnHandle:
        """Return a handle for an upload; the blocks that the server has count as moved."""
        with self._lock:
            transfer = self._uploads.get(upload.id)
            if transfer is None:
                spec = upload.spec
                transfer = _transfer(
                    account, peer, spec.name, Direction.UP, spec.total, upload.held
                )
                self._uploads[upload.id] = transfer
            return self.scheduler.add_flow(transfer)

    def put(self, account: Account, peer: str, name: str, total: int) -> TurnHandle:
        """Return a handle for a file that arrives in one request."""
        return self.scheduler.add_flow(_transfer(account, peer, name, Direction.UP, total, 0))

    def download(
        self, account: Account, peer: str, name: str, total: int, offset: int
    ) -> TurnHandle:
        """Return a handle for a download that begins at ``offset``."""
        return self.scheduler.add_flow(
            _transfer(account, peer, name, Direction.DOWN, total, offset)
        )


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


def _transfer(
    account: Account, peer: str, name: str, direction: Direction, total: int | None, moved: int
) -> Transfer:
    return Transfer(account, name, direction, total, time.monotonic(), moved, peer)
