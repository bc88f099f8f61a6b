"""What a turn costs: the decision by itself, and given to a thread that waits.

Run with ``python -m tests.bench.scheduling``; it prints a Markdown table.
"""

import argparse
import statistics
import threading
import time
from typing import Final

from ftpkit.scheduling.blocking import BlockingScheduler
from ftpkit.scheduling.flow import Account, Transfer
from ftpkit.scheduling.policies import POLICIES, Policy
from ftpkit.scheduling.rate_limit import Direction
from ftpkit.scheduling.scheduler import Scheduler

_RATES: Final = {Direction.UP: 1e9}
_THREADS: Final = 8


def decision_s(policy: Policy, transfers: int, users: int, turns: int) -> float:
    """Return the seconds of one turn, with so many ``transfers`` of so many ``users`` ready."""
    schedule, now = Scheduler(policy, slots=1, bytes_per_s=_RATES), 0.0
    accounts = [Account(f"user {number}") for number in range(users)]
    for number in range(transfers):
        account = accounts[number % users]
        lane = schedule.add_flow(Transfer(account, "file", Direction.UP, 10**12 + number, now))
        schedule.ready(lane, now)
    began = time.perf_counter()
    for _ in range(turns):
        given = schedule.grant_next(now)
        if given is None:
            raise RuntimeError("the schedule gives no turn, though all is ready")
        schedule.release(given, given.size, now)
        schedule.ready(given, now)
        now = schedule.next_at()
    return (time.perf_counter() - began) / turns


def hand_over_s(policy: Policy, turns: int) -> float:
    """Return the seconds of one turn, given from thread to thread by a dispatcher."""
    dispatcher, account = BlockingScheduler(Scheduler(policy, slots=1)), Account("user")

    def carry() -> None:
        lane = dispatcher.add_flow(Transfer(account, "file", Direction.UP, None, 0.0))
        for _ in range(turns // _THREADS):
            lane.release(lane.acquire())
        lane.close()

    threads = [threading.Thread(target=carry) for _ in range(_THREADS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.perf_counter() - began) / (turns // _THREADS * _THREADS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transfers", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=50_000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    transfers, turns = options.transfers, options.turns
    print(f"| policy | 1 user | {transfers} users | between {_THREADS} threads |")
    print("|---|---|---|---|")
    for name, policy in POLICIES.items():
        runs = [
            (
                decision_s(policy, transfers, 1, turns),
                decision_s(policy, transfers, transfers, turns),
                hand_over_s(policy, turns),
            )
            for _ in range(options.runs)
        ]
        medians = (statistics.median(column) * 1e6 for column in zip(*runs, strict=True))
        print(f"| {name} | {' | '.join(f'{median:.1f} µs' for median in medians)} |")


if __name__ == "__main__":
    main()
