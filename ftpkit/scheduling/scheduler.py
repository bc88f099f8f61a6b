"""Whose turn it is, over both directions: pure, for time is an argument."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ftpkit.scheduling.fair_queue import FairQueue
from ftpkit.scheduling.flow import Account, Flow, State, Transfer
from ftpkit.scheduling.policies import Policy, level
from ftpkit.scheduling.rate_limit import Direction, Rates

_JUST_NOW_S: Final = 0.1
# What a window of TCP takes to open again.
_SMALL_TURN: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSnapshot:
    """How a transfer stands; ``position`` counts those that wait in its direction from 1."""

    order: int | None
    user: str
    peer: str
    name: str
    direction: Direction
    state: State
    level: int
    moved: int
    total: int | None
    bytes_per_s: float
    arrived_s: float
    position: int | None


class Scheduler:
    """Gives turns to flows, each of so many bytes, in the order of a policy.

    At most ``slots`` flows have a turn at once, and ``bytes_per_s_by_direction`` are
    kept in each direction; None and a missing direction are no limit. After anything
    that it is told, call ``next`` until there is none, and at ``next_at`` again.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        slots: int | None = None,
        bytes_per_s_by_direction: Rates | None = None,
    ) -> None:
        self._policy, self._slots = policy, slots
        rates = bytes_per_s_by_direction or {}
        self._fair_queues = {each: FairQueue(policy, rates.get(each)) for each in Direction}
        # The direction that was given a turn last comes last.
        self._rotation = list(self._fair_queues.values())
        self._transfers: dict[Transfer, None] = {}
        self._orders = itertools.count()
        self._running = 0
        self._limited = 0

    @property
    def has_limits(self) -> bool:
        """Whether there is any limit, so that turns make a difference."""
        return (
            self._slots is not None
            or any(fair_queue.limit.bytes_per_s is not None for fair_queue in self._rotation)
            or self._limited > 0
        )

    def add_flow(self, transfer: Transfer) -> Flow:
        """Return a new flow of ``transfer``."""
        if transfer.order is None:
            transfer.order = next(self._orders)
        self._transfers[transfer] = None
        self._limited += transfer.account.limited
        fair_queue, account_queue = (
            self._fair_queues[transfer.direction],
            transfer.account.queues[transfer.direction],
        )
        flow = Flow(transfer, fair_queue, account_queue)
        transfer.flows.append(flow)
        return flow

    def ready(self, flow: Flow, now: float) -> None:
        """Note that bytes can move in ``flow``: it waits for a turn of ``flow.size`` bytes."""
        flow.state = State.READY
        flow.fair_queue.push(flow, now)

    def grant_next(self, now: float) -> Flow | None:
        """Give a turn to the flow that is returned, if one may have it now."""
        if self._slots is not None and self._running >= self._slots:
            return None
        for fair_queue in self._rotation:
            flow = fair_queue.pop(now)
            if flow is not None:
                if fair_queue is self._rotation[0]:
                    self._rotation.reverse()
                flow.state = State.RUNNING
                self._running += 1
                return flow
        return None

    def force_grant(self, flow: Flow, now: float) -> None:
        """Give ``flow`` a small turn although it is not due, and whatever the slots."""
        self._fair_queues[flow.transfer.direction].force_grant(flow, _SMALL_TURN, now)
        flow.state = State.RUNNING
        self._running += 1

    def next_at(self) -> float:
        """Return when to ask again if nothing happens before; inf for never."""
        if self._slots is not None and self._running >= self._slots:
            return math.inf
        first, last = self._rotation
        return min(first.next_at(), last.next_at())

    def release(self, flow: Flow, moved: int, now: float) -> None:
        """Note that ``flow`` moved so many bytes, and ended its turn if it had one."""
        if flow.state is State.RUNNING:
            flow.state = State.BLOCKED
            self._running -= 1
        flow.fair_queue.end(flow, moved, now)

    def remove(self, flow: Flow, now: float) -> None:
        """Take ``flow`` out, whatever it does; again is no harm."""
        if flow.state is State.DONE:
            return
        if flow.state is State.READY:
            flow.fair_queue.withdraw(flow, now)
            flow.size = 0
        elif flow.state is State.RUNNING:
            self.release(flow, 0, now)
        flow.state = State.DONE
        flow.transfer.flows.remove(flow)
        self._limited -= flow.transfer.account.limited
        if not flow.transfer.flows:
            del self._transfers[flow.transfer]

    def configure(
        self, policy: Policy, *, slots: int | None, bytes_per_s_by_direction: Rates, now: float
    ) -> None:
        """Go on with another policy and other limits."""
        self._policy, self._slots = policy, slots
        for direction, fair_queue in self._fair_queues.items():
            fair_queue.limit.change(bytes_per_s_by_direction.get(direction), now)
            fair_queue.reorder(policy, now)

    def set_rates(self, account: Account, bytes_per_s_by_direction: Rates, now: float) -> None:
        """Go on with other limits for ``account``."""
        for direction, account_queue in account.queues.items():
            account_queue.limit.change(bytes_per_s_by_direction.get(direction), now)
            self._fair_queues[direction].reorder(self._policy, now)
        self._limited = sum(len(each.flows) for each in self._transfers if each.account.limited)

    def snapshot(self, now: float) -> list[TransferSnapshot]:
        """Return how all transfers stand, in the order in which they came."""
        positions = self.positions()
        return [
            TransferSnapshot(
                order=transfer.order,
                user=transfer.account.user,
                peer=transfer.peer,
                name=transfer.name,
                direction=transfer.direction,
                state=self._state(transfer, now),
                level=level(transfer.moved),
                moved=transfer.moved,
                total=transfer.total,
                bytes_per_s=transfer.meter.bytes_per_s(now),
                arrived_s=transfer.arrived_s,
                position=positions.get(transfer),
            )
            for transfer in self._transfers
        ]

    def positions(self) -> Mapping[Transfer, int]:
        """Return the places of those that wait, each in its direction, from 1."""
        positions: dict[Transfer, int] = {}
        for fair_queue in self._rotation:
            waiting = dict.fromkeys(flow.transfer for flow in fair_queue.flows())
            positions.update((transfer, i) for i, transfer in enumerate(waiting, 1))
        return positions

    def _state(self, transfer: Transfer, now: float) -> State:
        """Return its state; without turns it runs if it has moved just now."""
        state = transfer.state
        if state is State.BLOCKED and not self.has_limits and now - transfer.moved_s < _JUST_NOW_S:
            return State.RUNNING
        return state
