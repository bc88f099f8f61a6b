"""Which flow is granted the next quantum, over both directions: pure, time is an argument."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ftpkit.scheduling.fair_queue import FairQueue
from ftpkit.scheduling.flow import Account, Flow, FlowState, Transfer
from ftpkit.scheduling.policies import Policy
from ftpkit.scheduling.rate_limit import Direction, Rates

# Without quanta, a transfer that moved bytes so recently is shown as running.
_RECENT_S: Final = 0.1
# Enough to reopen a TCP window.
_FORCED_QUANTUM: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSnapshot:
    """State of one transfer; ``position`` is its place in its direction's queue, from 1."""

    transfer: Transfer
    state: FlowState
    bytes_per_s: float
    position: int | None


class Scheduler:
    """Grants quanta of bytes to flows, in the order of a policy.

    At most ``slots`` flows hold a quantum at once, and each direction keeps to ``bytes_per_s``;
    None and a missing direction are no limit. After every change call ``grant_next`` until it
    returns None, and again at ``next_at``.
    """

    def __init__(
        self, policy: Policy, *, slots: int | None = None, bytes_per_s: Rates | None = None
    ) -> None:
        self._policy, self._slots = policy, slots
        rates = bytes_per_s or {}
        self._fair_queues = {each: FairQueue(policy, rates.get(each)) for each in Direction}
        # The direction that was granted last comes last.
        self._rotation = list(self._fair_queues.values())
        self._transfers: dict[Transfer, None] = {}
        self._orders = itertools.count()
        self._running = 0
        self._limited_flows = 0

    @property
    def has_limits(self) -> bool:
        """Whether there is any limit; without one, flows need no quanta."""
        return (
            self._slots is not None
            or any(fair_queue.limit.bytes_per_s is not None for fair_queue in self._rotation)
            or self._limited_flows > 0
        )

    def add_flow(self, transfer: Transfer) -> Flow:
        if transfer.order is None:
            transfer.order = next(self._orders)
        self._transfers[transfer] = None
        self._limited_flows += bool(transfer.account.bytes_per_s)
        flow = Flow(transfer, transfer.account.queues[transfer.direction])
        transfer.flows.append(flow)
        return flow

    def ready(self, flow: Flow, now: float) -> None:
        """Queue ``flow`` for a quantum of ``flow.size`` bytes."""
        flow.state = FlowState.READY
        self._fair_queues[flow.transfer.direction].push(flow, now)

    def grant_next(self, now: float) -> Flow | None:
        """Grant the next quantum and return its flow; None if none is due or no slot is free."""
        if self._slots is not None and self._running >= self._slots:
            return None
        for fair_queue in self._rotation:
            flow = fair_queue.pop(now)
            if flow is not None:
                if fair_queue is self._rotation[0]:
                    self._rotation.reverse()
                flow.state = FlowState.RUNNING
                self._running += 1
                return flow
        return None

    def force_grant(self, flow: Flow, now: float) -> None:
        """Grant ``flow``, which is ready, a small quantum regardless of limits and slots."""
        self._fair_queues[flow.transfer.direction].force_grant(flow, _FORCED_QUANTUM, now)
        flow.state = FlowState.RUNNING
        self._running += 1

    def next_at(self) -> float:
        """Return the earliest time at which ``grant_next`` can grant; inf: not by time alone."""
        if self._slots is not None and self._running >= self._slots:
            return math.inf
        first, last = self._rotation
        return min(first.next_at(), last.next_at())

    def release(self, flow: Flow, moved: int, now: float) -> None:
        """Count ``moved`` bytes of ``flow``, and end its quantum if it holds one."""
        if flow.state is FlowState.RUNNING:
            flow.state = FlowState.BLOCKED
            self._running -= 1
        self._fair_queues[flow.transfer.direction].release(flow, moved, now)

    def remove(self, flow: Flow, now: float) -> None:
        """Remove ``flow`` in whatever state it is; safe to call again."""
        if flow.state is FlowState.DONE:
            return
        transfer = flow.transfer
        if flow.state is FlowState.READY:
            self._fair_queues[transfer.direction].remove(flow, now)
            flow.size = 0
        elif flow.state is FlowState.RUNNING:
            self.release(flow, 0, now)
        flow.state = FlowState.DONE
        transfer.flows.remove(flow)
        self._limited_flows -= bool(transfer.account.bytes_per_s)
        if not transfer.flows:
            del self._transfers[transfer]

    def configure(
        self, policy: Policy, *, slots: int | None, bytes_per_s: Rates, now: float
    ) -> None:
        """Change the policy and the limits, also for flows that wait."""
        self._policy, self._slots = policy, slots
        for direction, fair_queue in self._fair_queues.items():
            fair_queue.limit.set_rate(bytes_per_s.get(direction), now)
            fair_queue.reorder(policy, now)

    def set_rates(self, account: Account, bytes_per_s: Rates, now: float) -> None:
        """Change the limits of ``account``, also for its flows that wait."""
        account.bytes_per_s = bytes_per_s
        for direction, account_queue in account.queues.items():
            account_queue.limit.set_rate(bytes_per_s.get(direction), now)
            self._fair_queues[direction].reorder(self._policy, now)
        self._limited_flows = sum(
            len(each.flows) for each in self._transfers if each.account.bytes_per_s
        )

    def snapshot(self, now: float) -> list[TransferSnapshot]:
        """Return the state of all transfers, in the order of their arrival."""
        positions = self.positions()
        return [
            TransferSnapshot(
                transfer=transfer,
                state=self._state(transfer, now),
                bytes_per_s=transfer.meter.bytes_per_s(now),
                position=positions.get(transfer),
            )
            for transfer in self._transfers
        ]

    def positions(self) -> Mapping[Transfer, int]:
        """Return the places of the waiting transfers, from 1 in each direction."""
        positions: dict[Transfer, int] = {}
        for fair_queue in self._rotation:
            waiting = dict.fromkeys(flow.transfer for flow in fair_queue.flows())
            positions.update((transfer, i) for i, transfer in enumerate(waiting, 1))
        return positions

    def _state(self, transfer: Transfer, now: float) -> FlowState:
        recent = now - transfer.moved_s < _RECENT_S
        if transfer.state is FlowState.BLOCKED and recent and not self.has_limits:
            return FlowState.RUNNING
        return transfer.state
