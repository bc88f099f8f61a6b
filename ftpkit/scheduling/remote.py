"""A schedule that another process keeps: what a dispatcher works with there is told to it."""

import itertools
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace

from ftpkit.scheduling.limit import Rates
from ftpkit.scheduling.policies import Policy
from ftpkit.scheduling.schedule import Schedule, Standing
from ftpkit.scheduling.transfer import Account, Lane, State, Transfer


class Remote:
    """Does what a ``Schedule`` does, but for the turns: these it asks for, and is given.

    ``here`` has all transfers of this process, and counts what they move. ``tell`` sends a
    message with what one of their lanes does: "joins", the first time that there is
    anything to tell of it, "ready", "hurries", "gave_up" or "leaves"; or the "limit" of an
    account. To each "ready" there is one answer, a turn, with which ``arrived`` is called. Where
    there is no limit nothing is told.
    """

    def __init__(self, here: Schedule, tell: Callable[..., None]) -> None:
        self._here, self._tell = here, tell
        self._count = itertools.count()
        self._numbers: dict[Lane, int] = {}
        self._lanes: dict[int, Lane] = {}
        self._arrived: deque[tuple[int, int]] = deque()
        self.positions: Mapping[int | None, int] = {}
        """The places in their queues of transfers that wait, by their ``order``."""

    @property
    def shaped(self) -> bool:
        """Whether there is any limit, so that turns make a difference."""
        return self._here.shaped

    def join(self, transfer: Transfer) -> Lane:
        """Return a new lane of ``transfer``."""
        return self._here.join(transfer)

    def ready(self, lane: Lane, now: float) -> None:
        """Ask for a turn for ``lane``."""
        number = self._number(lane)
        lane.state = State.READY
        self._tell(what="ready", lane=number)

    def hurry(self, lane: Lane, now: float) -> None:
        """Ask for a small turn for ``lane`` although it is not due; it comes as others do."""
        self._tell(what="hurries", lane=self._numbers[lane])

    def arrived(self, number: int, size: int) -> None:
        """Take a turn of ``size`` bytes for a lane; any thread may call this."""
        self._arrived.append((number, size))

    def next(self, now: float) -> Lane | None:
        """Give a turn that has arrived to the lane that is returned."""
        while self._arrived:
            number, size = self._arrived.popleft()
            lane = self._lanes.get(number)
            if lane is not None:  # else it left before
                lane.state, lane.size = State.RUNNING, size
                return lane
        return None

    def next_at(self) -> float:
        """Return that nobody needs to watch the clock."""
        return math.inf

    def gave_up(self, lane: Lane, moved: int, now: float) -> None:
        """Note that ``lane`` moved so many bytes, and ended its turn if it had one."""
        if lane.state is not State.DONE:  # it may have left, in another thread
            if self.shaped or lane in self._numbers:
                self._tell(what="gave_up", lane=self._number(lane), moved=moved)
            self._rest(lane)
        self._here.gave_up(lane, moved, now)

    def leave(self, lane: Lane, now: float) -> None:
        """Take ``lane`` out, whatever it does; again is no harm."""
        number = self._numbers.pop(lane, None)
        if number is not None:
            del self._lanes[number]
            self._tell(what="leaves", lane=number)
            self._rest(lane)
        self._here.leave(lane, now)

    def configure(self, policy: Policy, *, slots: int | None, rates_bps: Rates, now: float) -> None:
        """Go on with another policy and other limits, as the other process does."""
        self._here.configure(policy, slots=slots, rates_bps=rates_bps, now=now)

    def limit(self, account: Account, rates_bps: Rates, now: float) -> None:
        """Go on with other limits for ``account``, as the other process does."""
        self._here.limit(account, rates_bps, now)
        self._tell(what="limit", user=account.user, rates_bps=rates_bps)

    def snapshot(self, now: float) -> list[Standing]:
        """Return how the transfers of this process stand, in the order in which they came."""
        return [
            replace(each, position=self.positions.get(each.order))
            for each in self._here.snapshot(now)
        ]

    def _number(self, lane: Lane) -> int:
        """Return the number by which the other process knows ``lane``, and tell it if it is new."""
        number = self._numbers.get(lane)
        if number is None:
            number = self._numbers[lane] = next(self._count)
            self._lanes[number] = lane
            transfer, account = lane.transfer, lane.transfer.account
            self._tell(
                what="joins",
                lane=number,
                order=transfer.order,
                user=account.user,
                weight=account.weight,
                rates_bps=account.rates_bps,
                name=transfer.name,
                direction=transfer.direction,
                total=transfer.total,
                moved=transfer.moved,
            )
        return number

    def _rest(self, lane: Lane) -> None:
        """Let ``lane`` have no turn: ``here`` has given none."""
        lane.state, lane.size = State.BLOCKED, 0
