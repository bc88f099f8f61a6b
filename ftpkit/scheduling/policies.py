"""Policies: each is a rank, and the transfer of the lowest rank moves next.

A rank is taken when a transfer becomes ready, and stays while it waits: so every
newcomer takes its place before the next quantum, and one queue serves them all.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ftpkit.scheduling.flow import Transfer

# Bytes that end a level: seven from 100 KiB to 40 MB, each as many times the one before.
_LOWEST: Final = 100 * 1024
_HIGHEST: Final = 40_000_000
_THRESHOLDS: Final = tuple(round(_LOWEST * (_HIGHEST / _LOWEST) ** (step / 6)) for step in range(7))


def level(moved: int) -> int:
    """Return the level of a transfer that moved so many bytes, from 0 to 7.

    Thresholds after PIAS (Bai et al., NSDI 2015), which knows no sizes either.
    """
    return bisect_right(_THRESHOLDS, moved)


def first_come(transfer: Transfer) -> float:
    """FCFS: in the order of arrival."""
    return transfer.order or 0


def shortest_first(transfer: Transfer) -> float:
    """SJF with preemption (SRPT): optimal mean flow time on one link (Schrage 1968).

    Where the size is not known, what moved so far stands for what is left (LAS, see
    Nuyens and Wierman 2008), behind a transfer that is known to have as much left.
    """
    left = transfer.left
    return transfer.moved + 0.5 if left is None else left


def by_turns(transfer: Transfer) -> float:
    """RR by bytes and weights: the start tag of fair queueing (Goyal, Vin and Cheng 1996)."""
    return transfer.start


def least_served(transfer: Transfer) -> float:
    """MLFQ: the level, and within it in the order of becoming ready (Corbato et al. 1962)."""
    return level(transfer.moved)


@dataclass(frozen=True, slots=True)
class Policy:
    """A rank. ``by_account``: accounts take turns by bytes and weight, and it ranks within each.

    ``ages``: what waits longest has 5 % of the bytes, so that nothing starves; Homa
    (Montazeri et al., SIGCOMM 2018) keeps as much for the oldest message.
    """

    rank: Callable[[Transfer], float]
    by_account: bool = False
    ages: bool = False


DEFAULT_POLICY: Final = "fair"
POLICIES: Final = {
    "fcfs": Policy(first_come),
    "sjf": Policy(shortest_first),
    "rr": Policy(by_turns),
    "mlfq": Policy(least_served, ages=True),
    # Start-time fair queueing, as in rr, but between accounts.
    "fair": Policy(shortest_first, by_account=True),
}
