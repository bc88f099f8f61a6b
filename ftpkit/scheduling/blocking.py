"""The dispatcher: threads that carry transfers wait here for their turns."""

import math
import threading
import time
from collections.abc import Callable
from typing import Final

from ftpkit.errors import Code, ConnectionLostError, RefusedError
from ftpkit.scheduling.flow import Account, Flow, State, Transfer
from ftpkit.scheduling.policies import Policy
from ftpkit.scheduling.rate_limit import Rates
from ftpkit.scheduling.remote import RemoteScheduler
from ftpkit.scheduling.scheduler import Scheduler, TransferSnapshot

# WIRE.md promises that within 5 seconds a request is answered, or bytes move for it.
LONGEST_WAIT_S: Final = 4.0


class BlockingScheduler:
    """Gives the turns of a ``Scheduler`` to threads, and wakes only the one whose turn it is.

    Where nobody may go on before a certain time, one of those that wait watches the
    clock for all of them: there is no thread for it. Whoever has waited for
    ``longest_wait_s`` is given a small turn, so that nobody's peer takes us for dead.
    """

    def __init__(
        self,
        schedule: Scheduler | RemoteScheduler,
        *,
        clock: Callable[[], float] = time.monotonic,
        longest_wait_s: float = LONGEST_WAIT_S,
    ) -> None:
        self._scheduler, self._clock, self._longest_wait_s = schedule, clock, longest_wait_s
        self._lock = threading.Lock()
        self._waiting: dict[Flow, TurnHandle] = {}
        self._watch: TurnHandle | None = None
        self._watch_until_s = math.inf
        self._stopped = False

    @property
    def has_limits(self) -> bool:
        """Whether there is any limit; where there is none, nobody needs to take turns."""
        return self._scheduler.has_limits

    def add_flow(self, transfer: Transfer) -> "TurnHandle":
        """Return what takes turns for one more connection that carries ``transfer``."""
        with self._lock:
            return TurnHandle(
                self, self._scheduler.add_flow(transfer), threading.Condition(self._lock)
            )

    def configure(
        self, policy: Policy, *, slots: int | None, bytes_per_s_by_direction: Rates
    ) -> None:
        """Go on with another policy and other limits."""
        with self._lock:
            now = self._clock()
            self._scheduler.configure(
                policy, slots=slots, bytes_per_s_by_direction=bytes_per_s_by_direction, now=now
            )
            self._grant_due(now)

    def set_rates(self, account: Account, bytes_per_s_by_direction: Rates) -> None:
        """Go on with other limits for ``account``."""
        with self._lock:
            now = self._clock()
            self._scheduler.set_rates(account, bytes_per_s_by_direction, now)
            self._grant_due(now)

    def grant_due(self) -> None:
        """Give the turns that others have given to the schedule."""
        with self._lock:
            self._grant_due(self._clock())

    def stop(self) -> None:
        """Give no more turns: whoever waits for one, or asks for one later, is refused."""
        with self._lock:
            self._stopped = True
            for handle in self._waiting.values():
                handle.woken.notify()
            self._waiting.clear()

    def snapshot(self) -> list[TransferSnapshot]:
        """Return how all transfers stand, in the order in which they came."""
        with self._lock:
            return self._scheduler.snapshot(self._clock())

    def _acquire(self, handle: "TurnHandle") -> int:
        flow = handle.flow
        with self._lock:
            self._check(flow)
            now = self._clock()
            self._scheduler.ready(flow, now)
            self._waiting[flow] = handle
            self._grant_due(now)
            hurry_at = now + self._longest_wait_s
            while flow in self._waiting:
                handle.woken.wait(min(self._patience_s(handle), hurry_at - now))
                now = self._clock()
                if flow in self._waiting and now >= hurry_at:
                    hurry_at = now + self._longest_wait_s
                    self._scheduler.force_grant(flow, now)
                    if flow.state is State.RUNNING:
                        self._wake(flow)
                elif handle is self._watch:
                    self._watch_until_s = math.inf
                self._grant_due(now)
            self._check(flow)
            return flow.size

    def _release(self, flow: Flow, moved: int) -> None:
        with self._lock:
            now = self._clock()
            self._scheduler.release(flow, moved, now)
            self._grant_due(now)

    def _remove(self, flow: Flow) -> None:
        with self._lock:
            now = self._clock()
            self._scheduler.remove(flow, now)
            self._wake(flow)
            self._grant_due(now)

    def _check(self, flow: Flow) -> None:
        if self._stopped:
            raise RefusedError(Code.SHUTTING_DOWN, "the server is stopping")
        if flow.state is State.DONE:
            raise ConnectionLostError("the transfer was taken from this connection")

    def _grant_due(self, now: float) -> None:
        """Give all turns that there are, and see to it that somebody looks for the next."""
        if not self._waiting:
            return
        while (flow := self._scheduler.grant_next(now)) is not None:
            self._wake(flow)
        if self._watch is None or self._watch.flow not in self._waiting:
            self._watch = next(iter(self._waiting.values()), None)
            self._watch_until_s = math.inf
        if self._watch is not None and (at := self._scheduler.next_at()) < self._watch_until_s:
            self._watch_until_s = at
            self._watch.woken.notify()

    def _wake(self, flow: Flow) -> None:
        handle = self._waiting.pop(flow, None)
        if handle is not None:
            handle.woken.notify()

    def _patience_s(self, handle: "TurnHandle") -> float:
        if handle is not self._watch:
            return math.inf
        return max(0.0, self._watch_until_s - self._clock())


class TurnHandle:
    """Takes turns for one connection that carries a transfer; one thread at a time uses it."""

    __slots__ = ("_scheduler", "flow", "woken")

    def __init__(
        self, dispatcher: BlockingScheduler, flow: Flow, woken: threading.Condition
    ) -> None:
        self._scheduler, self.flow, self.woken = dispatcher, flow, woken

    def acquire(self) -> int:
        """Wait for the next turn, and return how many bytes may move in it.

        Raises RefusedError once the dispatcher is stopped, and ConnectionLostError after ``leave``.
        """
        return self._scheduler._acquire(self)

    def release(self, moved: int) -> None:
        """End the turn, after so many bytes; without a turn, count what moved all the same."""
        self._scheduler._release(self.flow, moved)

    def close(self) -> None:
        """Carry the transfer no longer. Any thread may call this, and again: a wait ends."""
        self._scheduler._remove(self.flow)
