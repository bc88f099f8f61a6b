"""Several stores in one root, as in the processes of one server."""

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ftpkit.errors import Code, WrongWorkerError
from ftpkit.osapi import files as os_files
from ftpkit.storage import DirectoryStore
from ftpkit.storage.api import UploadSpec
from tests.storage.stores import (
    BLOCK,
    OWNER,
    QuickFiles,
    WatchedFiles,
    begin,
    blocks_of,
    commit,
    fetch,
    held,
    ignore,
    refused,
    send,
    stage,
)

DATA = random.Random(5).randbytes(2 * BLOCK + 9)
BLOCKS = blocks_of(DATA)
KEEPER = 0


@dataclass
class Table:
    """Which process has locked which upload."""

    holders: dict[str, int] = field(default_factory=dict)

    def of(self, number: int) -> "Seat":
        return Seat(self, number)


@dataclass
class Seat:
    table: Table
    number: int

    def acquire(self, key: str) -> None:
        holder = self.table.holders.setdefault(key, self.number)
        if holder != self.number:
            raise WrongWorkerError(holder)

    def release(self, key: str) -> None:
        assert self.table.holders.pop(key) == self.number


Join = Callable[[int], DirectoryStore]


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def keeper(tmp_path: Path, table: Table) -> Iterator[DirectoryStore]:
    """The store of the process that opened the root."""
    with DirectoryStore(tmp_path / "root", QuickFiles()) as store:
        store.use_locks(table.of(KEEPER))
        yield store


@pytest.fixture
def join(keeper: DirectoryStore, table: Table) -> Iterator[Join]:
    """Open the root for one more process."""
    with ExitStack() as stack:

        def open_share(number: int) -> DirectoryStore:
            lease = keeper.lease(number)
            store = lease.open([os.dup(fd) for fd in lease.descriptors], table.of(number))
            assert isinstance(store, DirectoryStore)
            return stack.enter_context(store)

        yield open_share


def test_an_upload_open_in_one_process_is_refused_in_the_others(join: Join, table: Table) -> None:
    one, other = join(1), join(2)
    upload = begin(one, "f", len(DATA))
    for attempt in (
        lambda: begin(other, "f", len(DATA)),
        lambda: other.upload(upload.id, owner=OWNER),
        lambda: other.abort(upload.id, owner=OWNER),
        lambda: other.published(upload.id, owner=OWNER),
    ):
        with pytest.raises(WrongWorkerError) as caught:
            attempt()
        assert caught.value.holder == 1
    begin(one, "f", len(DATA)).release()
    assert len(table.holders) == 1
    upload.release()
    assert table.holders == {}


def test_an_upload_released_by_one_process_is_continued_by_another(
    join: Join, table: Table
) -> None:
    one, other = join(1), join(2)
    upload = begin(one, "f", len(DATA))
    send(upload, 0, BLOCKS[0])
    upload.release()
    upload = begin(other, "f", len(DATA))
    assert held(upload) == [0]
    for offset in (BLOCK, 2 * BLOCK):
        send(upload, offset, BLOCKS[offset])
    info = commit(upload, len(DATA))
    assert table.holders == {}
    upload.release()
    assert fetch(one, "f") == DATA
    assert one.published(upload.id, owner=OWNER) == info
    assert table.holders == {}


def test_a_missing_upload_is_not_locked(join: Join, table: Table) -> None:
    one = join(1)
    upload = begin(one, "f", len(DATA))
    one.abort(upload.id, owner=OWNER)
    assert table.holders == {}
    upload.release()
    with refused(Code.NOT_FOUND):
        one.upload(upload.id, owner=OWNER)
    with refused(Code.IS_A_DIRECTORY):
        one.mkdir("d")
        begin(one, "d", 1)
    assert one.published(upload.id, owner=OWNER) is None
    assert table.holders == {}


def test_an_upload_that_cannot_be_made_is_not_locked(
    join: Join, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = join(1)
    monkeypatch.setattr(os_files, "allocate", lambda *args: os.write(-1, b""))
    with pytest.raises(OSError, match="descriptor"):
        begin(one, "f", 2**30)
    assert table.holders == {}


def test_the_first_process_sweeps_uploads_that_are_not_open(
    keeper: DirectoryStore, join: Join, table: Table
) -> None:
    one = join(1)
    kept = begin(one, "kept", len(DATA))
    begin(one, "left", len(DATA)).release()
    keeper.sweep(uploads_s=-1.0, publications_s=1e9)
    uploads = Path(keeper.root.path, ".ftpkit", "uploads")
    assert [path.name for path in uploads.iterdir()] == [kept.id.partition("-")[0]]
    assert list(table.holders.values()) == [1]
    kept.release()


def test_the_first_process_reclaims_the_staging_of_an_ended_one(
    keeper: DirectoryStore, join: Join
) -> None:
    one, other = join(1), join(2)
    lost = one.stage(UploadSpec(name="lost", total=3), None)
    lost.write(memoryview(b"abc"))
    staged = other.stage(UploadSpec(name="kept", total=3), None)
    staged.write(memoryview(b"xyz"))
    keeper.reclaim(1)
    keeper.reclaim(7)
    staging = Path(keeper.root.path, ".ftpkit", "staging")
    assert [path.name for path in staging.iterdir()] == ["2"]
    staged.commit()
    assert fetch(keeper, "kept") == b"xyz"
    lost.discard()


def test_each_process_can_delete(join: Join) -> None:
    one, other = join(1), join(2)
    stage(one, "d/e/f", b"1")
    other.delete("d", recursive=True, progress=ignore)
    with refused(Code.NOT_FOUND):
        one.read("d/e/f")
    stage(one, "d/e/f", b"2")
    assert fetch(other, "d/e/f") == b"2"


def test_a_root_that_was_replaced_is_not_shared(
    keeper: DirectoryStore, join: Join, tmp_path: Path
) -> None:
    (tmp_path / "root").rename(tmp_path / "moved")
    DirectoryStore(tmp_path / "root", QuickFiles()).close()
    with pytest.raises(FileNotFoundError, match="was replaced while the server"):
        join(1)


def test_an_upload_that_takes_long_to_open_holds_up_no_other(tmp_path: Path) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def before(change: str) -> None:
        if threading.current_thread().name == "slow" and change == "create":
            entered.set()
            assert go_on.wait(10.0)

    with DirectoryStore(tmp_path / "root", WatchedFiles(before)) as store:
        slow = threading.Thread(target=lambda: begin(store, "slow").release(), name="slow")
        slow.start()
        try:
            assert entered.wait(10.0)
            upload = begin(store, "quick", len(DATA))
            for offset, data in BLOCKS.items():
                send(upload, offset, data)
            commit(upload, len(DATA))
            upload.release()
            assert slow.is_alive()
        finally:
            go_on.set()
            slow.join()
        assert fetch(store, "quick") == DATA
