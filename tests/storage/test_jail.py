"""Symbolic links, special files and races lead nowhere outside the root."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from ftpkit.errors import Code, RefusedError
from ftpkit.osapi import files as os_files
from ftpkit.storage import DirectoryStore, Store
from ftpkit.storage.api import UploadSpec
from tests.storage.stores import (
    Place,
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

SECRET: Final = b"outside"
TURNS: Final = 4000


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A directory outside the root, in which nothing may be read or changed."""
    path = tmp_path / "outside"
    (path / "d").mkdir(parents=True)
    for name in ("f", "d/f"):
        (path / name).write_bytes(SECRET)
    before = seen(path)
    yield path
    assert seen(path) == before


def seen(path: Path) -> list[tuple[str, int, int, bytes]]:
    """Return the state of everything below ``path``."""
    found = []
    for item in [path, *sorted(path.rglob("*"))]:
        status = item.lstat()
        content = item.read_bytes() if item.is_file() else b""
        found.append((str(item), status.st_mode, status.st_mtime_ns, content))
    return found


def upload_to(store: Store, name: str) -> None:
    upload = begin(store, name, 3)
    try:
        send(upload, 0, b"new")
        commit(upload, 3)
    finally:
        upload.release()


OPERATIONS: Final[dict[str, Callable[[Store, str], object]]] = {
    "stat": lambda store, name: store.stat(name),
    "list": lambda store, name: listed(store, name),
    "read": fetch,
    "mkdir": lambda store, name: store.mkdir(name),
    "rename": lambda store, name: store.rename(name, "elsewhere", overwrite=True),
    "rename without overwrite": lambda store, name: store.rename(name, "new", overwrite=False),
    "rename a file to": lambda store, name: store.rename("mine", name, overwrite=True),
    "rename a directory to": lambda store, name: store.rename("dir", name, overwrite=True),
    "delete": lambda store, name: store.delete(name, recursive=False, progress=ignore),
    "delete all": lambda store, name: store.delete(name, recursive=True, progress=ignore),
    "stage": lambda store, name: stage(store, name, b"new"),
    "stage without overwrite": lambda store, name: stage(store, name, b"new", overwrite=False),
    "upload": upload_to,
}


@pytest.mark.pairwise
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize(
    ("link", "target", "name"),
    [
        ("l", "outside/f", "l"),
        ("l", "outside/d", "l"),
        ("l", "outside", "l/f"),
        ("l", "outside", "l/d"),
        ("l", "outside", "l/d/f"),
        ("l", "outside", "l/new"),
        ("l", "outside", "l/new/f"),
        ("a/l", "outside/d", "a/l/f"),
        ("a/l", "outside/f", "a/l"),
        ("l", "outside/missing", "l"),
        ("l", "outside/missing", "l/f"),
        ("l", "root/mine", "l"),
        ("l", "root/dir", "l/f"),
    ],
)
def test_a_symbolic_link_is_not_found_and_never_followed(
    place: Place, outside: Path, operation: str, absolute: bool, link: str, target: str, name: str
) -> None:
    store = place.store()
    stage(store, "mine", b"mine")
    stage(store, "dir/f", b"mine")
    store.mkdir("a")
    path = place.root / link
    where = place.root.parent / target
    path.symlink_to(where if absolute else os.path.relpath(where, path.parent))
    before = listed(store)
    with refused(Code.NOT_FOUND):
        OPERATIONS[operation](store, name)
    assert path.is_symlink()
    assert listed(store) == before
    assert fetch(store, "mine") == fetch(store, "dir/f") == b"mine"


def test_a_symbolic_link_is_listed_as_a_link_and_not_entered(place: Place, outside: Path) -> None:
    store = place.store()
    stage(store, "a/f", b"mine")
    (place.root / "a" / "l").symlink_to(outside)
    (place.root / "loop").symlink_to(place.root)
    kinds = {info.name: info.kind for info in store.list_files("", recursive=True, after=None)}
    assert kinds == {"a": "dir", "a/f": "file", "a/l": "link", "loop": "link"}


def test_delete_removes_symbolic_links_and_not_their_targets(place: Place, outside: Path) -> None:
    store = place.store()
    store.mkdir("a/b")
    (place.root / "a" / "l").symlink_to(outside)
    (place.root / "a" / "b" / "l").symlink_to(outside / "f")
    store.delete("a", recursive=True, progress=ignore)
    assert listed(store) == place.private() == []


def test_a_symbolic_link_made_while_a_file_is_staged_is_not_followed(
    place: Place, outside: Path
) -> None:
    store = place.store()
    for link, target, name in [("l", outside / "f", "l"), ("m", outside, "m/f")]:
        for overwrite in (True, False):
            staged = store.stage(UploadSpec(name=name, total=0, overwrite=overwrite), None)
            (place.root / link).symlink_to(target)
            with refused(Code.NOT_FOUND):
                staged.commit()
            staged.discard()
            (place.root / link).unlink()
    assert place.private() == []


def test_the_root_itself_may_be_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with Place(tmp_path / "link") as place:
        stage(place.store(), "f", b"one")
    assert (tmp_path / "real" / "f").read_bytes() == b"one"


# Special files


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        # The whole path can be too long for a socket's name.
        here = os.getcwd()
        os.chdir(path.parent)
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def make_device(path: Path) -> None:
    try:
        os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("only root makes devices")


SPECIAL: Final = {"fifo": make_fifo, "socket": make_socket, "device": make_device}


@pytest.mark.pairwise
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no special files here")
@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("operation", sorted(set(OPERATIONS) - {"mkdir", "list"}))
def test_a_special_file_is_not_found_and_never_blocks(
    place: Place, special: str, operation: str
) -> None:
    store = place.store()
    stage(store, "mine", b"mine")
    stage(store, "dir/f", b"mine")
    SPECIAL[special](place.root / "s")
    with refused(Code.NOT_FOUND):
        OPERATIONS[operation](store, "s")
    assert {info.name: info.kind for info in store.list_files("", recursive=False, after=None)} == {
        "dir": "dir",
        "mine": "file",
        "s": "other",
    }


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no special files here")
@pytest.mark.parametrize("special", SPECIAL)
def test_a_special_file_is_not_a_directory(place: Place, special: str) -> None:
    store = place.store()
    SPECIAL[special](place.root / "s")
    for operation in ("mkdir", "list"):
        with refused(Code.NOT_FOUND, Code.NOT_A_DIRECTORY):
            OPERATIONS[operation](store, "s")
    for operation in OPERATIONS:
        if not operation.startswith("rename a"):
            with refused(Code.NOT_FOUND, Code.NOT_A_DIRECTORY):
                OPERATIONS[operation](store, "s/f")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no special files here")
def test_special_files_in_a_directory_are_deleted_with_it(place: Place) -> None:
    store = place.store()
    store.mkdir("d")
    for name, make in SPECIAL.items():
        make(place.root / "d" / name)
    store.delete("d", recursive=True, progress=ignore)
    assert listed(store) == place.private() == []


# The store's own directory


@pytest.mark.parametrize(
    "part",
    [
        ".ftpkit",
        ".ftpkit-old",
        ".FTPKIT",
        ".FtpKit2",
        ".\uff46\uff54\uff50\uff4b\uff49\uff54",
        ".ftp\u200bkit",
        ".ftp\u00adkit",
        ".ftp\u212ait",
        ".ftpkit\u0301",
    ],
)
def test_names_like_the_private_directory_are_never_listed(place: Place, part: str) -> None:
    store = place.store()
    for directory in (place.root, place.root / "d"):
        (directory / part).mkdir(parents=True, exist_ok=True)
        (directory / part / "f").write_bytes(b"")
    assert listed(store) == listed(store, recursive=False) == ["d"]
    assert listed(store, "d") == []


@pytest.mark.skipif(not os_files.HAS_DIR_FD, reason="file names are not bytes here")
def test_a_name_that_is_not_utf8_is_listed_escaped_with_an_error(place: Place) -> None:
    store = place.store()
    (place.root / os.fsdecode(b"a\xff")).write_bytes(b"")
    (place.root / os.fsdecode(b"b\xfe/c")).mkdir(parents=True)
    stage(store, "f", b"")
    errors = {info.name: (info.kind, info.error) for info in list_files(store)}
    not_listed = "other", "the name is not UTF-8"
    assert errors == {"a\\xff": not_listed, "b\\xfe": not_listed, "f": ("file", None)}
    assert listed(store, after="a\\xff") == ["b\\xfe", "f"]


def test_two_stores_cannot_use_one_root(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="there are no locks on files here")
    with DirectoryStore(tmp_path / "root"):
        with pytest.raises(BlockingIOError, match=r"already serves this directory: '/.*/root'$"):
            DirectoryStore(tmp_path / "root")
        code = "import sys; from ftpkit.storage import DirectoryStore; DirectoryStore(sys.argv[1])"
        other = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "root")],
            cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "BlockingIOError: [Errno 11] another ftpkit server already serves" in other.stderr
    with DirectoryStore(tmp_path / "root"):
        pass


# A racing attacker

# A real thing and a link to what is outside take turns under one name.
ATTACK: Final = """
import os, shutil, sys
os.chdir(sys.argv[1])
outside, turns = sys.argv[2], 0
os.set_blocking(0, False)

def trying(call, *args):
    try:
        call(*args)
    except OSError:
        return False
    return True

print("ready", flush=True)
while turns % 64 or sys.stdin.buffer.raw.read(1) is None:
    for name, target in (("d", outside), ("f", outside + "/f")):
        aside = trying(os.rename, name, "../spare")
        trying(os.symlink, target, name)
        trying(os.unlink, name)
        if aside and not trying(os.rename, "../spare", name):
            shutil.rmtree("../spare", ignore_errors=True)
            trying(os.unlink, "../spare")
    turns += 1
print(turns, flush=True)
"""


@pytest.mark.skipif(
    not os_files.HAS_DIR_FD, reason="without held directory descriptors a race can be lost"
)
def test_swapping_symbolic_links_in_a_loop_reaches_nothing_outside(
    tmp_path: Path, outside: Path
) -> None:
    with Place(tmp_path / "root") as place:
        store = place.store()
        stage(store, "d/f", b"inside")
        stage(store, "f", b"inside")
        work: list[Callable[[], object]] = [
            lambda: stage(store, "d/f", b"inside"),
            lambda: stage(store, "f", b"inside"),
            lambda: inside(fetch(store, "d/f")),
            lambda: inside(fetch(store, "f")),
            lambda: inside_names(listed(store)),
            lambda: inside_names(listed(store, "d", recursive=False)),
            lambda: store.rename("d/f", "d/g", overwrite=True),
            lambda: store.rename("f", "d/h", overwrite=False),
            lambda: store.delete("d/h", recursive=False, progress=ignore),
            lambda: store.delete("d/g", recursive=True, progress=ignore),
            lambda: upload_to(store, "d/n/u"),
            lambda: store.delete("d/n", recursive=True, progress=ignore),
            lambda: store.mkdir("d"),
        ]
        with subprocess.Popen(
            [sys.executable, "-c", ATTACK, str(place.root), str(outside)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as attacker:  # fmt: skip
            assert attacker.stdin is not None
            assert attacker.stdout is not None
            try:
                assert attacker.stdout.readline() == b"ready\n"
                outcomes = {"done": 0, "refused": 0}
                for turn in range(TURNS):
                    outcomes[attempt(work[turn % len(work)])] += 1
            finally:
                attacker.stdin.close()
                turns = int(attacker.stdout.read())
        # Else nobody raced: both sides had their turns, and in each other's way.
        assert turns > 0
        assert min(outcomes.values()) > 0


def attempt(work: Callable[[], object]) -> str:
    try:
        work()
    except RefusedError as refusal:
        assert refusal.code in (  # noqa: PT017
            Code.NOT_FOUND,
            Code.NOT_A_DIRECTORY,
            Code.EXISTS,
            Code.IS_A_DIRECTORY,
            Code.BUSY,
        ), refusal
        return "refused"
    return "done"


def inside(content: bytes) -> None:
    assert content in (b"inside", b"new")


def inside_names(names: list[str]) -> None:
    assert set(names) <= {"d", "f", "d/f", "d/g", "d/h", "d/n", "d/n/u"}
