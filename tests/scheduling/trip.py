"""Transfers on a line in simulated time: what a schedule lets them do, and when."""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from ftpkit.scheduling.flow import Account, Flow, Transfer
from ftpkit.scheduling.rate_limit import Direction
from ftpkit.scheduling.scheduler import Scheduler

LINE_BPS = 1e10
UP, DOWN = Direction.UP, Direction.DOWN


@dataclass(slots=True)
class Turn:
    """One turn that was given: when, to whom, of how many bytes."""

    at: float
    transfer: Transfer
    size: int


@dataclass(slots=True)
class Trip:
    """Moves what the schedule lets move, each turn at ``line_bps``, until all is done."""

    schedule: Scheduler
    line_bps: float = LINE_BPS
    now: float = 0.0
    turns: list[Turn] = field(default_factory=list)
    done: dict[Transfer, float] = field(default_factory=dict)
    running: int = 0
    most_running: int = 0
    _totals: dict[Transfer, int] = field(default_factory=dict)
    _under_way: dict[Transfer, int] = field(default_factory=dict)
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), act))

    def send(
        self,
        account: Account,
        total: int | None,
        *,
        at: float = 0.0,
        flows: int = 1,
        direction: Direction = UP,
        known: bool = True,
    ) -> Transfer:
        """Let a transfer of ``total`` bytes arrive; None never ends."""
        size = total if known else None
        transfer = Transfer(account, f"{total}", direction, size, at)
        self.at(at, lambda: self._arrive(transfer, total, flows))
        return transfer

    def run(self, until: float = 1e9) -> None:
        while True:
            self._give()
            wake = self.schedule.next_at()
            event = self._events[0][0] if self._events else float("inf")
            now = min(wake, event)
            if now > until or now == float("inf"):
                return
            assert now >= self.now
            self.now = now
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()

    def moved(self, since: float, until: float, *accounts: Account) -> int:
        """Return the bytes of turns that were given in a time, of some accounts or of all."""
        return sum(
            turn.size
            for turn in self.turns
            if since <= turn.at < until and (not accounts or turn.transfer.account in accounts)
        )

    def order(self) -> list[Transfer]:
        """Return whose turn it was, one after the other."""
        return [turn.transfer for turn in self.turns]

    def _arrive(self, transfer: Transfer, total: int | None, flows: int) -> None:
        for _ in range(flows):
            self.schedule.ready(self.schedule.add_flow(transfer), self.now)
        if total is not None:
            self._totals[transfer] = total

    def _give(self) -> None:
        while (flow := self.schedule.grant_next(self.now)) is not None:
            self._carry(flow)

    def _carry(self, flow: Flow) -> None:
        transfer, size = flow.transfer, flow.size
        total = self._totals.get(transfer)
        if total is not None:
            size = min(size, total - transfer.moved - self._under_way.get(transfer, 0))
        self._under_way[transfer] = self._under_way.get(transfer, 0) + size
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        self.turns.append(Turn(self.now, transfer, size))
        self.at(self.now + size / self.line_bps, lambda: self._finish(flow, size))

    def _finish(self, flow: Flow, size: int) -> None:
        transfer = flow.transfer
        self.running -= 1
        self._under_way[transfer] -= size
        self.schedule.release(flow, size, self.now)
        total = self._totals.get(transfer)
        if total is not None and transfer.moved + self._under_way[transfer] >= total:
            self.schedule.remove(flow, self.now)
            if not transfer.flows:
                self.done[transfer] = self.now
        else:
            self.schedule.ready(flow, self.now)
