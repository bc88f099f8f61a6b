"""What is put into directories that others delete or move: nothing acknowledged is lost."""

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ftpkit.errors import Code, RefusedError
from ftpkit.osapi import files as os_files
from ftpkit.storage import DirectoryStore
from ftpkit.storage.directory.filesystem import DirHandle
from tests.storage.stores import (
    Place,
    QuickFiles,
    WatchedFiles,
    begin,
    commit,
    fetch,
    ignore,
    listed,
    refused,
    send,
    stage,
)


def put_staged(store: DirectoryStore) -> str:
    stage(store, "d/e/f", b"new")
    return "d/e/f"


def put_upload(store: DirectoryStore) -> str:
    upload = begin(store, "d/e/f", 3)
    try:
        send(upload, 0, b"new")
        commit(upload, 3)
    finally:
        upload.release()
    return "d/e/f"


def move_file(store: DirectoryStore) -> str:
    store.rename("source", "d/e/f", overwrite=False)
    return "d/e/f"


class Meanwhile(WatchedFiles):
    """Runs ``work`` in a thread at the ``nth`` change called ``moment`` of the thread ``watched``.

    That thread goes on when ``work`` has synced the directory in which it renamed something.
    """

    def __init__(self, work: Callable[[], None], moment: str, nth: int = 0) -> None:
        super().__init__(self._act)
        self._moment, self._nth = moment, nth
        self._watched = threading.get_ident()
        self._moved = threading.Event()
        self._thread = threading.Thread(target=work)
        self.armed = False

    def _act(self, change: str) -> None:
        if threading.get_ident() != self._watched:
            if change == "sync_directory":
                self._moved.set()
        elif self.armed and change == self._moment:
            self._nth -= 1
            if self._nth < 0:
                self.armed = False
                self._thread.start()
                assert self._moved.wait(30)

    def join(self) -> None:
        self._thread.join()


@contextlib.contextmanager
def disturbed(
    place: Place, work: Callable[[DirectoryStore], None], moment: str, nth: int = 0
) -> Iterator[DirectoryStore]:
    if not os_files.HAS_DIR_FD:
        pytest.skip("needs directories that are held open")
    files = Meanwhile(lambda: work(store), moment, nth)
    with place.open(files) as store:
        stage(store, "source", b"new")
        stage(store, "d/e/old", b"old")
        files.armed = True
        yield store
        files.join()
        assert not files.armed, "the moment did not come"
        assert place.private() == []


def delete_top(store: DirectoryStore) -> None:
    store.delete("d", recursive=True, progress=ignore)


def move_top(store: DirectoryStore) -> None:
    store.rename("d", "moved", overwrite=False)


@pytest.mark.parametrize("put", [put_staged, put_upload])
@pytest.mark.parametrize("moment", ["rename", "sync_directory"])
def test_a_put_whose_directory_is_deleted_meanwhile_is_not_lost(
    place: Place, put: Callable[[DirectoryStore], str], moment: str
) -> None:
    # An upload has synced its own directory twice before that of its name.
    nth = 2 if (put, moment) == (put_upload, "sync_directory") else 0
    with disturbed(place, delete_top, moment, nth) as store:
        name = put(store)
        assert fetch(store, name) == b"new"
    assert "d/e/old" not in place.visible()


def test_a_rename_into_a_directory_that_is_deleted_meanwhile_is_not_lost(place: Place) -> None:
    with disturbed(place, delete_top, "rename_noreplace") as store:
        name = move_file(store)
        assert fetch(store, name) == b"new"
    assert place.visible() == ["d", "d/e", "d/e/f"]


@pytest.mark.parametrize("work", [delete_top, move_top])
def test_missing_parents_are_made_again_where_others_take_them_away(
    place: Place, work: Callable[[DirectoryStore], None]
) -> None:
    with disturbed(place, work, "mkdir") as store:
        stage(store, "d/e/made/f", b"new")
        assert fetch(store, "d/e/made/f") == b"new"


@pytest.mark.parametrize("work", [delete_top, move_top])
def test_mkdir_makes_the_parents_again_too(
    place: Place, work: Callable[[DirectoryStore], None]
) -> None:
    with disturbed(place, work, "mkdir") as store:
        store.mkdir("d/e/made")
        assert "d/e/made" in listed(store)


def test_what_is_put_beside_deletions_is_never_refused_and_the_last_one_stays(
    place: Place,
) -> None:
    done = threading.Event()
    unexpected: list[BaseException] = []

    def delete_often(store: DirectoryStore) -> None:
        while not done.is_set():
            try:
                store.delete("d", recursive=True, progress=ignore)
            except RefusedError as refusal:
                if refusal.code != Code.NOT_FOUND:
                    unexpected.append(refusal)

    def put_often(store: DirectoryStore, number: int) -> None:
        try:
            for attempt in range(100):
                stage(store, f"d/e{attempt % 3}/{number}-{attempt}", b"data")
        except RefusedError as refusal:
            unexpected.append(refusal)

    with place.open() as store:
        deleter = threading.Thread(target=delete_often, args=(store,))
        deleter.start()
        putters = [threading.Thread(target=put_often, args=(store, n)) for n in range(3)]
        for thread in putters:
            thread.start()
        for thread in putters:
            thread.join()
        done.set()
        deleter.join()
        if os_files.HAS_DIR_FD:
            assert unexpected == []
            assert place.private() == []
        stage(store, "d/last", b"data")
        assert fetch(store, "d/last") == b"data"


class Late(QuickFiles):
    """Makes a directory in each one just before it is removed, as others can who have it open."""

    late = 3

    def rmdir(self, directory: DirHandle, part: str) -> None:
        if self.late:
            self.late -= 1
            os.makedirs(os.path.join(directory.path, part, "late", "inner"))
        super().rmdir(directory, part)


def test_what_is_made_in_a_directory_while_it_is_deleted_is_deleted_too(place: Place) -> None:
    files = Late()
    with place.open(files) as store:
        stage(store, "d/e/f", b"data")
        store.delete("d", recursive=True, progress=ignore)
        assert files.late == 0
        assert place.visible() == place.private() == []


# What cannot be deleted


class Stubborn(QuickFiles):
    """Cannot delete what is called "locked", nor move a directory of that name."""

    stubborn = True

    def unlink(self, directory: DirHandle, part: str) -> None:
        self._check(part)
        super().unlink(directory, part)

    def rename(self, source: DirHandle, part: str, target: DirHandle, to: str) -> None:
        self._check(part)
        super().rename(source, part, target, to)

    def _check(self, part: str) -> None:
        if self.stubborn and part == "locked":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), part)


def test_what_cannot_be_deleted_keeps_its_name_and_all_else_is_deleted(place: Place) -> None:
    files = Stubborn()
    with place.open(files) as store:
        for name in ("d/a", "d/e/locked/f", "d/e/g", "d/x/y/locked", "d/x/y/z/g", "d/w/g"):
            stage(store, name, b"data")
        with pytest.raises(RefusedError, match="'d/e/locked'") as caught:
            store.delete("d", recursive=True, progress=ignore)
        assert caught.value.code is Code.FORBIDDEN
        assert listed(store) == [
            "d", "d/e", "d/e/locked", "d/e/locked/f", "d/x", "d/x/y", "d/x/y/locked",
        ]  # fmt: skip
        assert place.private() == []
        files.stubborn = False
        store.delete("d", recursive=True, progress=ignore)
        assert place.visible() == place.private() == []


def test_what_cannot_get_its_name_back_is_logged(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    class Unmovable(Stubborn):
        def rename_noreplace(
            self, source: DirHandle, part: str, target: DirHandle, to: str
        ) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), part)

        def hard_link(self, source: DirHandle, part: str, target: DirHandle, to: str) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), part)

        def rename(self, source: DirHandle, part: str, target: DirHandle, to: str) -> None:
            if to == "d":
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), part)
            super().rename(source, part, target, to)

    with place.open(Unmovable()) as store:
        stage(store, "d/locked/f", b"data")
        with refused(Code.FORBIDDEN):
            store.delete("d", recursive=True, progress=ignore)
    (part,) = place.private()
    assert part in caplog.text
    assert "'d'" in caplog.text


def test_an_unreadable_directory_inside_stays_with_its_parents(unprivileged: Path) -> None:
    with Place(unprivileged) as place:
        store = place.open()
        stage(store, "d/f", b"data")
        stage(store, "d/e/locked/f", b"data")
        store.mkdir("d/e/empty")
        (unprivileged / "d/e/empty").chmod(0)
        (unprivileged / "d/e/locked").chmod(0)
        with pytest.raises(RefusedError, match="'d/e/locked'") as caught:
            store.delete("d", recursive=True, progress=ignore)
        assert caught.value.code is Code.FORBIDDEN
        assert listed(store, recursive=False) == ["d"]
        assert listed(store, "d/e", recursive=False) == ["d/e/locked"]
        assert place.private() == []
        (unprivileged / "d/e/locked").chmod(0o700)
        store.delete("d", recursive=True, progress=ignore)
        assert place.visible() == place.private() == []


def test_a_directory_that_the_server_cannot_write_to_refuses_a_put_before_its_first_byte(
    unprivileged: Path,
) -> None:
    with Place(unprivileged) as place:
        store = place.open()
        stage(store, "d/f", b"data")
        (unprivileged / "d").chmod(0o555)
        for name in ("d/f", "d/g", "d/new/g"):
            with refused(Code.FORBIDDEN):
                begin(store, name, 3)
            with refused(Code.FORBIDDEN):
                stage(store, name, b"new")
        assert place.private() == []
        (unprivileged / "d").chmod(0o755)
