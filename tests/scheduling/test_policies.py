"""Policies: the ranks of single transfers."""

import pytest

from ftpkit.scheduling.flow import Account, Transfer
from ftpkit.scheduling.policies import (
    POLICIES,
    first_come,
    least_served,
    level,
    round_robin,
    shortest_first,
)
from ftpkit.scheduling.rate_limit import Direction

ACCOUNT = Account("ann")


def transfer(total: int | None = None, moved: int = 0) -> Transfer:
    return Transfer(ACCOUNT, "a", Direction.UP, total, 0.0, moved=moved)


def test_the_names_of_the_policies() -> None:
    assert list(POLICIES) == ["fcfs", "sjf", "rr", "mlfq", "fair"]


def test_fcfs_ranks_by_arrival() -> None:
    early, late = transfer(), transfer()
    early.order, late.order = 3, 4
    assert first_come(early) < first_come(late)


def test_sjf_ranks_by_what_is_left() -> None:
    assert shortest_first(transfer(100, 60)) < shortest_first(transfer(50))
    assert shortest_first(transfer(100, 100)) == shortest_first(transfer(100, 120)) == 0


def test_sjf_ranks_an_unknown_size_by_what_moved() -> None:
    unknown = shortest_first(transfer(None, 1000))
    assert shortest_first(transfer(1000)) < unknown < shortest_first(transfer(1001))


def test_rr_ranks_by_the_start_tag() -> None:
    one = transfer()
    one.start = 12.5
    assert round_robin(one) == 12.5


def test_mlfq_ranks_by_bytes_moved_and_knows_no_sizes() -> None:
    assert least_served(transfer(10**9, 0)) == least_served(transfer(1, 0)) == 0
    assert least_served(transfer(10**9, 200_000)) == 1


@pytest.mark.parametrize(
    ("moved", "expected"),
    [
        (0, 0),
        (102_399, 0),
        (102_400, 1),
        (1_000_000, 3),
        (39_999_999, 6),
        (40_000_000, 7),
        (10**15, 7),
    ],
)
def test_a_level_ends_at_a_threshold(moved: int, expected: int) -> None:
    assert level(moved) == expected
