"""A schedule that another process keeps: what a dispatcher works with there is told to it."""

import itertools
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace

from ftpkit.scheduling.flow import Account, Flow, State, Transfer
from ftpkit.scheduling.policies import Policy
from ftpkit.scheduling.rate_limit import Rates
from ftpkit.scheduling.scheduler import Scheduler, TransferSnapshot


class RemoteScheduler:
    """Does what a ``Scheduler`` does, but for the turns: these it asks for, and is given.

    ``local`` has all transfers of this process, and counts what they move. ``send`` sends a
    message with what one of their flows does: "joins", the first time that there is
    anything to tell of it, "ready", "hurries", "gave_up" or "leaves"; or the "limit" of an
    account. To each "ready" there is one answer, a turn, with which ``arrived`` is called. Where
    there is no limit nothing is told.
    """

    def __init__(self, here: Scheduler, tell: Callable[..., None]) -> None:
        self._local, self._send = here, tell
        self._count = itertools.count()
        self._numbers: dict[Flow, int] = {}
        self._flows: dict[int, Flow] = {}
        self._arrived: deque[tuple[int, int]] = deque()
        self.positions: Mapping[int | None, int] = {}
        """The places in their queues of transfers that wait, by their ``order``."""

    @property
    def has_limits(self) -> bool:
        """Whether there is any limit, so that turns make a difference."""
        return self._local.has_limits

    def add_flow(self, transfer: Transfer) -> Flow:
        """Return a new flow of ``transfer``."""
        return self._local.add_flow(transfer)

    def ready(self, flow: Flow, now: float) -> None:
        """Ask for a turn for ``flow``."""
        number = self._number(flow)
        flow.state = State.READY
        self._send(what="ready", lane=number)

    def force_grant(self, flow: Flow, now: float) -> None:
        """Ask for a small turn for ``flow`` although it is not due; it comes as others do."""
        self._send(what="hurries", lane=self._numbers[flow])

    def granted(self, number: int, size: int) -> None:
        """Take a turn of ``size`` bytes for a flow; any thread may call this."""
        self._arrived.append((number, size))

    def grant_next(self, now: float) -> Flow | None:
        """Give a turn that has arrived to the flow that is returned."""
        while self._arrived:
            number, size = self._arrived.popleft()
            flow = self._flows.get(number)
            if flow is not None:  # else it left before
                flow.state, flow.size = State.RUNNING, size
                return flow
        return None

    def next_at(self) -> float:
        """Return that nobody needs to watch the clock."""
        return math.inf

    def release(self, flow: Flow, moved: int, now: float) -> None:
        """Note that ``flow`` moved so many bytes, and ended its turn if it had one."""
        if flow.state is not State.DONE:  # it may have left, in another thread
            if self.has_limits or flow in self._numbers:
                self._send(what="gave_up", lane=self._number(flow), moved=moved)
            self._rest(flow)
        self._local.release(flow, moved, now)

    def remove(self, flow: Flow, now: float) -> None:
        """Take ``flow`` out, whatever it does; again is no harm."""
        number = self._numbers.pop(flow, None)
        if number is not None:
            del self._flows[number]
            self._send(what="leaves", lane=number)
            self._rest(flow)
        self._local.remove(flow, now)

    def configure(
        self, policy: Policy, *, slots: int | None, bytes_per_s_by_direction: Rates, now: float
    ) -> None:
        """Go on with another policy and other limits, as the other process does."""
        self._local.configure(
            policy, slots=slots, bytes_per_s_by_direction=bytes_per_s_by_direction, now=now
        )

    def set_rates(self, account: Account, bytes_per_s_by_direction: Rates, now: float) -> None:
        """Go on with other limits for ``account``, as the other process does."""
        self._local.set_rates(account, bytes_per_s_by_direction, now)
        self._send(what="limit", user=account.user, rates_bps=bytes_per_s_by_direction)

    def snapshot(self, now: float) -> list[TransferSnapshot]:
        """Return how the transfers of this process stand, in the order in which they came."""
        return [
            replace(each, position=self.positions.get(each.order))
            for each in self._local.snapshot(now)
        ]

    def _number(self, flow: Flow) -> int:
        """Return the number by which the other process knows ``flow``, and tell it if it is new."""
        number = self._numbers.get(flow)
        if number is None:
            number = self._numbers[flow] = next(self._count)
            self._flows[number] = flow
            transfer, account = flow.transfer, flow.transfer.account
            self._send(
                what="joins",
                lane=number,
                order=transfer.order,
                user=account.user,
                weight=account.weight,
                rates_bps=account.bytes_per_s_by_direction,
                name=transfer.name,
                direction=transfer.direction,
                total=transfer.total,
                moved=transfer.moved,
            )
        return number

    def _rest(self, flow: Flow) -> None:
        """Let ``flow`` have no turn: ``local`` has given none."""
        flow.state, flow.size = State.BLOCKED, 0
