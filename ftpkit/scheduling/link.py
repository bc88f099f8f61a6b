"""One direction of the server's link: whose turn it is there."""

import itertools
import math
from typing import Final

from ftpkit.scheduling.limit import Limit, quantum
from ftpkit.scheduling.policies import Policy
from ftpkit.scheduling.queue import Queue
from ftpkit.scheduling.transfer import Gate, Lane

_AGED_SHARE: Final = 0.05


class Link:
    """Orders the lanes that are ready: accounts first, and the lanes of each.

    An account over its limit is shut, and stands in nobody's way. A turn is charged
    when it is given, for others are given theirs meanwhile, and corrected when it ends.
    """

    def __init__(self, policy: Policy, rate_bps: float | None) -> None:
        self.limit = Limit(rate_bps)
        self._policy = policy
        self._virtual = 0.0
        self._open: Queue[Gate] = Queue()
        self._shut: Queue[Gate] = Queue()
        self._tickets = itertools.count()
        self._owed = 0.0

    def push(self, lane: Lane, now: float) -> None:
        """Let ``lane`` wait for a turn."""
        transfer, gate = lane.transfer, lane.gate
        lane.size = self._size(lane)
        virtual = gate.virtual if self._policy.by_account else self._virtual
        lane.start = transfer.start = max(virtual, transfer.finish)
        transfer.finish = lane.start + lane.size / transfer.account.weight
        if not gate.waiting:
            gate.start = gate.finish = max(self._virtual, gate.finish)
        gate.waiting.push(lane, self._policy.rank(transfer), next(self._tickets))
        self._place(gate, now)

    def withdraw(self, lane: Lane, now: float) -> None:
        """Let ``lane`` wait no longer."""
        lane.gate.waiting.discard(lane)
        lane.transfer.finish -= lane.size / lane.transfer.account.weight
        self._place(lane.gate, now)

    def pop(self, now: float) -> Lane | None:
        """Give the next turn to the lane that is returned, if there is one by now."""
        if self.limit.due_s > now:
            return None
        while self._shut and self._shut.best().rank <= now:
            self._place(self._shut.best().item, now)
        if not self._open:
            return None
        lane = self._oldest() if self._policy.ages and self._owed > 0 else self._best()
        self._give(lane, now)
        return lane

    def end(self, lane: Lane, moved: int, now: float) -> None:
        """Note that ``lane`` moved so many bytes in its turn, or outside of any."""
        gate, transfer = lane.gate, lane.transfer
        more, lane.size = moved - lane.size, 0
        self.limit.charge(more, now)
        gate.limit.charge(more, now)
        transfer.moved += moved
        transfer.finish += more / transfer.account.weight
        gate.finish += more / transfer.account.weight
        if more:
            self._place(gate, now)

    def next_at(self) -> float:
        """Return when there may be a turn to give, if nothing happens; inf for never."""
        if self._open:
            return self.limit.due_s
        return max(self.limit.due_s, self._shut.best().rank) if self._shut else math.inf

    def reorder(self, policy: Policy, now: float) -> None:
        """Let all that wait do so anew, under ``policy`` and the limits of now."""
        self._policy = policy
        lanes = self.lanes()
        for lane in lanes:
            self.withdraw(lane, now)
        for lane in lanes:
            self.push(lane, now)

    def lanes(self) -> list[Lane]:
        """Return the lanes that wait, in the order of their turns if none came to them."""
        found = []
        for gate in (*self._open, *self._shut):
            start = gate.start
            for rank, ticket, lane in gate.waiting.entries():
                found.append((start if self._policy.by_account else rank, ticket, lane))
                start += lane.size / lane.transfer.account.weight
        return [lane for _, _, lane in sorted(found)]

    def _size(self, lane: Lane) -> int:
        rates = [limit.rate_bps for limit in (self.limit, lane.gate.limit) if limit.rate_bps]
        size = quantum(min(rates, default=None))
        return min(size, lane.transfer.left or size)

    def _place(self, gate: Gate, now: float) -> None:
        """Put ``gate`` where it belongs, after its lanes or its limit changed."""
        if not gate.waiting:
            self._open.discard(gate)
            self._shut.discard(gate)
            return
        rank, ticket, _ = gate.waiting.best()
        if gate.limit.due_s > now:
            self._open.discard(gate)
            self._shut.push(gate, gate.limit.due_s, ticket)
        else:
            self._shut.discard(gate)
            self._open.push(gate, gate.start if self._policy.by_account else rank, ticket)

    def _best(self) -> Lane:
        return self._open.best().item.waiting.best().item

    def _oldest(self) -> Lane:
        """Return what waited longest, of an account that had no such turn for longest."""
        gate = self._open.oldest()
        self._open.renew(gate)
        lane = gate.waiting.oldest()
        self._owed -= lane.size
        return lane

    def _give(self, lane: Lane, now: float) -> None:
        gate = lane.gate
        gate.waiting.discard(lane)
        if self._policy.by_account:
            gate.virtual = max(gate.virtual, lane.start)
            self._virtual = max(self._virtual, gate.start)
        else:
            self._virtual = max(self._virtual, lane.start)
        gate.finish += lane.size / lane.transfer.account.weight
        gate.start = gate.finish
        self.limit.charge(lane.size, now)
        gate.limit.charge(lane.size, now)
        self._owed += lane.size * _AGED_SHARE
        self._place(gate, now)
