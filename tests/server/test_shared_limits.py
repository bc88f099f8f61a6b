"""Quotas over a directory store: stored files, unfinished uploads, and failures."""

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ftpkit.errors import Code, RefusedError
from ftpkit.osapi import files as os_files
from ftpkit.protocol.digest import digest_of
from ftpkit.server.auth.shared_limits import AccountQuota, LocalLimits
from ftpkit.storage import Store
from ftpkit.storage.api import SweepingStore, UploadSpec, offer_basis
from ftpkit.storage.directory.filesystem import FileSystem
from tests.storage.stores import (
    BLOCK,
    OWNER,
    Fault,
    Place,
    WatchedFiles,
    begin,
    commit,
    ignore,
    refused,
    send,
    stage,
)

LONG_S = 20.0


class Home:
    """A root with quotas, which can be reopened."""

    def __init__(self, root: Path) -> None:
        self.place = Place(root)
        self._stack = contextlib.ExitStack()

    def open(self, files: FileSystem | None = None) -> None:
        """Open the store; close the one that is open."""
        self._stack.close()
        place = self._stack.enter_context(Place(self.place.root))
        self.store = place.open(files)
        self.limits = LocalLimits(self.store.used_bytes)
        self._stack.callback(self.limits.quotas.close)

    def close(self) -> None:
        self._stack.close()

    def of(self, quota: int | None, under: str = "") -> Store:
        """Return the store of a user with ``quota`` bytes in ``under``."""
        return self.store.with_quota(AccountQuota(self.limits.quotas, under, quota))

    def by_hand(self, name: str, size: int) -> Path:
        path = self.place.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
        return path

    def left(self, quota: int, under: str = "") -> int:
        """Return how many bytes can still be reserved."""
        low, high = 0, quota + 1
        while high - low > 1:
            middle = (low + high) // 2
            try:
                self.limits.quotas.reserve(f"{under}/f", middle, under, quota).cancel()
                low = middle
            except RefusedError:
                high = middle
        return low


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path / "root")
    home.open()
    yield home
    home.close()


# Files in one piece


def test_a_quota_is_filled_to_the_byte_and_a_larger_file_leaves_nothing(home: Home) -> None:
    store = home.of(1000)
    stage(store, "f", bytes(400))
    with refused(Code.QUOTA_EXCEEDED):
        stage(store, "d/g", bytes(601))
    assert home.place.visible() == ["f"]
    assert home.place.private() == []
    stage(store, "d/g", bytes(600))
    stage(store, "empty", b"")
    with refused(Code.QUOTA_EXCEEDED):
        stage(store, "h", b"1")
    assert home.place.private() == []


def test_existing_files_count(home: Home) -> None:
    home.by_hand("old/f", 900)
    assert home.left(1000) == 100
    assert home.left(1000, "old") == 100
    assert home.left(1000, "new") == 1000


def test_a_staged_file_counts_and_is_cancelled_when_discarded(home: Home) -> None:
    store = home.of(1000)
    staged = store.stage(UploadSpec(name="f", total=700), None)
    staged.write(memoryview(bytes(10)))
    assert home.left(1000) == 300
    staged.discard()
    staged.discard()
    assert home.left(1000) == 1000
    with refused(Code.DIGEST_MISMATCH):
        stage(store, "f", bytes(700), digest=digest_of(b"other"))
    assert home.left(1000) == 1000


def test_a_file_that_cannot_be_staged_is_cancelled(home: Home) -> None:
    fault = Fault()
    home.open(WatchedFiles(fault))
    store = home.of(1000)
    stage(store, "f", bytes(100))
    for nth in range(20):
        fault.arm(nth)
        with contextlib.suppress(RefusedError, OSError):
            stage(store, "g", bytes(200))
        fault.disarm()
        stands = (home.place.root / "g").exists()
        assert home.left(1000) == 900 - 200 * stands, (nth, fault.failed)
        if fault.failed is None:
            break
        if stands:
            store.delete("g", recursive=False, progress=ignore)
    else:
        pytest.fail("it always fails")


def test_a_file_counts_until_it_is_replaced(home: Home) -> None:
    store = home.of(1000)
    stage(store, "f", bytes(600))
    with refused(Code.QUOTA_EXCEEDED):
        stage(store, "f", bytes(401))
    stage(store, "f", bytes(400))
    assert home.left(1000) == 600


def test_deleted_bytes_are_free_at_once(home: Home) -> None:
    store = home.of(1000)
    for name in ("f", "d/g", "d/e/h"):
        stage(store, name, bytes(300))
    assert home.left(1000) == 100
    store.delete("f", recursive=False, progress=ignore)
    assert home.left(1000) == 400
    store.delete("d", recursive=True, progress=ignore)
    assert home.left(1000) == 1000


def test_a_renamed_file_counts_in_its_new_directory(home: Home) -> None:
    everywhere = home.of(None)
    stage(everywhere, "b/f", bytes(300))
    assert home.left(1000, "a") == 1000
    everywhere.rename("b", "a/b", overwrite=False)
    assert home.left(1000, "a") == 700
    everywhere.rename("a/b/f", "a/f", overwrite=False)
    assert home.left(1000, "a") == 700
    stage(everywhere, "a/g", bytes(200))
    assert home.left(1000, "a") == 500
    everywhere.rename("a/g", "a/f", overwrite=True)
    assert home.left(1000, "a") == 800
    everywhere.rename("a/f", "f", overwrite=False)
    assert home.left(1000, "a") == 1000


def test_files_of_users_without_a_quota_count_for_the_others(home: Home) -> None:
    assert home.left(1000, "a") == 1000
    stage(home.of(None), "a/f", bytes(999))
    stage(home.of(None), "b", bytes(999))
    assert home.left(1000, "a") == 1
    stage(home.of(None), "a/g", bytes(999))
    with refused(Code.QUOTA_EXCEEDED):
        stage(home.of(1000, "a"), "a/h", b"1")


def test_quotas_of_nested_directories_are_kept_separately(home: Home) -> None:
    outer, same, inner = home.of(1000, "a"), home.of(500, "a"), home.of(300, "a/b")
    stage(outer, "a/f", bytes(400))
    stage(inner, "a/b/f", bytes(300))
    with refused(Code.QUOTA_EXCEEDED):
        stage(inner, "a/b/g", b"1")
    with refused(Code.QUOTA_EXCEEDED):
        stage(same, "a/g", b"1")
    assert home.left(1000, "a") == 300
    assert home.left(500, "a/bc") == 500


def test_of_two_requests_for_the_last_bytes_exactly_one_succeeds(home: Home) -> None:
    store = home.of(100)
    for attempt in range(20):
        barrier = threading.Barrier(2)

        def put(name: str, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait(LONG_S)
            with contextlib.suppress(RefusedError):
                stage(store, name, bytes(60))
                return True
            return False

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(put, (f"{attempt}a", f"{attempt}b"))) == [False, True]
        for name in home.place.visible():
            store.delete(name, recursive=False, progress=ignore)


def test_concurrent_requests_do_not_exceed_the_quota(home: Home) -> None:
    store = home.of(1000)
    barrier = threading.Barrier(8)

    def put(number: int) -> int:
        barrier.wait(LONG_S)
        done = 0
        for attempt in range(30):
            with contextlib.suppress(RefusedError):
                stage(store, f"{number}/{attempt}", bytes(30))
                done += 1
                if attempt % 3 == 0:
                    store.delete(f"{number}/{attempt}", recursive=False, progress=ignore)
                    done -= 1
        return done

    with ThreadPoolExecutor(8) as pool:
        done = sum(pool.map(put, range(8)))
    assert done <= 33
    assert home.left(1000) == 1000 - 30 * done


# Uploads in blocks


def test_an_upload_reserves_its_total_before_it_makes_a_file(home: Home) -> None:
    store = home.of(3 * BLOCK)
    upload = begin(store, "f", 2 * BLOCK)
    assert home.left(3 * BLOCK) == BLOCK
    with refused(Code.QUOTA_EXCEEDED):
        begin(store, "g", BLOCK + 1)
    assert len(home.place.private()) == 1
    last = begin(store, "g", BLOCK)
    assert home.left(3 * BLOCK) == 0
    for each, name in ((upload, "f"), (last, "g")):
        for offset in range(0, each.spec.total or 0, BLOCK):
            send(each, offset, bytes(BLOCK))
        assert commit(each, each.spec.total or 0).name == name
        each.release()
        assert home.left(3 * BLOCK) == 0


def test_a_file_that_an_upload_replaces_is_free_at_once(home: Home) -> None:
    store = home.of(3 * BLOCK)
    stage(store, "f", bytes(2 * BLOCK))
    upload = begin(store, "f", BLOCK)
    send(upload, 0, bytes(BLOCK))
    assert home.left(3 * BLOCK) == 0
    commit(upload, BLOCK)
    upload.release()
    assert home.left(3 * BLOCK) == 2 * BLOCK


def test_a_continued_upload_reserves_nothing(home: Home) -> None:
    store = home.of(BLOCK)
    first = begin(store, "f", BLOCK)
    again = begin(store, "f", BLOCK)
    send(first, 0, bytes(BLOCK))
    first.release()
    again.release()
    third = begin(store, "f", BLOCK)
    commit(third, BLOCK)
    third.release()
    assert home.left(BLOCK) == 0


def test_unfinished_uploads_count_after_a_restart(home: Home) -> None:
    begin(home.of(100), "f", 60).release()
    begin(home.of(100, "d"), "d/f", 60).release()
    home.open()
    assert home.left(200) == 80
    assert home.left(100, "d") == 40
    assert home.left(100, "other") == 100
    begin(home.of(60), "f", 60).release()


def test_a_hard_link_to_its_data_does_not_change_what_an_upload_counts(home: Home) -> None:
    begin(home.of(100), "f", 60).release()
    (data,) = (home.place.root / ".ftpkit/uploads").glob("*/data")
    try:
        (home.place.root.parent / "data").hardlink_to(data)
    except OSError:
        pytest.skip("no hard links on this file system")
    home.limits.quotas.note_deleted("f")
    assert home.left(100) == 40
    assert home.left(50) == 0


def test_an_upload_that_is_aborted_or_expires_is_freed(home: Home) -> None:
    store = home.of(100)
    upload = begin(store, "f", 100)
    store.abort(upload.id, owner=OWNER)
    upload.release()
    assert home.left(100) == 100
    begin(store, "f", 100).release()
    assert home.left(100) == 0
    assert isinstance(store, SweepingStore)
    store.sweep(uploads_s=-1.0, publications_s=1e9)
    assert home.left(100) == 100


def test_an_upload_that_cannot_be_made_is_cancelled(home: Home) -> None:
    fault = Fault()
    home.open(WatchedFiles(fault))
    store = home.of(100)
    for nth in range(20):
        fault.arm(nth)
        upload = None
        with contextlib.suppress(RefusedError):
            upload = begin(store, "f", 100)
        fault.disarm()
        if upload is not None:
            upload.release()
            break
        assert home.left(100) == 100, (nth, fault.failed)
    assert home.left(100) == 0


def test_an_upload_that_fails_to_publish_counts_once(home: Home) -> None:
    fault = Fault()
    home.open(WatchedFiles(fault))
    for nth in range(40):
        store = home.of(4 * BLOCK)
        upload = begin(store, "f", BLOCK)
        if not nth:
            send(upload, 0, bytes(BLOCK))
        fault.arm(nth)
        with contextlib.suppress(RefusedError, OSError):
            commit(upload, BLOCK)
        fault.disarm()
        upload.release()
        assert home.left(4 * BLOCK) == 3 * BLOCK, (nth, fault.failed)
        if fault.failed is None:
            break
        if (home.place.root / "f").exists():
            store.delete("f", recursive=False, progress=ignore)
            upload = begin(store, "f", BLOCK)
            send(upload, 0, bytes(BLOCK))
            upload.release()


# Uploads of unknown length


def test_without_a_total_each_block_reserves_its_size(home: Home) -> None:
    store = home.of(2 * BLOCK + 10)
    upload = begin(store)
    assert home.left(2 * BLOCK + 10) == 2 * BLOCK + 10
    send(upload, 0, bytes(BLOCK))
    writer = upload.write(BLOCK, BLOCK, digest_of(bytes(BLOCK)))
    assert home.left(2 * BLOCK + 10) == 10
    with refused(Code.QUOTA_EXCEEDED):
        send(upload, 2 * BLOCK, bytes(11))
    writer.release()
    assert home.left(2 * BLOCK + 10) == BLOCK + 10
    send(upload, BLOCK, bytes(BLOCK))
    send(upload, 2 * BLOCK, bytes(10))
    assert home.left(2 * BLOCK + 10) == 0
    commit(upload, 2 * BLOCK + 10)
    upload.release()
    assert home.left(2 * BLOCK + 10) == 0


def test_a_block_that_is_sent_again_reserves_nothing_more(home: Home) -> None:
    upload = begin(home.of(BLOCK))
    dead = upload.write(0, BLOCK, digest_of(bytes(BLOCK)))
    dead.write(memoryview(bytes(9)))
    send(upload, 0, bytes(BLOCK))
    dead.release()
    assert home.left(BLOCK) == 0
    send(upload, 0, bytes(BLOCK))
    send(upload, 0, b"x" * BLOCK)
    assert home.left(BLOCK) == 0
    writer = upload.write(0, BLOCK, digest_of(bytes(BLOCK)))
    assert home.left(BLOCK) == 0
    writer.release()
    assert home.left(BLOCK) == BLOCK
    upload.release()


def test_a_block_with_a_wrong_digest_is_cancelled(home: Home) -> None:
    upload = begin(home.of(BLOCK))
    with refused(Code.DIGEST_MISMATCH):
        writer = upload.write(0, BLOCK, digest_of(b"other"))
        try:
            writer.write(memoryview(bytes(BLOCK)))
            writer.finish()
        finally:
            writer.release()
    assert home.left(BLOCK) == BLOCK
    upload.release()


def test_blocks_of_an_upload_of_unknown_length_count_after_a_restart(home: Home) -> None:
    upload = begin(home.of(None))
    send(upload, 0, bytes(BLOCK))
    send(upload, 7 * BLOCK, bytes(5))
    upload.release()
    home.open()
    assert home.left(2 * BLOCK) == BLOCK - 5


def test_an_upload_of_unknown_length_opened_by_its_id_has_the_quota(home: Home) -> None:
    upload = begin(home.of(BLOCK))
    upload.release()
    home.open()
    upload = home.of(BLOCK).upload(upload.id, owner=OWNER)
    send(upload, 0, bytes(BLOCK))
    with refused(Code.QUOTA_EXCEEDED):
        send(upload, BLOCK, b"1")
    upload.release()


def test_blocks_from_a_basis_count_for_an_upload_of_unknown_length(home: Home) -> None:
    store = home.of(None)
    stage(store, "f", bytes(2 * BLOCK))
    for quota, code in ((4 * BLOCK - 1, Code.QUOTA_EXCEEDED), (4 * BLOCK, None)):
        limited = home.of(quota)
        upload = begin(limited, "f")
        offer_basis(limited, upload, "blake3", ignore)
        send(upload, 0, b"x" * BLOCK)
        with refused(code) if code else contextlib.nullcontext():
            commit(upload, 2 * BLOCK)
        upload.release()
    assert home.left(4 * BLOCK) == 2 * BLOCK


# Counts of the disk


def test_symbolic_links_and_special_files_are_neither_counted_nor_followed(
    home: Home, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "big").write_bytes(bytes(500))
    home.by_hand("d/f", 10)
    top = home.place.root / "d"
    try:
        (top / "file").symlink_to(outside / "big")
        (top / "directory").symlink_to(outside, target_is_directory=True)
        (home.place.root / "linked").symlink_to(outside, target_is_directory=True)
        (top / "loop").symlink_to(top, target_is_directory=True)
    except OSError:
        pytest.skip("no symbolic links on this system")
    if hasattr(os, "mkfifo"):
        os.mkfifo(top / "fifo")
    assert home.left(1000, "d") == 990
    assert home.left(1000, "linked") == 1000
    assert home.store.used_bytes("d/fifo", lambda: True) == 0


def test_the_directory_of_the_server_is_not_counted(home: Home) -> None:
    home.by_hand(".ftpkit/published/f", 100)
    home.by_hand(".ftpkit/uploads/strange", 100)
    home.by_hand(".ftpkit/uploads/empty/f", 100)
    assert home.left(1000) == 1000


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc/self/fd on this system")
def test_a_count_of_a_deep_tree_uses_no_more_descriptors_or_steps(home: Home) -> None:
    for depth in (3, 200, 400):
        home.by_hand("/".join("d" * depth) + "/f", 7)
    steps = list[int]()

    def should_continue() -> bool:
        steps.append(len(os.listdir("/proc/self/fd")))
        return True

    assert home.store.used_bytes("", should_continue) == 21
    assert max(steps) == min(steps)
    assert len(steps) <= 2 * 400 + 2


@pytest.mark.skipif(not os_files.HAS_DIR_FD, reason="no directory descriptors on this system")
def test_a_directory_renamed_during_a_count_does_not_lead_outside(home: Home) -> None:
    home.by_hand("a/b/c/f", 10)
    top, steps = home.place.root, list[str]()

    def should_continue() -> bool:
        steps.append("")
        if len(steps) == 3:
            (top / "a/b").rename(top / "moved")
        return True

    with pytest.raises(OSError, match="tale"):
        home.store.used_bytes("", should_continue)
