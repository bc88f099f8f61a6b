"""Scheduling policies: each is a rank, and the transfer of the lowest rank moves next.

A transfer is ranked when it becomes ready and keeps that rank while it waits, so that
newcomers are ordered before the next quantum and one queue serves all policies.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ftpkit.scheduling.flow import Transfer

# Bytes that end a level: seven from 100 KiB to 40 MB, in geometric progression.
_LOWEST: Final = 100 * 1024
_HIGHEST: Final = 40_000_000
_THRESHOLDS: Final = tuple(round(_LOWEST * (_HIGHEST / _LOWEST) ** (step / 6)) for step in range(7))


def level(moved: int) -> int:
    """Return the feedback-queue level, 0 to 7, of a transfer that moved so many bytes.

    Thresholds after PIAS (Bai et al., NSDI 2015), which does not know sizes either.
    """
    return bisect_right(_THRESHOLDS, moved)


def first_come(transfer: Transfer) -> float:
    """FCFS: in the order of arrival."""
    return transfer.order or 0


def shortest_first(transfer: Transfer) -> float:
    """SJF with preemption (SRPT): optimal mean flow time on one server (Schrage 1968).

    If the size is unknown, the bytes moved stand for the bytes left (LAS, see Nuyens and
    Wierman 2008), ranked behind a transfer that is known to have as much left.
    """
    left = transfer.left
    return transfer.moved + 0.5 if left is None else left


def round_robin(transfer: Transfer) -> float:
    """RR by bytes and weights: the start tag of fair queueing (Goyal, Vin and Cheng 1996)."""
    return transfer.start


def least_served(transfer: Transfer) -> float:
    """MLFQ: by level, within it in the order of becoming ready (Corbato et al. 1962)."""
    return level(transfer.moved)


@dataclass(frozen=True, slots=True)
class Policy:
    """A rank and what it applies to.

    ``by_account``: accounts share by bytes and weight, and ``rank`` orders the flows of each.
    ``ages``: the flow that waits longest gets 5 % of the bytes, so that none starves; Homa
    (Montazeri et al., SIGCOMM 2018) reserves as much for the oldest message.
    """

    rank: Callable[[Transfer], float]
    by_account: bool = False
    ages: bool = False


DEFAULT_POLICY: Final = "fair"
POLICIES: Final = {
    "fcfs": Policy(first_come),
    "sjf": Policy(shortest_first),
    "rr": Policy(round_robin),
    "mlfq": Policy(least_served, ages=True),
    # Start-time fair queueing, as in rr, but between accounts.
    "fair": Policy(shortest_first, by_account=True),
}
