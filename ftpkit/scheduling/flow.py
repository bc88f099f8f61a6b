"""Transfers, the accounts that own them, and the flows that carry them."""

from dataclasses import dataclass, field
from enum import StrEnum

from ftpkit.scheduling.meter import Meter
from ftpkit.scheduling.ranked_queue import RankedQueue
from ftpkit.scheduling.rate_limit import Direction, RateLimiter, Rates


class FlowState(StrEnum):
    """State of a flow or transfer, in the terms of operating systems."""

    READY = "ready"  # waits for a quantum
    RUNNING = "running"  # moves a quantum
    BLOCKED = "blocked"  # waits for the network or the disk
    DONE = "done"


class AccountQueue:
    """The rate limit and the waiting flows of one account in one direction.

    ``start`` and ``finish`` are the account's tags of start-time fair queueing.
    """

    __slots__ = ("finish", "limit", "start", "waiting")

    def __init__(self, bytes_per_s: float | None) -> None:
        self.limit = RateLimiter(bytes_per_s)
        self.waiting: RankedQueue[Flow] = RankedQueue()
        self.start = self.finish = 0.0


class Account:
    """A user; all transfers of a user must share one object, and with it the limits.

    ``weight`` is its share relative to other accounts under policies that share;
    ``bytes_per_s`` limits all its transfers together.
    """

    __slots__ = ("__weakref__", "bytes_per_s", "queues", "user", "weight")

    def __init__(self, user: str, *, weight: float = 1.0, bytes_per_s: Rates | None = None) -> None:
        if not weight > 0:
            raise ValueError("a weight must be greater than 0")
        self.user, self.weight = user, weight
        self.bytes_per_s: Rates = bytes_per_s or {}
        self.queues = {each: AccountQueue(self.bytes_per_s.get(each)) for each in Direction}


@dataclass(slots=True, eq=False, weakref_slot=True)
class Transfer:
    """One file in transfer; ``total`` is its size in bytes, None if unknown.

    ``order`` numbers transfers by arrival; ``start`` and ``finish`` are the tags of
    start-time fair queueing of the flow that became ready last.
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
        if count:
            self.moved += count
            self.moved_s = now
            self.meter.moved(count, now)

    @property
    def left(self) -> int | None:
        """Bytes still to move; None if the size is unknown."""
        if self.total is None:
            return None
        left = self.total - self.moved
        return left if left > 0 else 0

    @property
    def state(self) -> FlowState:
        """RUNNING if any flow is, else READY if any flow is, and so on."""
        states = {flow.state for flow in self.flows}
        order = (FlowState.RUNNING, FlowState.READY, FlowState.BLOCKED)
        return next((state for state in order if state in states), FlowState.DONE)


@dataclass(slots=True, eq=False)
class Flow:
    """One connection that carries a transfer; quanta are granted to flows.

    ``size`` is the quantum in bytes that it waits for or holds; ``start`` is its start tag.
    """

    transfer: Transfer
    account_queue: AccountQueue
    state: FlowState = FlowState.BLOCKED
    size: int = 0
    start: float = 0.0
