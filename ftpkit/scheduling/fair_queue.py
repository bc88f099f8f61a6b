"""The ready flows of one direction, ordered between accounts and within each."""

import itertools
import math
from typing import Final

from ftpkit.scheduling.flow import AccountQueue, Flow
from ftpkit.scheduling.policies import Policy
from ftpkit.scheduling.ranked_queue import RankedQueue
from ftpkit.scheduling.rate_limit import RateLimiter

# The longest waiting flow gets one byte in so many.
_AGING: Final = 20


class FairQueue:
    """Orders ready flows: accounts by policy and limit, then the flows of each account.

    An account over its limit does not hold up others. A quantum is charged when it is
    granted, because others are granted meanwhile, and corrected when it is released.
    """

    def __init__(self, policy: Policy, bytes_per_s: float | None) -> None:
        self.limit = RateLimiter(bytes_per_s)
        self._policy = policy
        self._virtual = 0.0
        self._ready: RankedQueue[AccountQueue] = RankedQueue()
        self._over_limit: RankedQueue[AccountQueue] = RankedQueue()
        self._tickets = itertools.count()
        self._aged = 0

    def push(self, flow: Flow, now: float) -> None:
        """Add ``flow`` and set the size of the quantum that it waits for."""
        transfer, account_queue = flow.transfer, flow.account_queue
        # Runs once per quantum: a comparison costs half of what min and max do.
        size, own, left = self.limit.quantum, account_queue.limit.quantum, transfer.left
        size = own if own < size else size
        flow.size = size = left if left and left < size else size
        share, virtual, finish = size / transfer.account.weight, self._virtual, transfer.finish
        flow.start = transfer.start = finish if finish > virtual else virtual
        transfer.finish = flow.start + share
        if not account_queue.waiting.by_age:
            # An account that returns is ahead of those that always wait, by one quantum only.
            account_queue.start = account_queue.finish = max(virtual - share, account_queue.finish)
        account_queue.waiting.push(flow, self._policy.rank(transfer), next(self._tickets))
        if account_queue.waiting.best()[2] is flow:
            self._place(account_queue, now)

    def remove(self, flow: Flow, now: float) -> None:
        """Remove ``flow``, which waits, and refund its share."""
        flow.account_queue.waiting.discard(flow)
        flow.transfer.finish -= flow.size / flow.transfer.account.weight
        self._place(flow.account_queue, now)

    def force_grant(self, flow: Flow, max_size: int, now: float) -> None:
        """Grant ``flow``, which waits, at most ``max_size`` bytes before it is due."""
        size = min(flow.size, max_size)
        flow.transfer.finish -= (flow.size - size) / flow.transfer.account.weight
        flow.size = size
        self._grant(flow, now)

    def pop(self, now: float) -> Flow | None:
        """Grant the next quantum and return its flow; None if none is due."""
        if self.limit.due_s > now:
            return None
        while self._over_limit.by_age and (queued := self._over_limit.best())[0] <= now:
            self._place(queued[2], now)
        if not self._ready.by_age:
            return None
        flow = self._ready.best()[2].waiting.best()[2]
        if self._policy.ages:
            flow = self._aged_before(flow)
        self._grant(flow, now)
        return flow

    def release(self, flow: Flow, moved: int, now: float) -> None:
        """Charge the ``moved`` bytes, less the quantum that ``flow`` was granted, if any."""
        account_queue, transfer = flow.account_queue, flow.transfer
        transfer.move(moved, now)
        size, flow.size = flow.size, 0
        more = moved - size
        if more:
            self.limit.charge(more, now)
            account_queue.limit.charge(more, now)
            if size:  # bytes that moved without a quantum do not count against a share
                transfer.finish += more / transfer.account.weight
                account_queue.finish += more / transfer.account.weight
            self._place(account_queue, now)

    def next_at(self) -> float:
        """Return the earliest time at which ``pop`` can grant, if nothing changes; inf: never."""
        if self._ready.by_age:
            return self.limit.due_s
        if self._over_limit.by_age:
            return max(self.limit.due_s, self._over_limit.best()[0])
        return math.inf

    def reorder(self, policy: Policy, now: float) -> None:
        self._policy = policy
        flows = self.flows()
        for flow in flows:
            self.remove(flow, now)
        for flow in flows:
            self.push(flow, now)

    def flows(self) -> list[Flow]:
        """Return the waiting flows in the order in which they would be granted."""
        found = []
        for account_queue in (*self._ready.by_age, *self._over_limit.by_age):
            start = account_queue.start
            for rank, ticket, flow in sorted(account_queue.waiting.by_age.values()):
                found.append((start if self._policy.by_account else rank, ticket, flow))
                start += flow.size / flow.transfer.account.weight
        return [flow for _, _, flow in sorted(found)]

    def _place(self, account_queue: AccountQueue, now: float) -> None:
        """Requeue ``account_queue`` after its flows or its limit changed."""
        self._over_limit.discard(account_queue)
        if not account_queue.waiting.by_age:
            self._ready.discard(account_queue)
            return
        rank, ticket, _ = account_queue.waiting.best()
        if account_queue.limit.due_s > now:
            self._ready.discard(account_queue)
            self._over_limit.push(account_queue, account_queue.limit.due_s, ticket)
        else:
            self._ready.push(
                account_queue, account_queue.start if self._policy.by_account else rank, ticket
            )

    def _aged_before(self, flow: Flow) -> Flow:
        """Return ``flow``, or the longest waiting flow if that has had less than its share.

        It is taken from the account whose longest waiting flow was granted least recently.
        ``_aged`` reaches 0 when others have had the rest since then; a grant by rank counts too.
        """
        account_queue = next(iter(self._ready.by_age))
        oldest = next(iter(account_queue.waiting.by_age))
        if self._aged >= 0:
            flow = oldest
        if flow is oldest:
            self._ready.by_age.move_to_end(account_queue)
            self._aged = -_AGING * flow.size
        self._aged += flow.size
        return flow

    def _grant(self, flow: Flow, now: float) -> None:
        account_queue, size = flow.account_queue, flow.size
        account_queue.waiting.discard(flow)
        start = flow.start
        if self._policy.by_account:
            start = account_queue.start
            account_queue.finish += size / flow.transfer.account.weight
            account_queue.start = account_queue.finish
        if start > self._virtual:
            self._virtual = start
        self.limit.charge(size, now)
        account_queue.limit.charge(size, now)
        self._place(account_queue, now)
