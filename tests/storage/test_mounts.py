"""Other file systems below the root, and file systems that lack something: mounted, as root."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ftpkit.errors import Code
from ftpkit.protocol.digest import digest_of
from tests.storage.stores import (
    Place,
    begin,
    commit,
    fetch,
    ignore,
    listed,
    refused,
    send,
    stage,
)

Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts with the arguments of mount(8) at a directory below ``tmp_path``."""
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("needs root and mount(8)")
    mounted: list[Path] = []

    def run(at: Path, *arguments: str) -> Path:
        at.mkdir(parents=True, exist_ok=True)
        command = ["mount", *arguments, str(at)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount here: {done.stderr.strip()}")
        mounted.append(at)
        return at

    yield run
    for path in reversed(mounted):
        subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The directory that is served."""
    path = tmp_path / "root"
    path.mkdir()
    return path


pytestmark = pytest.mark.net


@pytest.mark.parametrize("name", ["mnt/f", "mnt/new/f", "mnt/d/f"])
@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_a_put_to_another_file_system_is_refused_before_its_first_byte(
    mount: Mount, root: Path, tmp_path: Path, kind: str, name: str
) -> None:
    if kind == "tmpfs":
        mount(root / "mnt", "-t", "tmpfs", "tmpfs")
    else:
        (tmp_path / "beside").mkdir()
        mount(root / "mnt", "--bind", str(tmp_path / "beside"))
    (root / "mnt/d").mkdir()
    (root / "mnt/d/f").write_bytes(b"old")
    with Place(root) as place, place.open() as store:
        with refused(Code.UNSUPPORTED):
            begin(store, name, 3)
        with refused(Code.UNSUPPORTED):
            stage(store, name, b"new")
        assert place.private() == []
        # What needs no rename across works.
        assert fetch(store, "mnt/d/f") == b"old"
        store.mkdir("mnt/d/e")
        store.rename("mnt/d", "mnt/x", overwrite=False)
        store.delete("mnt/x", recursive=True, progress=ignore)
        assert listed(store) == ["mnt"]


@pytest.mark.parametrize("name", ["ro/f", "ro/new/f"])
def test_a_put_to_a_read_only_mount_is_refused_before_its_first_byte(
    mount: Mount, root: Path, name: str
) -> None:
    mount(root / "ro", "-t", "tmpfs", "-o", "ro", "tmpfs")
    with Place(root) as place, place.open() as store:
        with refused(Code.FORBIDDEN):
            begin(store, name, 3)
        with refused(Code.FORBIDDEN):
            stage(store, name, b"new")
        assert place.private() == []


@pytest.fixture
def overlay(mount: Mount, tmp_path: Path) -> Path:
    """An overlay: the directories of its lower layer cannot be renamed."""
    base = mount(tmp_path / "base", "-t", "tmpfs", "tmpfs")
    for part in ("lower/d/e/deep", "lower/d/empty", "upper", "work"):
        (base / part).mkdir(parents=True)
    for name in ("f", "e/g", "e/deep/h"):
        (base / "lower/d" / name).write_bytes(name.encode())
    (base / "lower/d/e").chmod(0o2750)
    options = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work,redirect_dir=off"
    return mount(tmp_path / "served", "-t", "overlay", "-o", options, "overlay")


TREE = ["d", "d/e", "d/e/deep", "d/e/deep/h", "d/e/g", "d/empty", "d/f"]


def test_a_directory_that_cannot_be_renamed_is_moved_piece_by_piece(overlay: Path) -> None:
    with pytest.raises(OSError, match="cross-device"):
        (overlay / "d").rename(overlay / "x")
    with Place(overlay) as place, place.open() as store:
        assert listed(store) == TREE
        store.rename("d", "new/x", overwrite=False)
        assert listed(store) == ["new", *(name.replace("d", "new/x", 1) for name in TREE)]
        assert fetch(store, "new/x/e/deep/h") == b"e/deep/h"
        assert (overlay / "new/x/e").stat().st_mode & 0o7777 == 0o2750
        assert place.private() == []


def test_a_directory_that_cannot_be_renamed_is_deleted_in_its_place(overlay: Path) -> None:
    with Place(overlay) as place, place.open() as store:
        store.delete("d", recursive=True, progress=ignore)
        assert place.visible() == place.private() == []


def test_a_directory_that_cannot_be_renamed_replaces_no_file(overlay: Path) -> None:
    with Place(overlay) as place, place.open() as store:
        stage(store, "x/f", b"mine")
        for to in ("x", "x/f"):
            for overwrite in (False, True):
                with refused(Code.EXISTS, Code.NOT_A_DIRECTORY, Code.NOT_EMPTY):
                    store.rename("d", to, overwrite=overwrite)
        assert listed(store) == [*TREE, "x", "x/f"]
        assert fetch(store, "x/f") == b"mine"


def test_files_are_put_and_resumed_on_an_overlay(overlay: Path) -> None:
    with Place(overlay) as place, place.open() as store:
        upload = begin(store, "d/e/g", 3)
        send(upload, 0, b"new")
        assert commit(upload, 3).content_digest == digest_of(b"new")
        upload.release()
        assert fetch(store, "d/e/g") == b"new"
        assert place.private() == []


def test_files_are_stored_without_extended_attributes(mount: Mount, tmp_path: Path) -> None:
    mount(tmp_path / "root", "-t", "ramfs", "ramfs")
    with Place(tmp_path / "root") as place, place.open() as store:
        assert stage(store, "f", b"new", mode=0o640).content_digest == digest_of(b"new")
        assert fetch(store, "f") == b"new"
        assert store.stat("f").content_digest is None


@pytest.mark.parametrize("above", [False, True])
def test_what_is_mounted_in_a_directory_is_not_deleted_with_it(
    mount: Mount, root: Path, above: bool
) -> None:
    top = mount(root / "mnt", "-t", "tmpfs", "tmpfs") if above else root
    inner = mount(top / "d/e/inner", "-t", "tmpfs", "tmpfs")
    (inner / "f").write_bytes(b"kept")
    (top / "d/g").write_bytes(b"deleted")
    name = "mnt/d" if above else "d"
    with Place(root) as place, place.open() as store:
        with refused(Code.BUSY):
            store.delete(name, recursive=True, progress=ignore)
        assert listed(store, name) == [
            f"{name}/e", f"{name}/e/inner", f"{name}/e/inner/f",
        ]  # fmt: skip
        assert place.private() == []
