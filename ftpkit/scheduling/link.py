"""One direction of the server's link: whose turn it is there."""

import itertools
import math
from typing import Final

from ftpkit.scheduling.limit import Limit
from ftpkit.scheduling.policies import Policy
from ftpkit.scheduling.queue import Queue
from ftpkit.scheduling.transfer import Gate, Lane

# What waits longest has one byte in so many.
_AGED: Final = 20


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
        self._aged = 0

    def push(self, lane: Lane, now: float) -> None:
        """Let ``lane`` wait for a turn."""
        transfer, gate = lane.transfer, lane.gate
        # Every turn comes by here: a comparison costs half of what min and max do.
        size, own, left = self.limit.quantum, gate.limit.quantum, transfer.left
        size = own if own < size else size
        lane.size = size = left if left and left < size else size
        share, virtual, finish = size / transfer.account.weight, self._virtual, transfer.finish
        lane.start = transfer.start = finish if finish > virtual else virtual
        transfer.finish = lane.start + share
        if not gate.waiting.by_age:
            # Who was away is ahead of those who always wait, by this turn and no more.
            gate.start = gate.finish = max(virtual - share, gate.finish)
        gate.waiting.push(lane, self._policy.rank(transfer), next(self._tickets))
        if gate.waiting.best()[2] is lane:
            self._place(gate, now)

    def withdraw(self, lane: Lane, now: float) -> None:
        """Let ``lane`` wait no longer."""
        lane.gate.waiting.discard(lane)
        lane.transfer.finish -= lane.size / lane.transfer.account.weight
        self._place(lane.gate, now)

    def hurry(self, lane: Lane, most: int, now: float) -> None:
        """Give ``lane`` a turn of at most so many bytes before it is due."""
        lane.transfer.finish -= (lane.size - min(lane.size, most)) / lane.transfer.account.weight
        lane.size = min(lane.size, most)
        self._give(lane, now)

    def pop(self, now: float) -> Lane | None:
        """Give the next turn to the lane that is returned, if there is one by now."""
        if self.limit.due_s > now:
            return None
        while self._shut.by_age and (entry := self._shut.best())[0] <= now:
            self._place(entry[2], now)
        if not self._open.by_age:
            return None
        lane = self._open.best()[2].waiting.best()[2]
        if self._policy.ages:
            lane = self._unless_starved(lane)
        self._give(lane, now)
        return lane

    def end(self, lane: Lane, moved: int, now: float) -> None:
        """Note that ``lane`` moved so many bytes in its turn, or outside of any."""
        gate, transfer = lane.gate, lane.transfer
        transfer.move(moved, now)
        size, lane.size = lane.size, 0
        more = moved - size
        if more:
            self.limit.charge(more, now)
            gate.limit.charge(more, now)
            if size:  # what was free of turns is not held against anybody
                transfer.finish += more / transfer.account.weight
                gate.finish += more / transfer.account.weight
            self._place(gate, now)

    def next_at(self) -> float:
        """Return when there may be a turn to give, if nothing happens; inf for never."""
        if self._open.by_age:
            return self.limit.due_s
        return max(self.limit.due_s, self._shut.best()[0]) if self._shut.by_age else math.inf

    def reorder(self, policy: Policy, now: float) -> None:
        """Let all that wait do so anew, under ``policy`` and the limits of now."""
        self._policy = policy
        lanes = self.lanes()
        for lane in lanes:
            self.withdraw(lane, now)
        for lane in lanes:
            self.push(lane, now)

    def lanes(self) -> list[Lane]:
        """Return the lanes that wait, in the order of their turns if no more came."""
        found = []
        for gate in (*self._open.by_age, *self._shut.by_age):
            start = gate.start
            for rank, ticket, lane in sorted(gate.waiting.by_age.values()):
                found.append((start if self._policy.by_account else rank, ticket, lane))
                start += lane.size / lane.transfer.account.weight
        return [lane for _, _, lane in sorted(found)]

    def _place(self, gate: Gate, now: float) -> None:
        """Put ``gate`` where it belongs, after its lanes or its limit changed."""
        self._shut.discard(gate)
        if not gate.waiting.by_age:
            self._open.discard(gate)
            return
        rank, ticket, _ = gate.waiting.best()
        if gate.limit.due_s > now:
            self._open.discard(gate)
            self._shut.push(gate, gate.limit.due_s, ticket)
        else:
            self._open.push(gate, gate.start if self._policy.by_account else rank, ticket)

    def _unless_starved(self, lane: Lane) -> Lane:
        """Return ``lane``, or what waited longest if that went short.

        That is, of the account that had no such turn for longest. When ``_aged`` reaches 0
        others have had all but its share since such a turn, which may come by rank as well.
        """
        gate = next(iter(self._open.by_age))
        oldest = next(iter(gate.waiting.by_age))
        if self._aged >= 0:
            lane = oldest
        if lane is oldest:
            self._open.by_age.move_to_end(gate)
            self._aged = -_AGED * lane.size
        self._aged += lane.size
        return lane

    def _give(self, lane: Lane, now: float) -> None:
        gate, size = lane.gate, lane.size
        gate.waiting.discard(lane)
        start = lane.start
        if self._policy.by_account:
            start = gate.start
            gate.finish += size / lane.transfer.account.weight
            gate.start = gate.finish
        if start > self._virtual:
            self._virtual = start
        self.limit.charge(size, now)
        gate.limit.charge(size, now)
        self._place(gate, now)
