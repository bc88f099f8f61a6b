"""A scheduler that runs in another process."""

import itertools
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace

from ftpkit.scheduling.flow import Account, Flow, FlowState, Transfer
from ftpkit.scheduling.policies import Policy
from ftpkit.scheduling.rate_limit import Rates
from ftpkit.scheduling.scheduler import Scheduler, TransferSnapshot


class RemoteScheduler:
    """A ``Scheduler`` of one process, whose quanta the scheduler of another process grants.

    ``local`` knows all transfers of this process and counts their bytes. ``send`` sends a
    message whose ``call`` names a method of the other scheduler: ``add_flow`` (before the first
    message about a flow), ``ready``, ``force_grant``, ``release``, ``remove`` or ``set_rates``.
    Each ``ready`` is answered by one grant, for which ``granted`` must be called. Flows send
    nothing while there is no limit.
    """

    def __init__(self, local: Scheduler, send: Callable[..., None]) -> None:
        self._local, self._send = local, send
        self._count = itertools.count()
        self._numbers: dict[Flow, int] = {}
        self._flows: dict[int, Flow] = {}
        self._grants: deque[tuple[int, int]] = deque()
        self.positions: Mapping[int | None, int] = {}
        """Places in the other process's queues of the waiting transfers, by ``order``."""

    @property
    def has_limits(self) -> bool:
        return self._local.has_limits

    def add_flow(self, transfer: Transfer) -> Flow:
        return self._local.add_flow(transfer)

    def ready(self, flow: Flow, now: float) -> None:
        number = self._number(flow)
        flow.state = FlowState.READY
        self._send(call="ready", flow=number)

    def force_grant(self, flow: Flow, now: float) -> None:
        self._send(call="force_grant", flow=self._numbers[flow])

    def granted(self, number: int, size: int) -> None:
        """Accept a grant of ``size`` bytes for ``grant_next``; any thread may call this."""
        self._grants.append((number, size))

    def grant_next(self, now: float) -> Flow | None:
        while self._grants:
            number, size = self._grants.popleft()
            flow = self._flows.get(number)
            if flow is not None:  # else it was removed meanwhile
                flow.state, flow.size = FlowState.RUNNING, size
                return flow
        return None

    def next_at(self) -> float:
        """Return inf: grants do not depend on this process's clock."""
        return math.inf

    def release(self, flow: Flow, moved: int, now: float) -> None:
        if flow.state is not FlowState.DONE:  # another thread may have removed it
            if self.has_limits or flow in self._numbers:
                self._send(call="release", flow=self._number(flow), moved=moved)
            _block(flow)
        self._local.release(flow, moved, now)

    def remove(self, flow: Flow, now: float) -> None:
        number = self._numbers.pop(flow, None)
        if number is not None:
            del self._flows[number]
            self._send(call="remove", flow=number)
            _block(flow)
        self._local.remove(flow, now)

    def configure(
        self, policy: Policy, *, slots: int | None, bytes_per_s: Rates, now: float
    ) -> None:
        self._local.configure(policy, slots=slots, bytes_per_s=bytes_per_s, now=now)

    def set_rates(self, account: Account, bytes_per_s: Rates, now: float) -> None:
        self._local.set_rates(account, bytes_per_s, now)
        self._send(call="set_rates", user=account.user, bytes_per_s=bytes_per_s)

    def snapshot(self, now: float) -> list[TransferSnapshot]:
        return [
            replace(each, position=self.positions.get(each.transfer.order))
            for each in self._local.snapshot(now)
        ]

    def _number(self, flow: Flow) -> int:
        """Return the number of ``flow`` in messages; send ``add_flow`` if it is new."""
        number = self._numbers.get(flow)
        if number is None:
            number = self._numbers[flow] = next(self._count)
            self._flows[number] = flow
            transfer, account = flow.transfer, flow.transfer.account
            self._send(
                call="add_flow",
                flow=number,
                order=transfer.order,
                user=account.user,
                weight=account.weight,
                bytes_per_s=account.bytes_per_s,
                name=transfer.name,
                direction=transfer.direction,
                total=transfer.total,
                moved=transfer.moved,
            )
        return number


def _block(flow: Flow) -> None:
    """Take back what ``local`` did not grant, so that it does not end a quantum of its own."""
    flow.state, flow.size = FlowState.BLOCKED, 0
