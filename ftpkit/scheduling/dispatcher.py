"""The dispatcher: threads that carry transfers wait here for their turns."""

import math
import threading
import time
from collections.abc import Callable
from typing import Final

from ftpkit.errors import Code, ConnectionLostError, RefusedError
from ftpkit.scheduling.limit import Rates
from ftpkit.scheduling.policies import Policy
from ftpkit.scheduling.remote import Remote
from ftpkit.scheduling.schedule import Schedule, Standing
from ftpkit.scheduling.transfer import Account, Lane, State, Transfer

# WIRE.md promises that within 5 seconds a request is answered, or bytes move for it.
LONGEST_WAIT_S: Final = 4.0


class Dispatcher:
    """Gives the turns of a ``Schedule`` to threads, and wakes only the one whose turn it is.

    Where nobody may go on before a certain time, one of those that wait watches the
    clock for all of them: there is no thread for it. Whoever has waited for
    ``longest_wait_s`` is given a small turn, so that nobody's peer takes us for dead.
    """

    def __init__(
        self,
        schedule: Schedule | Remote,
        *,
        clock: Callable[[], float] = time.monotonic,
        longest_wait_s: float = LONGEST_WAIT_S,
    ) -> None:
        self._schedule, self._clock, self._longest_wait_s = schedule, clock, longest_wait_s
        self._lock = threading.Lock()
        self._waiting: dict[Lane, Carrier] = {}
        self._watch: Carrier | None = None
        self._watch_until_s = math.inf
        self._stopped = False

    @property
    def shaped(self) -> bool:
        """Whether there is any limit; where there is none, nobody needs to take turns."""
        return self._schedule.shaped

    def join(self, transfer: Transfer) -> "Carrier":
        """Return what takes turns for one more connection that carries ``transfer``."""
        with self._lock:
            return Carrier(self, self._schedule.join(transfer), threading.Condition(self._lock))

    def configure(self, policy: Policy, *, slots: int | None, rates_bps: Rates) -> None:
        """Go on with another policy and other limits."""
        with self._lock:
            now = self._clock()
            self._schedule.configure(policy, slots=slots, rates_bps=rates_bps, now=now)
            self._hand_out(now)

    def limit(self, account: Account, rates_bps: Rates) -> None:
        """Go on with other limits for ``account``."""
        with self._lock:
            now = self._clock()
            self._schedule.limit(account, rates_bps, now)
            self._hand_out(now)

    def hand_out(self) -> None:
        """Give the turns that others have given to the schedule."""
        with self._lock:
            self._hand_out(self._clock())

    def stop(self) -> None:
        """Give no more turns: whoever waits for one, or asks for one later, is refused."""
        with self._lock:
            self._stopped = True
            for carrier in self._waiting.values():
                carrier.woken.notify()
            self._waiting.clear()

    def snapshot(self) -> list[Standing]:
        """Return how all transfers stand, in the order in which they came."""
        with self._lock:
            return self._schedule.snapshot(self._clock())

    def _take(self, carrier: "Carrier") -> int:
        lane = carrier.lane
        with self._lock:
            self._check(lane)
            now = self._clock()
            self._schedule.ready(lane, now)
            self._waiting[lane] = carrier
            self._hand_out(now)
            hurry_at = now + self._longest_wait_s
            while lane in self._waiting:
                carrier.woken.wait(min(self._patience_s(carrier), hurry_at - now))
                now = self._clock()
                if lane in self._waiting and now >= hurry_at:
                    hurry_at = now + self._longest_wait_s
                    self._schedule.hurry(lane, now)
                    if lane.state is State.RUNNING:
                        self._wake(lane)
                elif carrier is self._watch:
                    self._watch_until_s = math.inf
                self._hand_out(now)
            self._check(lane)
            return lane.size

    def _gave_up(self, lane: Lane, moved: int) -> None:
        with self._lock:
            now = self._clock()
            self._schedule.gave_up(lane, moved, now)
            self._hand_out(now)

    def _leave(self, lane: Lane) -> None:
        with self._lock:
            now = self._clock()
            self._schedule.leave(lane, now)
            self._wake(lane)
            self._hand_out(now)

    def _check(self, lane: Lane) -> None:
        if self._stopped:
            raise RefusedError(Code.SHUTTING_DOWN, "the server is stopping")
        if lane.state is State.DONE:
            raise ConnectionLostError("the transfer was taken from this connection")

    def _hand_out(self, now: float) -> None:
        """Give all turns that there are, and see to it that somebody looks for the next."""
        if not self._waiting:
            return
        while (lane := self._schedule.next(now)) is not None:
            self._wake(lane)
        if self._watch is None or self._watch.lane not in self._waiting:
            self._watch = next(iter(self._waiting.values()), None)
            self._watch_until_s = math.inf
        if self._watch is not None and (at := self._schedule.next_at()) < self._watch_until_s:
            self._watch_until_s = at
            self._watch.woken.notify()

    def _wake(self, lane: Lane) -> None:
        carrier = self._waiting.pop(lane, None)
        if carrier is not None:
            carrier.woken.notify()

    def _patience_s(self, carrier: "Carrier") -> float:
        if carrier is not self._watch:
            return math.inf
        return max(0.0, self._watch_until_s - self._clock())


class Carrier:
    """Takes turns for one connection that carries a transfer; one thread at a time uses it."""

    __slots__ = ("_dispatcher", "lane", "woken")

    def __init__(self, dispatcher: Dispatcher, lane: Lane, woken: threading.Condition) -> None:
        self._dispatcher, self.lane, self.woken = dispatcher, lane, woken

    def turn(self) -> int:
        """Wait for the next turn, and return how many bytes may move in it.

        Raises RefusedError once the dispatcher is stopped, and LinkError after ``leave``.
        """
        return self._dispatcher._take(self)

    def gave_up(self, moved: int) -> None:
        """End the turn, after so many bytes; without a turn, count what moved all the same."""
        self._dispatcher._gave_up(self.lane, moved)

    def leave(self) -> None:
        """Carry the transfer no longer. Any thread may call this, and again: a wait ends."""
        self._dispatcher._leave(self.lane)
