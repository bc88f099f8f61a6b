"""Hard links, file leases, modes, and a private directory of another user."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from ftpkit.errors import Code, RefusedError
from ftpkit.osapi import files as os_files
from ftpkit.storage import DirectoryStore
from ftpkit.storage.api import UploadSpec, offer_basis
from ftpkit.storage.directory.filesystem import DirHandle, is_hard_linked
from tests.storage.stores import (
    OWNER,
    Place,
    QuickFiles,
    WatchedFiles,
    begin,
    commit,
    fetch,
    ignore,
    list_files,
    listed,
    refused,
    send,
    stage,
)
from tests.storage.stores import (
    held as offsets,
)

SECRET: Final = b"outside"
MEMBER: Final = 65534  # "nobody"
LIMIT_S: Final = 20.0

as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away"
)


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A file outside the root, which must not change."""
    path = tmp_path / "outside"
    path.write_bytes(SECRET)
    before = path.stat()
    yield path
    after = path.stat()
    assert path.read_bytes() == SECRET
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


# Second names


def test_a_file_hard_linked_outside_is_not_served(place: Place, outside: Path) -> None:
    store = place.open()
    store.mkdir("d")
    (place.root / "d" / "f").hardlink_to(outside)
    with refused(Code.NOT_FOUND):
        store.stat("d/f")
    with refused(Code.NOT_FOUND):
        store.read("d/f")
    with refused(Code.NOT_FOUND):
        store.rename("d/f", "g", overwrite=True)
    with refused(Code.NOT_FOUND):
        store.delete("d/f", recursive=False, progress=ignore)
    kinds = {info.name: (info.kind, info.total) for info in list_files(store)}
    assert kinds == {"d": ("dir", 0), "d/f": ("other", 0)}


def test_a_file_hard_linked_outside_is_not_a_basis(place: Place, outside: Path) -> None:
    store = place.open()
    (place.root / "f").hardlink_to(outside)
    upload = begin(store, "f", len(SECRET))
    offer_basis(store, upload, "blake3", ignore)
    assert offsets(upload) == []
    upload.release()


def test_a_file_hard_linked_outside_is_replaced_and_not_written_to(
    place: Place, outside: Path
) -> None:
    store = place.open()
    for number, write in enumerate(("put", "upload", "rename")):
        name = f"f{number}"
        (place.root / name).hardlink_to(outside)
        with refused(Code.EXISTS):
            stage(store, name, b"new", overwrite=False)
        if write == "put":
            stage(store, name, b"new")
        elif write == "upload":
            upload = begin(store, name, 3)
            send(upload, 0, b"new")
            commit(upload, 3)
            upload.release()
        else:
            stage(store, "mine", b"new")
            store.rename("mine", name, overwrite=True)
        assert fetch(store, name) == b"new"
        assert outside.stat().st_nlink == 1


def test_a_directory_is_deleted_with_hard_links_to_files_outside(
    place: Place, outside: Path
) -> None:
    store = place.open()
    store.mkdir("d/e")
    (place.root / "d" / "e" / "f").hardlink_to(outside)
    store.delete("d", recursive=True, progress=ignore)
    assert listed(store) == place.private() == []


def test_a_file_that_lost_its_second_hard_link_is_served(place: Place, tmp_path: Path) -> None:
    store = place.open()
    stage(store, "f", b"mine")
    (tmp_path / "copy").hardlink_to(place.root / "f")
    with refused(Code.NOT_FOUND):
        fetch(store, "f")
    (tmp_path / "copy").unlink()
    assert fetch(store, "f") == b"mine"


def test_hard_linked_data_of_an_upload_is_not_written_to(place: Place, outside: Path) -> None:
    store = place.open()
    upload = begin(store, "f", len(SECRET))
    upload.release()
    (data,) = (place.root / ".ftpkit" / "uploads").glob("*/data")
    data.unlink()
    data.hardlink_to(outside)
    upload = begin(store, "f", len(SECRET))
    send(upload, 0, b"changed")
    upload.release()


class DyingFiles(QuickFiles):
    """A disk that renames by link and unlink, and a server that crashes in between."""

    def rename_noreplace(self, source: DirHandle, part: str, target: DirHandle, to: str) -> None:
        raise NotImplementedError

    def unlink(self, directory: DirHandle, part: str) -> None:
        raise SystemExit


def test_a_put_that_crashed_between_link_and_unlink_is_served_after_a_restart(
    tmp_path: Path,
) -> None:
    place = Place(tmp_path / "root")
    with place, pytest.raises(SystemExit):
        stage(place.open(DyingFiles()), "f", b"mine", overwrite=False)
    assert (place.root / "f").stat().st_nlink == 2
    with place:
        assert fetch(place.open(), "f") == b"mine"
        assert place.private() == []


def test_an_upload_that_crashed_between_link_and_unlink_is_served_after_a_restart(
    tmp_path: Path,
) -> None:
    place = Place(tmp_path / "root")
    with place:
        upload = begin(place.open(DyingFiles()), "f", 4, overwrite=False)
        send(upload, 0, b"mine")
        with pytest.raises(SystemExit):
            commit(upload, 4)
        upload.release()
    assert (place.root / "f").stat().st_nlink == 2
    with place:
        store = place.open()
        assert fetch(store, "f") == b"mine"
        assert place.private() == []
        published = store.published(upload.id, owner=OWNER)
        assert published is not None
        assert published.total == 4


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_rename_that_crashed_between_link_and_unlink_is_finished_by_the_next(
    tmp_path: Path, overwrite: bool
) -> None:
    place = Place(tmp_path / "root")
    with place:
        store = place.open(DyingFiles())
        stage(store, "f", b"mine")
        with pytest.raises(SystemExit):
            store.rename("f", "d/g", overwrite=False)
    with place:
        store = place.open()
        for name in ("f", "d/g"):
            with refused(Code.NOT_FOUND):
                fetch(store, name)
        store.rename("f", "d/g", overwrite=overwrite)
        assert listed(store) == ["d", "d/g"]
        assert fetch(store, "d/g") == b"mine"


def test_a_hard_link_elsewhere_does_not_make_an_upload_published(
    tmp_path: Path,
) -> None:
    place = Place(tmp_path / "root")
    with place:
        upload = begin(place.open(), "f", 4)
        send(upload, 0, b"mine")
        upload.release()
        (data,) = (place.root / ".ftpkit" / "uploads").glob("*/data")
        (tmp_path / "backup").hardlink_to(data)
    with place:
        store = place.open()
        assert listed(store) == []
        assert store.published(upload.id, owner=OWNER) is None


# Between the look at a name and the opening of what stands there


class SwappedDirectory(DirHandle):
    """A directory in which a name is replaced right after its status was read."""

    swap: Callable[[], None]

    def stat(self, part: str) -> os.stat_result:
        status = super().stat(part)
        self.swap()
        return status


@pytest.mark.skipif(
    not os_files.HAS_DIR_FD or not hasattr(os, "mkfifo"), reason="there are no such races here"
)
@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("thing", ["link", "hard link", "fifo", "directory"])
def test_a_file_swapped_in_after_the_check_is_not_opened(
    tmp_path: Path, outside: Path, thing: str, write: bool
) -> None:
    make: dict[str, Callable[[Path], None]] = {
        "link": lambda path: path.symlink_to(outside),
        "hard link": lambda path: path.hardlink_to(outside),
        "fifo": os.mkfifo,
        "directory": Path.mkdir,
    }
    path = tmp_path / "root" / "f"
    path.parent.mkdir()
    path.write_bytes(b"mine")

    def swap() -> None:
        path.rename(tmp_path / "spare")
        make[thing](path)
        held.swap = lambda: None

    with DirHandle.open(os.fspath(path.parent)) as directory:
        held = SwappedDirectory(directory.path, directory.dir_fd)
        held.swap = swap
        caught: list[OSError] = []

        def look() -> None:
            try:
                os.close(held.open_file("f", write=write))
            except OSError as error:
                caught.append(error)

        # In a thread of its own: it must not wait for the other end of a FIFO.
        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        thread.join(LIMIT_S)
        assert not thread.is_alive()
    assert [error.errno for error in caught] in ([errno.ENOENT], [errno.ELOOP], [errno.EISDIR])


@pytest.mark.skipif(not os_files.HAS_DIR_FD, reason="there are no such races here")
def test_a_name_that_existed_for_a_moment_is_not_described(tmp_path: Path, outside: Path) -> None:
    path = tmp_path / "root" / "f"
    path.parent.mkdir()
    path.write_bytes(b"mine")
    with DirHandle.open(os.fspath(path.parent)) as directory:
        held = SwappedDirectory(directory.path, directory.dir_fd)

        def swap() -> None:
            path.unlink()
            path.hardlink_to(outside)
            held.swap = lambda: None

        held.swap = swap
        assert is_hard_linked(held.steady_stat("f"))


def test_a_commit_describes_the_published_file_and_not_its_replacement(
    tmp_path: Path, outside: Path
) -> None:
    path = tmp_path / "root" / "f"

    def swap(change: str) -> None:
        if change == "sync_directory" and path.is_file() and not path.is_symlink():
            path.unlink()
            path.symlink_to(outside)

    with Place(tmp_path / "root") as place:
        store = place.open(WatchedFiles(swap))
        info = stage(store, "f", b"mine")
        assert (info.kind, info.total) == ("file", 4)
        path.unlink()
        upload = begin(store, "f", 4)
        send(upload, 0, b"mine")
        info = commit(upload, 4)
        upload.release()
        assert (info.kind, info.total) == ("file", 4)
        assert path.is_symlink()


# What must stay at a start is no reason not to start


def test_a_start_succeeds_if_staged_files_cannot_be_deleted(tmp_path: Path) -> None:
    class Stubborn(QuickFiles):
        def unlink(self, directory: DirHandle, part: str) -> None:
            raise PermissionError(1, "not permitted")

    place = Place(tmp_path / "root")
    with place:
        store = place.open()
        stage(store, "d/f", b"")
        (place.root / "d").rename(place.root / ".ftpkit" / "staging" / "left")
    with place:
        assert listed(place.open(Stubborn())) == []


# Leases


_LEASE: Final = """
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("mine", flush=True)
sys.stdin.read()
"""


@contextmanager
def lease(path: Path) -> Iterator[None]:
    """Let another process hold a lease on a file, and not release it on request."""
    with subprocess.Popen(
        [sys.executable, "-c", _LEASE, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if process.stdout.readline() != b"mine\n":
                pytest.skip("no leases on this disk")
            yield
        finally:
            process.stdin.close()


@pytest.mark.skipif(sys.platform != "linux", reason="leases are Linux' own")
def test_a_file_leased_by_another_process_is_busy(tmp_path: Path) -> None:
    with Place(tmp_path / "root") as place:
        store = place.open()
        stage(store, "f", b"mine")
        with lease(place.root / "f"):
            with refused(Code.BUSY):
                fetch(store, "f")
            stage(store, "f", b"newer")
        assert fetch(store, "f") == b"newer"


# Modes


@pytest.fixture
def no_umask() -> Iterator[None]:
    """Clear the umask."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.skipif(os.name != "posix", reason="there are no such modes here")
@pytest.mark.parametrize("asked", [None, 0o640, 0o7777, 0o4755, 2**40 + 0o600])
def test_setuid_setgid_and_sticky_bits_are_masked(
    tmp_path: Path, asked: int | None, no_umask: None
) -> None:
    with Place(tmp_path / "root") as place:
        store = place.open()
        expected = 0o666 if asked is None else asked & 0o777
        for overwrite in (True, False):
            stage(store, "put", b"", mode=asked, overwrite=overwrite)
            upload = store.begin(
                UploadSpec(name="upload", total=0, mode=asked), owner=OWNER, block=65536
            )
            commit(upload, 0)
            upload.release()
            for name in ("put", "upload"):
                assert (place.root / name).stat().st_mode & 0o7777 == expected
                assert store.stat(name).mode == expected
                # What it replaces is another file, whatever its mode was.
                (place.root / name).chmod(0o6777)
            store.delete("put", recursive=False, progress=ignore)


@pytest.mark.skipif(os.name != "posix", reason="there are no such modes here")
def test_the_setgid_bit_of_a_directory_is_inherited(tmp_path: Path, no_umask: None) -> None:
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(0o2770)
    with Place(root) as place:
        store = place.open()
        store.mkdir("d")
        stage(store, "d/f", b"")
        assert (root / "d").stat().st_mode & 0o7777 == 0o2777
        assert (root / "d" / "f").stat().st_mode & 0o7777 == 0o666
        assert (root / ".ftpkit").stat().st_mode & 0o777 == 0o700


# A private directory that somebody else has made


@as_root
def test_a_private_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    with DirectoryStore(tmp_path / "root"):
        pass
    os.chown(tmp_path / "root" / ".ftpkit", MEMBER, MEMBER)
    with pytest.raises(PermissionError, match=r"/root/\.ftpkit belongs to another user: "):
        DirectoryStore(tmp_path / "root")


def test_a_private_directory_that_was_moved_into_the_tree_is_not_entered(place: Place) -> None:
    store = place.open()
    stage(store, "d/f", b"mine")
    upload = begin(store, "u", 4)
    (place.root / ".ftpkit").rename(place.root / "d" / "x")
    try:
        for name in ("d/x", "d/x/uploads", "d/x/lock"):
            with refused(Code.NOT_FOUND):
                store.stat(name)
            with refused(Code.NOT_FOUND):
                listed(store, name)
        with refused(Code.NOT_FOUND):
            store.rename("d/x", "y", overwrite=False)
        with refused(Code.NOT_FOUND):
            stage(store, "d/x/f", b"")
        with pytest.raises(RefusedError):
            store.delete("d/x", recursive=True, progress=ignore)
        assert listed(store) == ["d", "d/f", "d/x"]
    finally:
        (place.root / "d" / "x").rename(place.root / ".ftpkit")
    upload.release()
