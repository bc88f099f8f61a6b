"""Transfers, the accounts that they belong to, and the flows that carry them."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from ftpkit.scheduling.meter import Meter
from ftpkit.scheduling.ranked_queue import RankedQueue
from ftpkit.scheduling.rate_limit import Direction, RateLimiter, Rates

if TYPE_CHECKING:
    from ftpkit.scheduling.fair_queue import FairQueue


class State(StrEnum):
    """What a transfer does, in the words that operating systems have for processes."""

    READY = "ready"  # bytes can move; it waits for its turn
    RUNNING = "running"  # it moves a quantum
    BLOCKED = "blocked"  # it waits for the network or the disk
    DONE = "done"


class AccountQueue:
    """What an account has in one direction: its limit, and its flows that wait.

    ``start`` and ``finish`` are its tags of start-time fair queueing between accounts.
    """

    __slots__ = ("finish", "limit", "start", "waiting")

    def __init__(self, bytes_per_s: float | None) -> None:
        self.limit = RateLimiter(bytes_per_s)
        self.waiting: RankedQueue[Flow] = RankedQueue()
        self.start = self.finish = 0.0


class Account:
    """A user: one object for all transfers of it, for they share its limits.

    ``weight`` is its share beside others under policies that give shares;
    ``bytes_per_s_by_direction`` are bytes a second, over all its connections.
    """

    __slots__ = ("__weakref__", "queues", "user", "weight")

    def __init__(
        self, user: str, *, weight: float = 1.0, bytes_per_s_by_direction: Rates | None = None
    ) -> None:
        if not weight > 0:
            raise ValueError("a weight is more than 0")
        self.user, self.weight = user, weight
        rates = bytes_per_s_by_direction or {}
        self.queues = {direction: AccountQueue(rates.get(direction)) for direction in Direction}

    @property
    def bytes_per_s_by_direction(self) -> Rates:
        """Its own limits."""
        rates = {
            direction: account_queue.limit.bytes_per_s
            for direction, account_queue in self.queues.items()
        }
        return {direction: rate for direction, rate in rates.items() if rate is not None}

    @property
    def limited(self) -> bool:
        """Whether it has a limit of its own in either direction."""
        return any(
            account_queue.limit.bytes_per_s is not None for account_queue in self.queues.values()
        )


@dataclass(slots=True, eq=False, weakref_slot=True)
class Transfer:
    """One file on its way up or down; ``total`` is None where nobody knows the size.

    ``order`` counts transfers as they come; ``start`` and ``finish`` are the tags of
    start-time fair queueing, of the flow that became ready last.
    """

    account: Account
    name: str
    direction: Direction
    total: int | None
    arrived_s: float
    moved: int = 0
    peer: str = ""
    order: int | None = None
    start: float = 0.0
    finish: float = 0.0
    flows: "list[Flow]" = field(default_factory=list)
    meter: Meter = field(init=False)
    moved_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.meter, self.moved_s = Meter(self.arrived_s), self.arrived_s

    def move(self, count: int, now: float) -> None:
        """Note that so many bytes have moved."""
        if count:
            self.moved += count
            self.moved_s = now
            self.meter.moved(count, now)

    @property
    def left(self) -> int | None:
        """Bytes still to move, as far as it is known."""
        if self.total is None:
            return None
        left = self.total - self.moved
        return left if left > 0 else 0

    @property
    def state(self) -> State:
        """It runs if one of its flows does, and else is ready if one is."""
        states = {flow.state for flow in self.flows}
        order = (State.RUNNING, State.READY, State.BLOCKED)
        return next((state for state in order if state in states), State.DONE)


@dataclass(slots=True, eq=False)
class Flow:
    """One connection that carries a transfer: what waits for turns, and is given them.

    ``size`` is the bytes of the turn that it waits for or has; ``start`` is its tag.
    """

    transfer: Transfer
    fair_queue: "FairQueue"
    account_queue: AccountQueue
    state: State = State.BLOCKED
    size: int = 0
    start: float = 0.0
