"""The transfers of a server: each once, however many connections carry it."""

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
    """Lets connections join transfers, and knows which of them carry the same one."""

    def __init__(self, scheduler: BlockingScheduler | None = None) -> None:
        self.scheduler = scheduler or BlockingScheduler(Scheduler(POLICIES[DEFAULT_POLICY]))
        self.ended = TransferTotals()
        self._lock = threading.Lock()
        self._accounts: WeakValueDictionary[str, Account] = WeakValueDictionary()
        self._uploads: WeakValueDictionary[str, Transfer] = WeakValueDictionary()

    def account(
        self, user: str, *, weight: float = 1.0, bytes_per_s: float | None = None
    ) -> Account:
        """Return the account of ``user``, the same for all who ask for it at a time.

        What the last of them says of its share and of its rate, in each direction, holds for all.
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
        """Join an upload; what the server holds of it counts as moved."""
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
        """Join a file that arrives in one piece."""
        return self.scheduler.add_flow(_transfer(account, peer, name, Direction.UP, total, 0))

    def download(
        self, account: Account, peer: str, name: str, total: int, offset: int
    ) -> TurnHandle:
        """Join a file that is read from ``offset`` on."""
        return self.scheduler.add_flow(
            _transfer(account, peer, name, Direction.DOWN, total, offset)
        )


@contextlib.contextmanager
def take_turn(
    scheduler: BlockingScheduler, handle: TurnHandle, moved: Callable[[], int]
) -> Iterator[int | None]:
    """Let the block be a turn of ``handle``, of so many bytes, where there are such.

    ``moved`` counts the bytes.
    """
    before, shaped = moved(), scheduler.has_limits
    most = handle.acquire() if shaped else None
    try:
        yield most
    finally:
        count = moved() - before
        if shaped or count:
            handle.release(count)


def _transfer(
    account: Account, peer: str, name: str, direction: Direction, total: int | None, moved: int
) -> Transfer:
    return Transfer(account, name, direction, total, time.monotonic(), moved, peer)
