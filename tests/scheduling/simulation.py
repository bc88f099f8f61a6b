"""Transfers over one network path in simulated time, as a scheduler grants them quanta."""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from ftpkit.scheduling.flow import Account, Flow, Transfer
from ftpkit.scheduling.rate_limit import Direction
from ftpkit.scheduling.scheduler import Scheduler

CAPACITY_BYTES_PER_S = 1e10
UP, DOWN = Direction.UP, Direction.DOWN


@dataclass(slots=True)
class Grant:
    """One quantum that was granted."""

    at: float
    transfer: Transfer
    size: int


@dataclass(slots=True)
class Simulation:
    """Moves each granted quantum at ``capacity_bytes_per_s`` until all transfers are done."""

    scheduler: Scheduler
    capacity_bytes_per_s: float = CAPACITY_BYTES_PER_S
    now: float = 0.0
    grants: list[Grant] = field(default_factory=list)
    done: dict[Transfer, float] = field(default_factory=dict)
    running: int = 0
    most_running: int = 0
    _totals: dict[Transfer, int] = field(default_factory=dict)
    _in_flight: dict[Transfer, int] = field(default_factory=dict)
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
        """Add a transfer of ``total`` bytes that arrives at ``at``; None never ends."""
        size = total if known else None
        transfer = Transfer(account, f"{total}", direction, size, at)
        self.at(at, lambda: self._arrive(transfer, total, flows))
        return transfer

    def run(self, until: float = 1e9) -> None:
        while True:
            self._grant_due()
            wake = self.scheduler.next_at()
            event = self._events[0][0] if self._events else float("inf")
            now = min(wake, event)
            if now > until or now == float("inf"):
                return
            assert now >= self.now
            self.now = now
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()

    def moved(self, since: float, until: float, *accounts: Account) -> int:
        """Return the bytes granted in a period, to some accounts or to all."""
        return sum(
            grant.size
            for grant in self.grants
            if since <= grant.at < until and (not accounts or grant.transfer.account in accounts)
        )

    def order(self) -> list[Transfer]:
        """Return the transfers of all grants, in order."""
        return [grant.transfer for grant in self.grants]

    def _arrive(self, transfer: Transfer, total: int | None, flows: int) -> None:
        for _ in range(flows):
            self.scheduler.ready(self.scheduler.add_flow(transfer), self.now)
        if total is not None:
            self._totals[transfer] = total

    def _grant_due(self) -> None:
        while (flow := self.scheduler.grant_next(self.now)) is not None:
            self._start(flow)

    def _start(self, flow: Flow) -> None:
        transfer, size = flow.transfer, flow.size
        total = self._totals.get(transfer)
        if total is not None:
            size = min(size, total - transfer.moved - self._in_flight.get(transfer, 0))
        self._in_flight[transfer] = self._in_flight.get(transfer, 0) + size
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        self.grants.append(Grant(self.now, transfer, size))
        self.at(self.now + size / self.capacity_bytes_per_s, lambda: self._finish(flow, size))

    def _finish(self, flow: Flow, size: int) -> None:
        transfer = flow.transfer
        self.running -= 1
        self._in_flight[transfer] -= size
        self.scheduler.release(flow, size, self.now)
        total = self._totals.get(transfer)
        if total is not None and transfer.moved + self._in_flight[transfer] >= total:
            self.scheduler.remove(flow, self.now)
            if not transfer.flows:
                self.done[transfer] = self.now
        else:
            self.scheduler.ready(flow, self.now)
