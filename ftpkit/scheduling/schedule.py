"""Whose turn it is, over both directions: pure, for time is an argument."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ftpkit.scheduling.limit import Direction, Rates
from ftpkit.scheduling.link import Link
from ftpkit.scheduling.policies import Policy, level
from ftpkit.scheduling.transfer import Account, Lane, State, Transfer

_JUST_NOW_S: Final = 0.1
# What a window of TCP takes to open again.
_SMALL_TURN: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
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
    rate_bps: float
    arrived_s: float
    position: int | None


class Schedule:
    """Gives turns to lanes, each of so many bytes, in the order of a policy.

    At most ``slots`` lanes have a turn at once, and ``rates_bps``, bytes a second, are
    kept in each direction; None and a missing direction are no limit. After anything
    that it is told, call ``next`` until there is none, and at ``next_at`` again.
    """

    def __init__(
        self, policy: Policy, *, slots: int | None = None, rates_bps: Rates | None = None
    ) -> None:
        self._policy, self._slots = policy, slots
        rates = rates_bps or {}
        self._links = {each: Link(policy, rates.get(each)) for each in Direction}
        # The direction that was given a turn last comes last.
        self._rotation = list(self._links.values())
        self._transfers: dict[Transfer, None] = {}
        self._orders = itertools.count()
        self._running = 0
        self._limited = 0

    @property
    def shaped(self) -> bool:
        """Whether there is any limit, so that turns make a difference."""
        return (
            self._slots is not None
            or any(link.limit.rate_bps is not None for link in self._rotation)
            or self._limited > 0
        )

    def join(self, transfer: Transfer) -> Lane:
        """Return a new lane of ``transfer``."""
        if transfer.order is None:
            transfer.order = next(self._orders)
        self._transfers[transfer] = None
        self._limited += transfer.account.limited
        link, gate = self._links[transfer.direction], transfer.account.gates[transfer.direction]
        lane = Lane(transfer, link, gate)
        transfer.lanes.append(lane)
        return lane

    def ready(self, lane: Lane, now: float) -> None:
        """Note that bytes can move in ``lane``: it waits for a turn of ``lane.size`` bytes."""
        lane.state = State.READY
        lane.link.push(lane, now)

    def next(self, now: float) -> Lane | None:
        """Give a turn to the lane that is returned, if one may have it now."""
        if self._slots is not None and self._running >= self._slots:
            return None
        for link in self._rotation:
            lane = link.pop(now)
            if lane is not None:
                if link is self._rotation[0]:
                    self._rotation.reverse()
                lane.state = State.RUNNING
                self._running += 1
                return lane
        return None

    def hurry(self, lane: Lane, now: float) -> None:
        """Give ``lane`` a small turn although it is not due, and whatever the slots."""
        self._links[lane.transfer.direction].hurry(lane, _SMALL_TURN, now)
        lane.state = State.RUNNING
        self._running += 1

    def next_at(self) -> float:
        """Return when to ask again if nothing happens before; inf for never."""
        if self._slots is not None and self._running >= self._slots:
            return math.inf
        first, last = self._rotation
        return min(first.next_at(), last.next_at())

    def gave_up(self, lane: Lane, moved: int, now: float) -> None:
        """Note that ``lane`` moved so many bytes, and ended its turn if it had one."""
        if lane.state is State.RUNNING:
            lane.state = State.BLOCKED
            self._running -= 1
        lane.link.end(lane, moved, now)

    def leave(self, lane: Lane, now: float) -> None:
        """Take ``lane`` out, whatever it does; again is no harm."""
        if lane.state is State.DONE:
            return
        if lane.state is State.READY:
            lane.link.withdraw(lane, now)
            lane.size = 0
        elif lane.state is State.RUNNING:
            self.gave_up(lane, 0, now)
        lane.state = State.DONE
        lane.transfer.lanes.remove(lane)
        self._limited -= lane.transfer.account.limited
        if not lane.transfer.lanes:
            del self._transfers[lane.transfer]

    def configure(self, policy: Policy, *, slots: int | None, rates_bps: Rates, now: float) -> None:
        """Go on with another policy and other limits."""
        self._policy, self._slots = policy, slots
        for direction, link in self._links.items():
            link.limit.change(rates_bps.get(direction), now)
            link.reorder(policy, now)

    def limit(self, account: Account, rates_bps: Rates, now: float) -> None:
        """Go on with other limits for ``account``."""
        for direction, gate in account.gates.items():
            gate.limit.change(rates_bps.get(direction), now)
            self._links[direction].reorder(self._policy, now)
        self._limited = sum(len(each.lanes) for each in self._transfers if each.account.limited)

    def snapshot(self, now: float) -> list[Standing]:
        """Return how all transfers stand, in the order in which they came."""
        positions = self.positions()
        return [
            Standing(
                order=transfer.order,
                user=transfer.account.user,
                peer=transfer.peer,
                name=transfer.name,
                direction=transfer.direction,
                state=self._state(transfer, now),
                level=level(transfer.moved),
                moved=transfer.moved,
                total=transfer.total,
                rate_bps=transfer.meter.rate_bps(now),
                arrived_s=transfer.arrived_s,
                position=positions.get(transfer),
            )
            for transfer in self._transfers
        ]

    def positions(self) -> Mapping[Transfer, int]:
        """Return the places of those that wait, each in its direction, from 1."""
        positions: dict[Transfer, int] = {}
        for link in self._rotation:
            waiting = dict.fromkeys(lane.transfer for lane in link.lanes())
            positions.update((transfer, i) for i, transfer in enumerate(waiting, 1))
        return positions

    def _state(self, transfer: Transfer, now: float) -> State:
        """Return its state; without turns it runs if it has moved just now."""
        state = transfer.state
        if state is State.BLOCKED and not self.shaped and now - transfer.moved_s < _JUST_NOW_S:
            return State.RUNNING
        return state
