"""The quota ledger: reservations, counts, and changes while a count runs."""

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
    """Files in memory; a count of them can be interrupted."""

    def __init__(self) -> None:
        self.files: dict[str, int] = {}
        self.counted: list[str] = []
        self.fails = False
        self.early: Callable[[], object] = lambda: None
        self.during: Callable[[], object] = lambda: None
        """Called in a count: ``early`` before it reads anything, ``during`` after it read all."""

    def count(self, name: str, should_continue: Callable[[], bool]) -> int:
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
def ledger(disk: Disk) -> Iterator[QuotaLedger]:
    ledger = QuotaLedger(disk.count, timeout_s=LONG_S, clock=lambda: 0.0)
    yield ledger
    ledger.close()


def test_reservations_fill_a_quota_to_the_byte(ledger: QuotaLedger, disk: Disk) -> None:
    disk.files["d/old"] = 40
    reserved = ledger.reserve("d/f", 60, "d", 100)
    with refused(Code.QUOTA_EXCEEDED):
        ledger.reserve("d/g", 1, "d", 100)
    reserved.cancel()
    ledger.reserve("d/g", 60, "d", 100)
    assert disk.counted == ["d"]


def test_a_refusal_does_not_tell_how_much_is_stored(ledger: QuotaLedger) -> None:
    with pytest.raises(
        Exception, match=r"^1,001 bytes exceed the space left in the quota of 1,000 bytes$"
    ):
        ledger.reserve("f", 1001, "", 1000)


def test_reservations_without_a_quota_always_fit_and_are_counted(
    ledger: QuotaLedger, disk: Disk
) -> None:
    reserved = ledger.reserve("d/f", 70, "", None)
    assert disk.counted == []
    with refused(Code.QUOTA_EXCEEDED):
        ledger.reserve("d/g", 31, "d", 100)
    ledger.reserve("d/g", 20, "", None)
    ledger.reserve("e/g", 1000, "", None)
    with refused(Code.QUOTA_EXCEEDED):
        ledger.reserve("d/h", 11, "d", 100)
    disk.files["d/f"] = 70
    reserved.commit()
    ledger.reserve("d/h", 10, "d", 100)


def test_after_a_deletion_bytes_are_counted_when_a_request_needs_them(
    ledger: QuotaLedger, disk: Disk
) -> None:
    ledger.reserve("d/f", 100, "d", 100).commit()
    ledger.note_deleted("d/f")
    assert disk.counted == ["d"]
    ledger.reserve("d/f", 100, "d", 100)
    assert disk.counted == ["d", "d"]


@pytest.mark.parametrize("name", ["d/f", "d", "", "d/e/f"])
def test_a_deletion_in_or_around_a_directory_makes_it_count_again_once(
    ledger: QuotaLedger, disk: Disk, name: str
) -> None:
    ledger.reserve("d/f", 100, "d", 100).commit()
    ledger.note_deleted(name)
    disk.files["d/f"] = 100
    for _ in range(2):
        with refused(Code.QUOTA_EXCEEDED):
            ledger.reserve("d/g", 1, "d", 100)
    assert disk.counted == ["d", "d"]


@pytest.mark.parametrize("name", ["e", "dd", "dd/f", "f"])
def test_a_deletion_elsewhere_makes_no_count(ledger: QuotaLedger, disk: Disk, name: str) -> None:
    ledger.reserve("d/f", 100, "d", 100).commit()
    ledger.note_deleted(name)
    with refused(Code.QUOTA_EXCEEDED):
        ledger.reserve("d/g", 1, "d", 100)
    assert disk.counted == ["d"]


def test_a_count_older_than_five_seconds_is_repeated_before_a_refusal(disk: Disk) -> None:
    now = 0.0
    ledger = QuotaLedger(disk.count, clock=lambda: now)
    disk.files["f"] = 100
    with refused(Code.QUOTA_EXCEEDED):
        ledger.reserve("g", 1, "", 100)
    disk.files.clear()
    with refused(Code.QUOTA_EXCEEDED):
        ledger.reserve("g", 1, "", 100)
    now = 5.0
    ledger.reserve("g", 1, "", 100)
    assert disk.counted == ["", ""]


@pytest.mark.parametrize(
    ("name", "to"), [("e/f", "d/f"), ("e", "d"), ("e", "d/e"), ("b", "a"), ("d/f", "d")]
)
def test_a_rename_into_a_directory_makes_it_count_before_it_reserves(
    disk: Disk, name: str, to: str
) -> None:
    under = "a/b" if to == "a" else "d"
    ledger = QuotaLedger(disk.count)
    ledger.reserve(f"{under}/g", 1, under, 100)
    disk.files[f"{under}/f"] = 99
    ledger.note_renamed(name, to)
    expected = [under] * (1 if name == "d/f" else 2)
    if name == "d/f":
        ledger.reserve(f"{under}/g", 1, under, 100)
    else:
        with refused(Code.QUOTA_EXCEEDED):
            ledger.reserve(f"{under}/g", 1, under, 100)
    assert disk.counted == expected


def test_bytes_in_a_directory_count_for_the_directories_around_it(ledger: QuotaLedger) -> None:
    ledger.reserve("a/f", 1, "a", 100)
    ledger.reserve("a/b/f", 50, "a/b", 50)
    with refused(Code.QUOTA_EXCEEDED):
        ledger.reserve("a/b/g", 1, "a/b", 50)
    with refused(Code.QUOTA_EXCEEDED):
        ledger.reserve("a/g", 50, "a", 100)
    ledger.reserve("a/g", 49, "a", 100)


def test_two_quotas_of_one_directory_are_kept_separately(ledger: QuotaLedger) -> None:
    ledger.reserve("a/f", 60, "a", 100)
    with refused(Code.QUOTA_EXCEEDED):
        ledger.reserve("a/g", 1, "a", 50)
    ledger.reserve("a/g", 40, "a", 100)


# Changes while a count runs


def test_bytes_committed_after_a_count_has_passed_them_are_added(
    ledger: QuotaLedger, disk: Disk
) -> None:
    reserved = ledger.reserve("f", 60, "", None)

    def commit() -> None:
        disk.during = lambda: None
        disk.files["f"] = 60
        reserved.commit()

    disk.during = commit
    with refused(Code.QUOTA_EXCEEDED):
        ledger.reserve("g", 41, "", 100)
    ledger.reserve("g", 40, "", 100)


def test_bytes_committed_before_a_running_count_finds_them_count_once(
    ledger: QuotaLedger, disk: Disk
) -> None:
    def put() -> None:
        disk.early = lambda: None
        reserved = ledger.reserve("f", 60, "", None)
        disk.files["f"] = 60
        reserved.commit()

    disk.early = put
    ledger.reserve("g", 40, "", 100)


def test_bytes_committed_after_a_count_found_them_count_once(
    ledger: QuotaLedger, disk: Disk
) -> None:
    reserved = ledger.reserve("f", 60, "", 100)
    ledger.note_deleted("f")
    disk.files["f"] = 60
    with refused(Code.QUOTA_EXCEEDED):
        ledger.reserve("g", 41, "", 100)
    reserved.commit()
    ledger.reserve("g", 40, "", 100)


def test_a_rename_during_a_count_repeats_it(ledger: QuotaLedger, disk: Disk) -> None:
    def move() -> None:
        disk.during = lambda: None
        disk.files["d/new"] = 100
        ledger.note_renamed("d/e/old", "d/new")

    disk.during = move
    with refused(Code.QUOTA_EXCEEDED):
        ledger.reserve("d/g", 1, "d", 100)
    assert len(disk.counted) == 2


def test_a_directory_renamed_into_during_each_count_is_refused_as_busy(
    ledger: QuotaLedger, disk: Disk
) -> None:
    disk.during = lambda: ledger.note_renamed("old", "new")
    with refused(Code.BUSY):
        ledger.reserve("g", 1, "", 100)
    assert len(disk.counted) == 3
    disk.during = lambda: None
    ledger.reserve("g", 100, "", 100)


def test_a_directory_deleted_from_during_each_count_is_refused_as_busy(
    ledger: QuotaLedger, disk: Disk
) -> None:
    disk.files["f"] = 100
    disk.during = lambda: ledger.note_deleted("other")
    with refused(Code.BUSY):
        ledger.reserve("g", 1, "", 100)
    assert len(disk.counted) == 3


def test_a_count_that_fails_is_logged_and_refused_as_busy(
    ledger: QuotaLedger, disk: Disk, log: Log
) -> None:
    disk.fails = True
    with refused(Code.BUSY):
        ledger.reserve("g", 1, "", 100)
    assert [line["at"] for line in log.so_far("error")] == ["count"] * 3
    disk.fails = False
    ledger.reserve("g", 1, "", 100)


def test_of_many_concurrent_reservations_exactly_those_that_fit_succeed(
    ledger: QuotaLedger, disk: Disk
) -> None:
    start = threading.Barrier(20)

    def reserve(number: int) -> bool:
        start.wait(LONG_S)
        with contextlib.suppress(RefusedError):
            ledger.reserve(f"f{number}", 10, "", 70)
            return True
        return False

    with ThreadPoolExecutor(20) as pool:
        assert sum(pool.map(reserve, range(20))) == 7
    assert len(disk.counted) <= 2


def test_a_request_that_waited_too_long_is_busy_and_leaves_the_count_running(disk: Disk) -> None:
    go = threading.Event()
    disk.during = lambda: go.wait(LONG_S)
    ledger = QuotaLedger(disk.count, timeout_s=0.0)
    for _ in range(3):
        with refused(Code.BUSY):
            ledger.reserve("f", 1, "", 100)
    assert ledger.try_reserve("f", 1, "", 100) is None
    go.set()
    ledger.close()
    assert disk.counted == [""]


def test_try_reserve_succeeds_where_no_count_is_needed(ledger: QuotaLedger, disk: Disk) -> None:
    assert ledger.try_reserve("f", 1, "", 100) is None
    assert ledger.try_reserve("f", 1, "", None) is not None
    ledger.reserve("f", 1, "", 100)
    assert ledger.try_reserve("f", 98, "", 100) is not None
    with refused(Code.QUOTA_EXCEEDED):
        ledger.try_reserve("f", 1, "", 100)
    ledger.note_deleted("f")
    assert ledger.try_reserve("f", 1, "", 100) is None
    assert len(disk.counted) == 1


def test_close_interrupts_a_count_and_the_requests_that_wait_for_it() -> None:
    counting = threading.Event()

    def count(name: str, should_continue: Callable[[], bool]) -> int:
        counting.set()
        while should_continue():
            pass
        return 0

    ledger = QuotaLedger(count, timeout_s=LONG_S)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(ledger.reserve, "f", 1, "", 100)
        assert counting.wait(LONG_S)
        ledger.close()
        with refused(Code.SHUTTING_DOWN):
            future.result(LONG_S)
