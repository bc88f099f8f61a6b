"""The scheduler for threads: each waits here for its next quantum."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ftpkit.errors import Code, ConnectionLostError, RefusedError
from ftpkit.scheduling.flow import Account, Flow, FlowState, Transfer
from ftpkit.scheduling.policies import Policy
from ftpkit.scheduling.rate_limit import Rates
from ftpkit.scheduling.remote import RemoteScheduler
from ftpkit.scheduling.scheduler import Scheduler, TransferSnapshot

# WIRE.md promises a reply, or bytes, within 5 seconds of a request.
LONGEST_WAIT_S: Final = 4.0


class BlockingScheduler:
    """Grants the quanta of a ``Scheduler`` to threads, and wakes only the thread concerned.

    There is no thread for time: while grants depend on it, one of the waiting threads
    watches the clock for all. A thread that has waited for ``longest_wait_s`` is granted a small
    quantum, so that its peer does not time out.
    """

    def __init__(
        self,
        scheduler: Scheduler | RemoteScheduler,
        *,
        clock: Callable[[], float] = time.monotonic,
        longest_wait_s: float = LONGEST_WAIT_S,
    ) -> None:
        self._scheduler, self._clock, self._longest_wait_s = scheduler, clock, longest_wait_s
        self._lock = threading.Lock()
        self._waiting: dict[Flow, TurnHandle] = {}
        # The handle whose thread watches the clock, and until when it waits.
        self._timer: TurnHandle | None = None
        self._timer_until_s = math.inf
        self._stopped = False

    @property
    def has_limits(self) -> bool:
        return self._scheduler.has_limits

    def add_flow(self, transfer: Transfer) -> "TurnHandle":
        """Return the handle of one more connection that carries ``transfer``."""
        with self._lock:
            flow = self._scheduler.add_flow(transfer)
        return TurnHandle(self, flow, threading.Condition(self._lock))

    def configure(self, policy: Policy, *, slots: int | None, bytes_per_s: Rates) -> None:
        with self._lock:
            now = self._clock()
            self._scheduler.configure(policy, slots=slots, bytes_per_s=bytes_per_s, now=now)
            self._grant_due(now)

    def set_rates(self, account: Account, bytes_per_s: Rates) -> None:
        with self._lock:
            now = self._clock()
            self._scheduler.set_rates(account, bytes_per_s, now)
            self._grant_due(now)

    def grant_due(self) -> None:
        """Wake the threads whose quanta a ``RemoteScheduler`` has received."""
        with self._lock:
            self._grant_due(self._clock())

    def stop(self) -> None:
        """Make every ``acquire``, waiting or later, raise RefusedError."""
        with self._lock:
            self._stopped = True
            for handle in self._waiting.values():
                handle.woken.notify()
            self._waiting.clear()

    def snapshot(self) -> list[TransferSnapshot]:
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
            force_at = now + self._longest_wait_s
            while flow in self._waiting:
                until = min(force_at, self._timer_until_s) if handle is self._timer else force_at
                handle.woken.wait(max(0.0, until - now))
                now = self._clock()
                if flow in self._waiting and now >= force_at:
                    force_at = now + self._longest_wait_s
                    self._scheduler.force_grant(flow, now)
                    if flow.state is FlowState.RUNNING:
                        self._wake(flow)
                elif handle is self._timer:
                    self._timer_until_s = math.inf
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
        if flow.state is FlowState.DONE:
            raise ConnectionLostError("the connection no longer carries this transfer")

    def _grant_due(self, now: float) -> None:
        """Grant what is due, and make sure that a waiting thread watches the clock."""
        if not self._waiting:
            return
        while (flow := self._scheduler.grant_next(now)) is not None:
            self._wake(flow)
        if self._timer is None or self._timer.flow not in self._waiting:
            self._timer = next(iter(self._waiting.values()), None)
            self._timer_until_s = math.inf
        if self._timer is not None and (at := self._scheduler.next_at()) < self._timer_until_s:
            self._timer_until_s = at
            self._timer.woken.notify()

    def _wake(self, flow: Flow) -> None:
        handle = self._waiting.pop(flow, None)
        if handle is not None:
            handle.woken.notify()


@dataclass(slots=True, eq=False)
class TurnHandle:
    """Acquires and releases the quanta of one flow; one thread at a time uses it."""

    scheduler: BlockingScheduler
    flow: Flow
    woken: threading.Condition

    def acquire(self) -> int:
        """Wait for a quantum, and return how many bytes may move in it.

        Raises RefusedError once the scheduler is stopped, ConnectionLostError after ``close``.
        """
        return self.scheduler._acquire(self)

    def release(self, moved: int) -> None:
        """End the quantum and count ``moved`` bytes, which may also have moved without one."""
        self.scheduler._release(self.flow, moved)

    def close(self) -> None:
        """Remove the flow and end a wait for a quantum; any thread may call this, and again."""
        self.scheduler._remove(self.flow)
