"""What the counts behind quotas do while much happens at once."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ftpkit.errors import Code, RefusedError
from ftpkit.server.auth.quota import QuotaLedger
from tests.storage.stores import refused
from tests.support.logs import Log

LONG_S = 20.0


class Disk:
    """What stands where; a count of it can be held up."""

    def __init__(self) -> None:
        self.files: dict[str, int] = {}
        self.counted: list[str] = []
        self.fails = False
        self.early: Callable[[], object] = lambda: None
        self.during: Callable[[], object] = lambda: None
        """Called in a count that has looked nowhere, or everywhere."""

    def count(self, name: str, go_on: Callable[[], bool]) -> int:
        self.counted.append(name)
        self.early()
        found = sum(
            size for each, size in self.files.items() if not name or each.startswith(f"{name}/")
        )
        self.during()
        if self.fails:
            raise OSError("the disk is gone")
        return found


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def ledgers(disk: Disk) -> Iterator[QuotaLedger]:
    ledgers = QuotaLedger(disk.count, patience_s=LONG_S, clock=lambda: 0.0)
    yield ledgers
    ledgers.close()


def test_what_fits_to_the_byte_is_taken_and_not_one_more(ledgers: QuotaLedger, disk: Disk) -> None:
    disk.files["d/old"] = 40
    number = ledgers.reserve("d/f", 60, "d", 100)
    with refused(Code.QUOTA_EXCEEDED):
        ledgers.reserve("d/g", 1, "d", 100)
    ledgers.cancel(number)
    ledgers.reserve("d/g", 60, "d", 100)
    assert disk.counted == ["d"]


def test_a_refusal_tells_nothing_of_what_is_stored(ledgers: QuotaLedger) -> None:
    with pytest.raises(Exception, match=r"^1,001 bytes are more than is left of a quota of 1,000$"):
        ledgers.reserve("f", 1001, "", 1000)


def test_without_a_quota_everything_fits_and_counts(ledgers: QuotaLedger, disk: Disk) -> None:
    early = ledgers.reserve("d/f", 70, "", None)
    assert disk.counted == []
    with refused(Code.QUOTA_EXCEEDED):
        ledgers.reserve("d/g", 31, "d", 100)
    ledgers.reserve("d/g", 20, "", None)
    ledgers.reserve("e/g", 1000, "", None)
    with refused(Code.QUOTA_EXCEEDED):
        ledgers.reserve("d/h", 11, "d", 100)
    disk.files["d/f"] = 70
    ledgers.commit(early)
    ledgers.reserve("d/h", 10, "d", 100)


def test_what_is_freed_is_counted_when_it_is_needed(ledgers: QuotaLedger, disk: Disk) -> None:
    ledgers.commit(ledgers.reserve("d/f", 100, "d", 100))
    ledgers.freed("d/f")
    assert disk.counted == ["d"]
    ledgers.reserve("d/f", 100, "d", 100)
    assert disk.counted == ["d", "d"]


@pytest.mark.parametrize("name", ["d/f", "d", "", "d/e/f"])
def test_a_count_is_repeated_where_something_was_freed(
    ledgers: QuotaLedger, disk: Disk, name: str
) -> None:
    ledgers.commit(ledgers.reserve("d/f", 100, "d", 100))
    ledgers.freed(name)
    disk.files["d/f"] = 100
    for _ in range(2):
        with refused(Code.QUOTA_EXCEEDED):
            ledgers.reserve("d/g", 1, "d", 100)
    assert disk.counted == ["d", "d"]


@pytest.mark.parametrize("name", ["e", "dd", "dd/f", "f"])
def test_what_is_freed_elsewhere_makes_nobody_count(
    ledgers: QuotaLedger, disk: Disk, name: str
) -> None:
    ledgers.commit(ledgers.reserve("d/f", 100, "d", 100))
    ledgers.freed(name)
    with refused(Code.QUOTA_EXCEEDED):
        ledgers.reserve("d/g", 1, "d", 100)
    assert disk.counted == ["d"]


def test_what_was_removed_past_the_server_is_found_after_a_while(disk: Disk) -> None:
    now = 0.0
    ledgers = QuotaLedger(disk.count, clock=lambda: now)
    disk.files["f"] = 100
    with refused(Code.QUOTA_EXCEEDED):
        ledgers.reserve("g", 1, "", 100)
    disk.files.clear()
    with refused(Code.QUOTA_EXCEEDED):
        ledgers.reserve("g", 1, "", 100)
    now = 5.0
    ledgers.reserve("g", 1, "", 100)
    assert disk.counted == ["", ""]


@pytest.mark.parametrize(
    ("name", "to"), [("e/f", "d/f"), ("e", "d"), ("e", "d/e"), ("b", "a"), ("d/f", "d")]
)
def test_what_is_moved_into_it_is_counted_before_anything_is_taken(
    disk: Disk, name: str, to: str
) -> None:
    under = "a/b" if to == "a" else "d"
    ledgers = QuotaLedger(disk.count)
    ledgers.reserve(f"{under}/g", 1, under, 100)
    disk.files[f"{under}/f"] = 99
    ledgers.moved(name, to)
    expected = [under] * (1 if name == "d/f" else 2)
    if name == "d/f":
        ledgers.reserve(f"{under}/g", 1, under, 100)
    else:
        with refused(Code.QUOTA_EXCEEDED):
            ledgers.reserve(f"{under}/g", 1, under, 100)
    assert disk.counted == expected


def test_who_has_a_part_of_it_counts_for_the_whole(ledgers: QuotaLedger) -> None:
    ledgers.reserve("a/f", 1, "a", 100)
    ledgers.reserve("a/b/f", 50, "a/b", 50)
    with refused(Code.QUOTA_EXCEEDED):
        ledgers.reserve("a/b/g", 1, "a/b", 50)
    with refused(Code.QUOTA_EXCEEDED):
        ledgers.reserve("a/g", 50, "a", 100)
    ledgers.reserve("a/g", 49, "a", 100)


def test_two_quotas_of_one_directory_hold_each_for_its_own(ledgers: QuotaLedger) -> None:
    ledgers.reserve("a/f", 60, "a", 100)
    with refused(Code.QUOTA_EXCEEDED):
        ledgers.reserve("a/g", 1, "a", 50)
    ledgers.reserve("a/g", 40, "a", 100)


# While it is counted


def test_what_is_kept_during_a_count_is_not_lost(ledgers: QuotaLedger, disk: Disk) -> None:
    number = ledgers.reserve("f", 60, "", None)

    def commit() -> None:
        disk.during = lambda: None
        disk.files["f"] = 60
        ledgers.commit(number)

    disk.during = commit
    with refused(Code.QUOTA_EXCEEDED):
        ledgers.reserve("g", 41, "", 100)
    ledgers.reserve("g", 40, "", 100)


def test_what_comes_and_is_found_during_a_count_counts_once(
    ledgers: QuotaLedger, disk: Disk
) -> None:
    def put() -> None:
        disk.early = lambda: None
        number = ledgers.reserve("f", 60, "", None)
        disk.files["f"] = 60
        ledgers.commit(number)

    disk.early = put
    ledgers.reserve("g", 40, "", 100)


def test_what_a_count_has_found_and_is_kept_then_counts_once(
    ledgers: QuotaLedger, disk: Disk
) -> None:
    number = ledgers.reserve("f", 60, "", 100)
    ledgers.freed("f")
    disk.files["f"] = 60
    with refused(Code.QUOTA_EXCEEDED):
        ledgers.reserve("g", 41, "", 100)
    ledgers.commit(number)
    ledgers.reserve("g", 40, "", 100)


def test_a_count_during_which_something_is_moved_is_repeated(
    ledgers: QuotaLedger, disk: Disk
) -> None:
    def move() -> None:
        disk.during = lambda: None
        disk.files["d/new"] = 100
        ledgers.moved("d/e/old", "d/new")

    disk.during = move
    with refused(Code.QUOTA_EXCEEDED):
        ledgers.reserve("d/g", 1, "d", 100)
    assert len(disk.counted) == 2


def test_where_it_never_holds_still_nothing_is_taken(ledgers: QuotaLedger, disk: Disk) -> None:
    disk.during = lambda: ledgers.moved("old", "new")
    with refused(Code.BUSY):
        ledgers.reserve("g", 1, "", 100)
    assert len(disk.counted) == 3
    disk.during = lambda: None
    ledgers.reserve("g", 100, "", 100)


def test_where_it_always_shrinks_a_refusal_comes_all_the_same(
    ledgers: QuotaLedger, disk: Disk
) -> None:
    disk.files["f"] = 100
    disk.during = lambda: ledgers.freed("other")
    with refused(Code.BUSY):
        ledgers.reserve("g", 1, "", 100)
    assert len(disk.counted) == 3


def test_where_it_cannot_be_counted_nothing_is_taken(
    ledgers: QuotaLedger, disk: Disk, log: Log
) -> None:
    disk.fails = True
    with refused(Code.BUSY):
        ledgers.reserve("g", 1, "", 100)
    assert [line["at"] for line in log.so_far("error")] == ["count"] * 3
    disk.fails = False
    ledgers.reserve("g", 1, "", 100)


def test_of_many_at_once_as_many_are_let_in_as_fit(ledgers: QuotaLedger, disk: Disk) -> None:
    start = threading.Barrier(20)

    def reserve(number: int) -> bool:
        start.wait(LONG_S)
        with contextlib.suppress(RefusedError):
            ledgers.reserve(f"f{number}", 10, "", 70)
            return True
        return False

    with ThreadPoolExecutor(20) as pool:
        assert sum(pool.map(reserve, range(20))) == 7
    assert len(disk.counted) <= 2


def test_who_has_waited_long_enough_is_told_and_the_next_finds_the_count(disk: Disk) -> None:
    go = threading.Event()
    disk.during = lambda: go.wait(LONG_S)
    ledgers = QuotaLedger(disk.count, patience_s=0.0)
    for _ in range(3):
        with refused(Code.BUSY):
            ledgers.reserve("f", 1, "", 100)
    assert ledgers.reserve_now("f", 1, "", 100) is None
    go.set()
    ledgers.close()
    assert disk.counted == [""]


def test_at_once_is_taken_what_needs_no_count(ledgers: QuotaLedger, disk: Disk) -> None:
    assert ledgers.reserve_now("f", 1, "", 100) is None
    assert ledgers.reserve_now("f", 1, "", None) is not None
    ledgers.reserve("f", 1, "", 100)
    assert ledgers.reserve_now("f", 98, "", 100) is not None
    with refused(Code.QUOTA_EXCEEDED):
        ledgers.reserve_now("f", 1, "", 100)
    ledgers.freed("f")
    assert ledgers.reserve_now("f", 1, "", 100) is None
    assert len(disk.counted) == 1


def test_the_end_interrupts_a_count_and_who_waits_for_it() -> None:
    counting = threading.Event()

    def count(name: str, go_on: Callable[[], bool]) -> int:
        counting.set()
        while go_on():
            pass
        return 0

    ledgers = QuotaLedger(count, patience_s=LONG_S)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(ledgers.reserve, "f", 1, "", 100)
        assert counting.wait(LONG_S)
        ledgers.close()
        with refused(Code.SHUTTING_DOWN):
            future.result(LONG_S)
