"""One schedule for the transfers of all workers."""

import math
import threading
import time
from collections.abc import Callable
from typing import TypeAlias
from weakref import WeakValueDictionary

from ftpkit.protocol.frame import Header
from ftpkit.scheduling.flow import Account, Flow, State, Transfer
from ftpkit.scheduling.rate_limit import Direction
from ftpkit.server.limits import Limits
from ftpkit.server.workers.pool import WorkerHandle

# A number counts what one worker has.
_Key: TypeAlias = tuple[WorkerHandle, int]


class SchedulerServer:
    """Gives the turns of a ``Scheduler`` to workers, which have a ``RemoteScheduler`` each.

    Whoever receives from a worker gives those that come of it, and never waits: what a worker
    does not take at once is left to a thread, which watches the clock as well.
    """

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._schedule, self._clock = limits.new_scheduler(), clock
        self._changed = threading.Condition()
        self._flows: dict[_Key, Flow] = {}
        self._keys: dict[Flow, _Key] = {}
        self._transfers: WeakValueDictionary[_Key, Transfer] = WeakValueDictionary()
        self._accounts: WeakValueDictionary[str, Account] = WeakValueDictionary()
        self._left: list[tuple[_Key, int]] = []
        self._until_s = -math.inf
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="ftpkit-turns", daemon=True)

    def start(self) -> None:
        """Begin to give turns."""
        self._thread.start()

    def stop(self) -> None:
        """Give no more turns."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def configure(self, limits: Limits) -> None:
        """Go on with other limits."""
        with self._changed:
            self._schedule.configure(
                limits.policy,
                slots=limits.slots,
                bytes_per_s_by_direction=limits.bytes_per_s_by_direction,
                now=self._clock(),
            )
            self._hand_out()

    def receive(self, worker: WorkerHandle, header: Header) -> None:
        """Note what a worker says of one of its flows; ``RemoteScheduler`` has the messages."""
        with self._changed:
            now = self._clock()
            match header["call"]:
                case "set_rates":
                    account = self._accounts.get(header["user"])
                    if account is not None:
                        self._schedule.set_rates(account, _rates(header), now)
                case "add_flow":
                    self._join((worker, header["flow"]), header, now)
                case call:
                    self._note(call, self._flows[worker, header["flow"]], header, now)
            self._hand_out()

    def leave(self, worker: WorkerHandle) -> None:
        """Take out all that a worker had: it has ended."""
        with self._changed:
            now = self._clock()
            for flow in [flow for (owner, _), flow in self._flows.items() if owner is worker]:
                self._leave(flow, now)
            self._hand_out()

    def positions(self, worker: WorkerHandle) -> dict[int, int]:
        """Return the places in their queues of the transfers of a worker that wait."""
        with self._changed:
            places = self._schedule.positions()
            mine = [each for each in self._transfers.items() if each[0][0] is worker]
        return {order: places[each] for (_, order), each in mine if each in places}

    def _join(self, key: _Key, header: Header, now: float) -> None:
        worker, user = key[0], header["user"]
        account = self._accounts.get(user)
        if account is None:
            account = self._accounts[user] = Account(user, bytes_per_s_by_direction=_rates(header))
        elif account.bytes_per_s_by_direction != _rates(header):
            self._schedule.set_rates(account, _rates(header), now)
        account.weight = header["weight"]
        transfer = self._transfers.get((worker, header["order"]))
        if transfer is None:
            direction, moved = Direction(header["direction"]), header["moved"]
            transfer = Transfer(account, header["name"], direction, header["total"], now, moved)
            self._transfers[worker, header["order"]] = transfer
        flow = self._flows[key] = self._schedule.add_flow(transfer)
        self._keys[flow] = key

    def _note(self, call: str, flow: Flow, header: Header, now: float) -> None:
        match call:
            case "ready":
                self._schedule.ready(flow, now)
            case "force_grant":
                if flow.state is State.READY:  # else its turn is on the way
                    self._schedule.force_grant(flow, now)
                    self._give(flow)
            case "release":
                self._schedule.release(flow, header["moved"], now)
            case "remove":
                self._leave(flow, now)

    def _leave(self, flow: Flow, now: float) -> None:
        self._schedule.remove(flow, now)
        del self._flows[self._keys.pop(flow)]

    def _hand_out(self) -> None:
        """Give all turns that there are, and wake the thread if it looks too late for the next."""
        now = self._clock()
        while not self._stopped and (flow := self._schedule.grant_next(now)) is not None:
            self._give(flow)
        if self._left or self._schedule.next_at() < self._until_s:
            self._until_s = -math.inf
            self._changed.notify()

    def _give(self, flow: Flow) -> None:
        worker, number = key = self._keys[flow]
        if not worker.offer("grant", flow=number, quantum=flow.size):
            self._left.append((key, flow.size))

    def _run(self) -> None:
        while turns := self._next():
            for (worker, number), size in turns:
                worker.tell("grant", flow=number, quantum=size)

    def _next(self) -> list[tuple[_Key, int]]:
        """Give turns until some are left to be told of, and return these; none at the end."""
        with self._changed:
            while not self._stopped:
                self._hand_out()
                if self._left:
                    left, self._left = self._left, []
                    return left
                self._until_s = self._schedule.next_at()
                never = self._until_s == math.inf
                self._changed.wait(None if never else max(0.0, self._until_s - self._clock()))
                self._until_s = -math.inf
            return []


def _rates(header: Header) -> dict[Direction, float]:
    return {Direction(direction): rate for direction, rate in header["bytes_per_s"].items()}
