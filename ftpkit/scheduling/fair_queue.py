"""One direction of the server's link: whose turn it is there."""

import itertools
import math
from typing import Final

from ftpkit.scheduling.flow import AccountQueue, Flow
from ftpkit.scheduling.policies import Policy
from ftpkit.scheduling.ranked_queue import RankedQueue
from ftpkit.scheduling.rate_limit import RateLimiter

# What waits longest has one byte in so many.
_AGED: Final = 20


class FairQueue:
    """Orders the flows that are ready: accounts first, and the flows of each.

    An account over its limit is shut, and stands in nobody's way. A turn is charged
    when it is given, for others are given theirs meanwhile, and corrected when it ends.
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
        """Let ``flow`` wait for a turn."""
        transfer, account_queue = flow.transfer, flow.account_queue
        # Every turn comes by here: a comparison costs half of what min and max do.
        size, own, left = self.limit.quantum, account_queue.limit.quantum, transfer.left
        size = own if own < size else size
        flow.size = size = left if left and left < size else size
        share, virtual, finish = size / transfer.account.weight, self._virtual, transfer.finish
        flow.start = transfer.start = finish if finish > virtual else virtual
        transfer.finish = flow.start + share
        if not account_queue.waiting.by_age:
            # Who was away is ahead of those who always wait, by this turn and no more.
            account_queue.start = account_queue.finish = max(virtual - share, account_queue.finish)
        account_queue.waiting.push(flow, self._policy.rank(transfer), next(self._tickets))
        if account_queue.waiting.best()[2] is flow:
            self._place(account_queue, now)

    def withdraw(self, flow: Flow, now: float) -> None:
        """Let ``flow`` wait no longer."""
        flow.account_queue.waiting.discard(flow)
        flow.transfer.finish -= flow.size / flow.transfer.account.weight
        self._place(flow.account_queue, now)

    def force_grant(self, flow: Flow, most: int, now: float) -> None:
        """Give ``flow`` a turn of at most so many bytes before it is due."""
        flow.transfer.finish -= (flow.size - min(flow.size, most)) / flow.transfer.account.weight
        flow.size = min(flow.size, most)
        self._grant(flow, now)

    def pop(self, now: float) -> Flow | None:
        """Give the next turn to the flow that is returned, if there is one by now."""
        if self.limit.due_s > now:
            return None
        while self._over_limit.by_age and (entry := self._over_limit.best())[0] <= now:
            self._place(entry[2], now)
        if not self._ready.by_age:
            return None
        flow = self._ready.best()[2].waiting.best()[2]
        if self._policy.ages:
            flow = self._unless_starved(flow)
        self._grant(flow, now)
        return flow

    def end(self, flow: Flow, moved: int, now: float) -> None:
        """Note that ``flow`` moved so many bytes in its turn, or outside of any."""
        account_queue, transfer = flow.account_queue, flow.transfer
        transfer.move(moved, now)
        size, flow.size = flow.size, 0
        more = moved - size
        if more:
            self.limit.charge(more, now)
            account_queue.limit.charge(more, now)
            if size:  # what was free of turns is not held against anybody
                transfer.finish += more / transfer.account.weight
                account_queue.finish += more / transfer.account.weight
            self._place(account_queue, now)

    def next_at(self) -> float:
        """Return when there may be a turn to give, if nothing happens; inf for never."""
        if self._ready.by_age:
            return self.limit.due_s
        return (
            max(self.limit.due_s, self._over_limit.best()[0])
            if self._over_limit.by_age
            else math.inf
        )

    def reorder(self, policy: Policy, now: float) -> None:
        """Let all that wait do so anew, under ``policy`` and the limits of now."""
        self._policy = policy
        flows = self.flows()
        for flow in flows:
            self.withdraw(flow, now)
        for flow in flows:
            self.push(flow, now)

    def flows(self) -> list[Flow]:
        """Return the flows that wait, in the order of their turns if no more came."""
        found = []
        for account_queue in (*self._ready.by_age, *self._over_limit.by_age):
            start = account_queue.start
            for rank, ticket, flow in sorted(account_queue.waiting.by_age.values()):
                found.append((start if self._policy.by_account else rank, ticket, flow))
                start += flow.size / flow.transfer.account.weight
        return [flow for _, _, flow in sorted(found)]

    def _place(self, account_queue: AccountQueue, now: float) -> None:
        """Put ``gate`` where it belongs, after its flows or its limit changed."""
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

    def _unless_starved(self, flow: Flow) -> Flow:
        """Return ``flow``, or what waited longest if that went short.

        That is, of the account that had no such turn for longest. When ``_aged`` reaches 0
        others have had all but its share since such a turn, which may come by rank as well.
        """
        account_queue = next(iter(self._ready.by_age))
        oldest = next(iter(account_queue.waiting.by_age))
        if self._aged >= 0:
            flow = oldest
        if flow is oldest:
            self._ready.by_age.move_to_end(account_queue)
            self._aged = -_AGED * flow.size
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
