"""A disk that fails: errors become refusals, and no failure leaves a wrong state."""

import errno
import threading
from collections.abc import Callable
from contextlib import closing

import pytest

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.digest import digest_of
from ftpkit.storage import DirectoryStore
from ftpkit.storage.api import FileInfo, UploadSpec
from ftpkit.storage.directory.filesystem import DirHandle
from tests.storage.stores import (
    BLOCK,
    OWNER,
    Fault,
    Place,
    QuickFiles,
    WatchedFiles,
    begin,
    commit,
    fetch,
    held,
    ignore,
    listed,
    refused,
    send,
    stage,
)

MEANING = {
    errno.ENOSPC: Code.NO_SPACE,
    errno.EDQUOT: Code.QUOTA_EXCEEDED,
    errno.EROFS: Code.FORBIDDEN,
    errno.EACCES: Code.FORBIDDEN,
    errno.EFBIG: Code.TOO_LARGE,
    errno.EXDEV: Code.UNSUPPORTED,
    errno.EMFILE: Code.BUSY,
    errno.ENFILE: Code.BUSY,
    errno.ENAMETOOLONG: Code.BAD_NAME,
    errno.EILSEQ: Code.BAD_NAME,
}


@pytest.mark.parametrize("number", MEANING, ids=errno.errorcode.get)
def test_an_error_of_the_disk_becomes_a_refusal(place: Place, number: int) -> None:
    fault = Fault()
    with place.open(WatchedFiles(fault)) as store:
        staged = store.stage(UploadSpec(name="f", total=1), None)
        fault.arm(0, number)
        with refused(MEANING[number]):
            staged.write(memoryview(b"x"))
        fault.disarm()
        staged.discard()
    assert place.visible() == place.private() == []


def test_an_error_that_no_client_can_mend_is_internal(place: Place) -> None:
    fault = Fault()
    with place.open(WatchedFiles(fault)) as store:
        staged = store.stage(UploadSpec(name="f", total=1), None)
        fault.arm(0, errno.EIO)
        with pytest.raises(OSError, match="Input/output error"):
            staged.write(memoryview(b"x"))
        fault.disarm()
        staged.discard()


def upload_whole(store: DirectoryStore) -> FileInfo:
    upload = begin(store, "f", BLOCK + 3)
    try:
        send(upload, 0, b"n" * BLOCK)
        send(upload, BLOCK, b"new")
        return commit(upload, BLOCK + 3)
    finally:
        upload.release()


def stage_over(store: DirectoryStore) -> FileInfo:
    return stage(store, "f", b"n" * BLOCK + b"new", mtime=5, mode=0o600)


ARRIVALS = {"stage": stage_over, "upload": upload_whole}
NEW, OLD = b"n" * BLOCK + b"new", b"old"


@pytest.mark.parametrize("method", ARRIVALS)
def test_a_failed_change_leaves_the_old_file_or_the_new_one(place: Place, method: str) -> None:
    fault = Fault()
    with place.open(WatchedFiles(fault)) as store:
        nth = 0
        while True:
            stage(store, "f", OLD)
            fault.arm(nth)
            try:
                ARRIVALS[method](store)
                answered = True
            except RefusedError as refusal:
                assert refusal.code is Code.NO_SPACE  # noqa: PT017
                answered = False
            failed = fault.failed
            fault.disarm()
            assert fetch(store, "f") == NEW if answered else fetch(store, "f") in (OLD, NEW)
            assert place.visible() == ["f"]
            # The same again now works, whatever the failure left behind.
            ARRIVALS[method](store)
            assert fetch(store, "f") == NEW
            assert place.private() == []
            if failed is None:
                break
            nth += 1
        assert nth >= 4


@pytest.mark.parametrize("released", [True, False])
def test_a_repeated_commit_returns_the_file_after_any_failed_change(
    place: Place, released: bool
) -> None:
    fault = Fault()
    with place.open(WatchedFiles(fault)) as store:
        for overwrite in (True, False):
            nth = 0
            while True:
                upload = begin(store, "g", 3, overwrite=overwrite)
                send(upload, 0, b"new")
                fault.arm(nth)
                try:
                    commit(upload, 3)
                except RefusedError as refusal:
                    assert refusal.code is Code.NO_SPACE  # noqa: PT017
                failed = fault.failed
                fault.disarm()
                if released:
                    upload.release()
                publication = committed_again(store, upload.id)
                upload.release()
                assert publication.total == 3
                assert publication.content_digest in (None, digest_of(b"new"))
                assert fetch(store, "g") == b"new"
                assert place.private() == []
                store.delete("g", recursive=False, progress=ignore)
                if failed is None:
                    break
                nth += 1
            assert nth >= 5


def committed_again(store: DirectoryStore, identity: str) -> FileInfo:
    """Commit as a server does for a client whose connection was lost."""
    try:
        upload = store.upload(identity, owner=OWNER)
    except RefusedError:
        publication = store.published(identity, owner=OWNER)
        assert publication is not None
        return publication
    try:
        return commit(upload, 3)
    finally:
        upload.release()


def rename_file(store: DirectoryStore) -> None:
    store.rename("d/f", "e/g", overwrite=False)


def rename_over(store: DirectoryStore) -> None:
    store.rename("d/f", "e/old", overwrite=True)


def rename_directory(store: DirectoryStore) -> None:
    store.rename("d", "e/d", overwrite=False)


def delete_file(store: DirectoryStore) -> None:
    store.delete("d/f", recursive=False, progress=ignore)


@pytest.mark.parametrize("work", [rename_file, rename_over, rename_directory, delete_file])
def test_a_refused_first_change_leaves_everything_as_it_was(
    place: Place, work: Callable[[DirectoryStore], None]
) -> None:
    fault = Fault()
    with place.open(WatchedFiles(fault)) as store:
        stage(store, "d/f", b"one")
        stage(store, "e/old", b"two")
        before = listed(store)
        fault.arm(0)
        with refused(Code.NO_SPACE):
            work(store)
        fault.disarm()
        assert listed(store) == before
        assert (fetch(store, "d/f"), fetch(store, "e/old")) == (b"one", b"two")


def test_a_failed_rename_of_a_directory_leaves_no_empty_one(place: Place) -> None:
    fault = Fault()
    with place.open(WatchedFiles(fault)) as store:
        stage(store, "d/f", b"one")
        fault.arm(0)
        with refused(Code.NO_SPACE):
            store.rename("d", "e", overwrite=False)
        assert fault.failed == "rename"
        fault.disarm()
        assert listed(store) == ["d", "d/f"]


def test_reopening_an_upload_on_a_full_disk_is_refused_and_leaks_nothing(place: Place) -> None:
    fault = Fault()
    with place.open(WatchedFiles(fault)) as store:
        upload = begin(store, "f", 3)
        upload.release()
        fault.arm(0)
        with refused(Code.NO_SPACE):
            store.upload(upload.id, owner=OWNER)
        assert fault.failed == "truncate"
        fault.disarm()
        store.upload(upload.id, owner=OWNER).release()


class HalfFull(QuickFiles):
    """Writes half of the bytes, once, and then fails as a full disk does."""

    def __init__(self) -> None:
        self.full = False

    def write(self, fd: int, view: memoryview, offset: int) -> None:
        if self.full:
            super().write(fd, view[: len(view) // 2], offset)
            raise OSError(errno.ENOSPC, "full")
        super().write(fd, view, offset)


def test_half_a_record_of_a_full_disk_does_not_hide_later_records(place: Place) -> None:
    files = HalfFull()
    with place.open(files) as store:
        upload = begin(store, "f", 3 * BLOCK)
        send(upload, 0, b"a" * BLOCK)
        writer = upload.write(BLOCK, BLOCK, digest_of(b"b" * BLOCK))
        writer.write(memoryview(b"b" * BLOCK))
        files.full = True
        with refused(Code.NO_SPACE):
            writer.finish()
        files.full = False
        writer.release()
        send(upload, 2 * BLOCK, b"c" * BLOCK)
        upload.release()
    with place.open() as store:
        assert held(begin(store, "f", 3 * BLOCK)) == [0, 2 * BLOCK]


def test_a_block_whose_record_failed_does_not_count_for_the_digest_of_the_file(
    place: Place,
) -> None:
    files = HalfFull()
    with place.open(files) as store:
        upload = begin(store, "f", 2 * BLOCK)
        writer = upload.write(0, BLOCK, digest_of(b"a" * BLOCK))
        writer.write(memoryview(b"a" * BLOCK))
        files.full = True
        with refused(Code.NO_SPACE):
            writer.finish()
        files.full = False
        writer.release()
        send(upload, 0, b"b" * BLOCK)
        send(upload, BLOCK, b"c" * BLOCK)
        data = b"b" * BLOCK + b"c" * BLOCK
        assert commit(upload, 2 * BLOCK).content_digest in (None, digest_of(data))
        upload.release()
        assert fetch(store, "f") == data


class NoLinks(QuickFiles):
    """A disk without hard links."""

    def __init__(self, number: int) -> None:
        self._number = number

    def hard_link(self, source: DirHandle, part: str, target: DirHandle, to: str) -> None:
        raise OSError(self._number, "no links here")


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_hard_links_a_new_file_is_published_all_the_same(place: Place, number: int) -> None:
    with place.open(NoLinks(number)) as store:
        stage(store, "f", b"one", overwrite=False)
        store.rename("f", "g", overwrite=False)
        assert fetch(store, "g") == b"one"
        with refused(Code.EXISTS):
            stage(store, "g", b"two", overwrite=False)
    assert place.private() == []


# Races, made certain: a second thread acts exactly while the disk is busy


def test_of_three_writers_of_a_block_only_the_last_reaches_the_file(place: Place) -> None:
    busy, go_on = threading.Event(), threading.Event()
    slow = threading.current_thread()

    def before(change: str) -> None:
        if change == "write" and threading.current_thread() is slow:
            busy.set()
            assert go_on.wait(30)

    with place.open(WatchedFiles(before)) as store:
        slow = threading.Thread()
        upload = begin(store, "f", 5)
        first = upload.write(0, 5, digest_of(b"first"))

        def write_first() -> None:
            first.write(memoryview(b"first"))

        slow = threading.Thread(target=write_first)
        slow.start()
        assert busy.wait(30)
        writers = []

        def take_over(data: bytes) -> None:
            writers.append(upload.write(0, 5, digest_of(data)))

        takers = [threading.Thread(target=take_over, args=(data,)) for data in (b"2nd..", b"3rd..")]
        for taker in takers:
            taker.start()
        # Whoever is not held up by the slow writer has come through by then.
        takers[1].join(0.1)
        go_on.set()
        for thread in [slow, *takers]:
            thread.join()
        winners = 0
        for writer in writers:
            try:
                writer.write(memoryview(b"xxxxx"))
                winners += 1
            except RefusedError as refusal:
                assert refusal.code is Code.BUSY  # noqa: PT017
            writer.release()
        assert winners == 1
        first.release()
        upload.release()


def test_a_begin_during_an_abort_gets_an_upload_of_its_own(place: Place) -> None:
    begun = []
    threads = []
    armed = False

    def begin_again() -> None:
        begun.append(begin(store, "f", 5))

    def before(change: str) -> None:
        nonlocal armed
        if armed and change == "unlink":
            armed = False
            threads.append(threading.Thread(target=begin_again))
            threads[0].start()
            threads[0].join(0.1)

    with place.open(WatchedFiles(before)) as store:
        upload = begin(store, "f", 5)
        armed = True
        store.abort(upload.id, owner=OWNER)
        threads[0].join()
        upload.release()
        again = begun[0]
        assert again.id != upload.id
        send(again, 0, b"right")
        commit(again, 5)
        again.release()
        assert fetch(store, "f") == b"right"


def test_staged_files_are_deleted_at_the_next_start(place: Place) -> None:
    with closing(place.store()) as store:
        (place.top / ".ftpkit" / "staging" / "rest").write_bytes(b"half")
        (place.top / ".ftpkit" / "staging" / "tree" / "inner").mkdir(parents=True)
        stage(store, "f", b"one")
    with closing(place.store()) as store:
        assert place.private() == []
        assert fetch(store, "f") == b"one"


def test_a_name_too_long_for_the_disk_is_a_bad_name(place: Place) -> None:
    store = place.open()
    with refused(Code.BAD_NAME):
        store.stat("x" * 256)
    with refused(Code.BAD_NAME):
        stage(store, "x" * 256, b"")
