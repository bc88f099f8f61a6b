"""Comparison of scheduling policies: one trace under each, and how long its files took."""

import heapq
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from ftpkit.compare.trace import Arrival
from ftpkit.scheduling.flow import Account, Flow, Transfer
from ftpkit.scheduling.policies import Policy
from ftpkit.scheduling.rate_limit import Direction, RateLimiter
from ftpkit.scheduling.scheduler import Scheduler

# Size classes: small files have fewer bytes, large ones are the largest hundredth.
SMALL: Final = 100_000
_LARGE_SHARE: Final = 0.01
# The rate within a turn, as over loopback; between turns, the rate limit applies.
_TURN_BYTES_PER_S: Final = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleResult:
    """The results of one size class under a policy: all, small, middle or large files.

    The flow time of a file is from its arrival to its last byte; its slowdown is the flow
    time divided by the time that it takes alone, its wait the difference of the two.
    ``jain`` is Jain's fairness index of the speeds, 1 if all are equal (Jain et al. 1984).
    ``makespan_s`` is when the last file is complete. Times are seconds.
    """

    policy: str
    load: float
    size_class: str
    flows: int
    mean_s: float
    median_s: float
    p99_s: float
    mean_slowdown: float
    p99_slowdown: float
    max_wait_s: float
    jain: float
    makespan_s: float


def simulate(trace: Sequence[Arrival], policy: Policy, bytes_per_s: float) -> list[float]:
    """Return when each file completes, in simulated seconds, on a server with this rate limit."""
    scheduler = Scheduler(policy, bytes_per_s={Direction.UP: bytes_per_s})
    accounts = {user: Account(user) for user in {arrival.user for arrival in trace}}
    completed_s = [math.inf] * len(trace)
    numbers: dict[Transfer, int] = {}
    ends: list[tuple[float, int, Flow]] = []
    now, arrived, turns = 0.0, 0, 0
    while True:
        while (flow := scheduler.grant_next(now)) is not None:
            turns += 1
            heapq.heappush(ends, (now + flow.size / _TURN_BYTES_PER_S, turns, flow))
        arrives_s = trace[arrived].at_s if arrived < len(trace) else math.inf
        ends_s = ends[0][0] if ends else math.inf
        now = min(arrives_s, ends_s, scheduler.next_at())
        if now == arrives_s < math.inf:
            arrival = trace[arrived]
            transfer = Transfer(accounts[arrival.user], "", Direction.UP, arrival.size, now)
            numbers[transfer] = arrived
            arrived += 1
            scheduler.ready(scheduler.add_flow(transfer), now)
        elif now == ends_s < math.inf:
            flow = heapq.heappop(ends)[2]
            scheduler.release(flow, flow.size, now)
            if flow.transfer.left:
                scheduler.ready(flow, now)
            else:
                scheduler.remove(flow, now)
                completed_s[numbers.pop(flow.transfer)] = now
        elif now == math.inf:
            return completed_s


def outcomes(
    policy: str,
    load: float,
    trace: Sequence[Arrival],
    completed_s: Sequence[float],
    bytes_per_s: float,
) -> Iterator[ScheduleResult]:
    """Yield the results of each size class that has files, all files first.

    A rate-limited server moves the bytes of a turn at once and then waits. On a path of that
    rate the last turn would take its time as well: this is added, so that a small file that
    is alone has a slowdown of 1.
    """
    quantum = RateLimiter(bytes_per_s).quantum
    flows = [
        _FlowTimes(
            size=each.size,
            flow_s=end - each.at_s + min(each.size, quantum) / bytes_per_s,
            end_s=end,
            alone_s=each.size / bytes_per_s,
        )
        for each, end in zip(trace, completed_s, strict=True)
    ]
    large = large_from(trace)
    classes = {
        "all": flows,
        "small": [flow for flow in flows if flow.size < SMALL],
        "middle": [flow for flow in flows if SMALL <= flow.size < large],
        "large": [flow for flow in flows if flow.size >= large],
    }
    for name, members in classes.items():
        if members:
            yield _outcome(policy, load, name, members)


def large_from(trace: Sequence[Arrival]) -> int:
    """Return the size from which files are large: the largest hundredth, but at least SMALL."""
    sizes = sorted(arrival.size for arrival in trace)
    return max(SMALL, sizes[math.floor(len(sizes) * (1 - _LARGE_SHARE))])


class _FlowTimes(NamedTuple):
    size: int
    flow_s: float
    end_s: float
    alone_s: float


def _outcome(policy: str, load: float, name: str, flows: Sequence[_FlowTimes]) -> ScheduleResult:
    times = sorted(flow.flow_s for flow in flows)
    slowdowns = sorted(flow.flow_s / flow.alone_s for flow in flows)
    speeds = [1 / slowdown for slowdown in slowdowns]
    return ScheduleResult(
        policy=policy,
        load=load,
        size_class=name,
        flows=len(flows),
        mean_s=statistics.fmean(times),
        median_s=statistics.median(times),
        p99_s=_p99(times),
        mean_slowdown=statistics.fmean(slowdowns),
        p99_slowdown=_p99(slowdowns),
        max_wait_s=max(0.0, *(flow.flow_s - flow.alone_s for flow in flows)),
        jain=sum(speeds) ** 2 / (len(speeds) * sum(speed * speed for speed in speeds)),
        makespan_s=max(flow.end_s for flow in flows),
    )


def _p99(ordered: Sequence[float]) -> float:
    return ordered[math.ceil(len(ordered) * 0.99) - 1]
