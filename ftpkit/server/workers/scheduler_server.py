"""One scheduler for the transfers of all workers."""

import math
import threading
import time
from collections.abc import Callable
from typing import TypeAlias
from weakref import WeakValueDictionary

from ftpkit.protocol.frame import Header
from ftpkit.scheduling.flow import Account, Flow, FlowState, Transfer
from ftpkit.scheduling.rate_limit import Direction
from ftpkit.server.limits import Limits
from ftpkit.server.workers.pool import WorkerHandle

# Flows and transfers have numbers that are unique in one worker.
_Key: TypeAlias = tuple[WorkerHandle, int]


class SchedulerServer:
    """Runs the ``Scheduler`` behind the ``RemoteScheduler`` of each worker.

    ``receive`` sends the grants that follow from a message, and does not block: a thread sends
    those that a worker does not accept at once, and those that become due with time.
    """

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._scheduler, self._clock = limits.new_scheduler(), clock
        self._changed = threading.Condition()
        self._flows: dict[_Key, Flow] = {}
        self._keys: dict[Flow, _Key] = {}
        self._transfers: WeakValueDictionary[_Key, Transfer] = WeakValueDictionary()
        self._accounts: WeakValueDictionary[str, Account] = WeakValueDictionary()
        self._unsent: list[tuple[_Key, int]] = []
        self._until_s = -math.inf
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="ftpkit-scheduler", daemon=True)
        self.start = self._thread.start

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def configure(self, limits: Limits) -> None:
        with self._changed:
            self._scheduler.configure(
                limits.policy, slots=limits.slots, bytes_per_s=limits.rates, now=self._clock()
            )
            self._grant_due()

    def receive(self, worker: WorkerHandle, header: Header) -> None:
        """Handle one message of the ``RemoteScheduler`` of a worker."""
        with self._changed:
            now, key = self._clock(), (worker, header.get("flow", -1))
            match header["call"]:
                case "set_rates":
                    account = self._accounts.get(header["user"])
                    if account is not None:
                        self._scheduler.set_rates(account, _rates(header), now)
                case "add_flow":
                    self._add_flow(key, header, now)
                case "ready":
                    self._scheduler.ready(self._flows[key], now)
                case "force_grant":
                    flow = self._flows[key]
                    if flow.state is FlowState.READY:  # else a grant is on its way already
                        self._scheduler.force_grant(flow, now)
                        self._grant(flow)
                case "release":
                    self._scheduler.release(self._flows[key], header["moved"], now)
                case "remove":
                    self._remove(self._flows[key], now)
            self._grant_due()

    def leave(self, worker: WorkerHandle) -> None:
        with self._changed:
            now = self._clock()
            for flow in [flow for (owner, _), flow in self._flows.items() if owner is worker]:
                self._remove(flow, now)
            self._grant_due()

    def positions(self, worker: WorkerHandle) -> dict[int, int]:
        """Return the queue position of each waiting transfer of a worker, by its ``order``."""
        with self._changed:
            positions = self._scheduler.positions()
            mine = [each for each in self._transfers.items() if each[0][0] is worker]
        return {order: positions[each] for (_, order), each in mine if each in positions}

    def _add_flow(self, key: _Key, header: Header, now: float) -> None:
        user, rates = header["user"], _rates(header)
        account = self._accounts.setdefault(user, Account(user, bytes_per_s=rates))
        if account.bytes_per_s != rates:
            self._scheduler.set_rates(account, rates, now)
        account.weight = header["weight"]
        direction, moved = Direction(header["direction"]), header["moved"]
        transfer = self._transfers.setdefault(
            (key[0], header["order"]),
            Transfer(account, header["name"], direction, header["total"], now, moved),
        )
        flow = self._flows[key] = self._scheduler.add_flow(transfer)
        self._keys[flow] = key

    def _remove(self, flow: Flow, now: float) -> None:
        self._scheduler.remove(flow, now)
        del self._flows[self._keys.pop(flow)]

    def _grant_due(self) -> None:
        """Send all grants that are due, and wake the thread if it would be late for the next."""
        now = self._clock()
        while not self._stopped and (flow := self._scheduler.grant_next(now)) is not None:
            self._grant(flow)
        if self._unsent or self._scheduler.next_at() < self._until_s:
            self._until_s = -math.inf
            self._changed.notify()

    def _grant(self, flow: Flow) -> None:
        worker, number = key = self._keys[flow]
        if not worker.try_send("grant", flow=number, quantum=flow.size):
            self._unsent.append((key, flow.size))

    def _run(self) -> None:
        while grants := self._next_unsent():
            for (worker, number), size in grants:
                worker.send("grant", flow=number, quantum=size)

    def _next_unsent(self) -> list[tuple[_Key, int]]:
        """Send grants as they become due; return those that would block.

        It returns none after ``stop``.
        """
        with self._changed:
            while not self._stopped:
                self._grant_due()
                if self._unsent:
                    unsent, self._unsent = self._unsent, []
                    return unsent
                self._until_s = self._scheduler.next_at()
                never = self._until_s == math.inf
                self._changed.wait(None if never else max(0.0, self._until_s - self._clock()))
                self._until_s = -math.inf
            return []


def _rates(header: Header) -> dict[Direction, float]:
    return {Direction(direction): rate for direction, rate in header["bytes_per_s"].items()}
