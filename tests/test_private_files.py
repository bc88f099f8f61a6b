"""Files with secrets: whom they are kept from, and what is left of them after a crash."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftpkit import private_files
from ftpkit.errors import LocalFileError
from ftpkit.osapi import files as os_files

WAIT_S = 20
STRANGER = 12345

needs_owners = pytest.mark.skipif(not os_files.HAS_OWNERS, reason="files have no owners here")
needs_root = pytest.mark.skipif(
    not os_files.HAS_OWNERS or os.geteuid() != 0, reason="only root gives files away"
)
needs_locks = pytest.mark.skipif(not os_files.HAS_LOCKS, reason="files cannot be locked here")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a file with secrets may be made."""
    return tmp_path / "secret"


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_what_was_put_there_is_read(path: Path) -> None:
    assert private_files.read(str(path)) is None
    for data in (b"one", b"", b"another"):
        private_files.replace(str(path), data)
        assert private_files.read(str(path)) == data
    assert os.listdir(path.parent) == ["secret"]


def test_a_file_in_the_current_directory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    with private_files.locked("secret"):
        private_files.replace("secret", b"here")
    assert private_files.read("secret") == b"here"


@needs_owners
@pytest.mark.parametrize("mask", [0, 0o777])
def test_no_umask_opens_or_closes_it(tmp_path: Path, mask: int) -> None:
    place = tmp_path / "a" / "b"
    with umask(mask & 0o077):
        private_files.make_directory(str(place))
    with umask(mask), private_files.locked(str(place / "secret")):
        private_files.replace(str(place / "secret"), b"x")
    assert [mode(place.parent), mode(place)] == [0o700, 0o700]
    assert [mode(found) for found in place.iterdir()] == [0o600, 0o600]


def test_a_directory_may_exist(tmp_path: Path) -> None:
    private_files.make_directory(str(tmp_path))
    (tmp_path / "file").touch()
    for name in ("file", "file/below"):
        with pytest.raises(LocalFileError, match="file is not a directory"):
            private_files.make_directory(str(tmp_path / name))
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(LocalFileError, match=f"cannot make {tmp_path / 'link'}: "):
        private_files.make_directory(str(tmp_path / "link"))


@needs_owners
@pytest.mark.parametrize("loose", [0o640, 0o604, 0o620, 0o602])
def test_a_file_that_others_have_access_to_is_not_read(path: Path, loose: int) -> None:
    private_files.replace(str(path), b"x")
    path.chmod(loose)
    with pytest.raises(LocalFileError, match=f"others have access to {path}: chmod 600 {path}"):
        private_files.read(str(path))
    path.chmod(0o600)
    assert private_files.read(str(path)) == b"x"


@needs_owners
@pytest.mark.parametrize("loose", [0o770, 0o777, 0o702])
def test_nothing_is_trusted_where_others_can_change_it(path: Path, loose: int) -> None:
    private_files.replace(str(path), b"x")
    path.parent.chmod(loose)
    fault = f"others can change what is in {path.parent}: chmod 700"
    with pytest.raises(LocalFileError, match=fault):
        private_files.read(str(path))
    with pytest.raises(LocalFileError, match=fault):
        private_files.replace(str(path), b"y")
    with pytest.raises(LocalFileError, match=fault), private_files.locked(str(path)):
        pass
    with pytest.raises(LocalFileError, match=fault):
        private_files.make_directory(str(path.parent))
    path.parent.chmod(0o755)
    assert private_files.read(str(path)) == b"x"


def test_a_link_is_followed_neither_to_read_nor_to_write(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"mine")
    other.chmod(0o600)
    for planted in (path, Path(f"{path}.new")):
        planted.symlink_to(other)
    with pytest.raises(LocalFileError, match=f"{path} is not a regular file"):
        private_files.read(str(path))
    private_files.replace(str(path), b"new")
    assert (other.read_bytes(), private_files.read(str(path))) == (b"mine", b"new")
    assert not path.is_symlink()


@needs_locks
def test_a_lock_is_no_link(path: Path, tmp_path: Path) -> None:
    Path(f"{path}.lock").symlink_to(tmp_path / "made")
    with pytest.raises(LocalFileError, match="cannot lock"), private_files.locked(str(path)):
        pass
    assert not (tmp_path / "made").exists()


def test_only_files_are_read(path: Path) -> None:
    path.mkdir()
    with pytest.raises(LocalFileError, match=f"{path} is not a regular file"):
        private_files.read(str(path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
def test_nobody_waits_for_a_fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)
    with pytest.raises(LocalFileError, match=f"{path} is not a regular file"):
        private_files.read(str(path))


@needs_root
def test_what_root_makes_belongs_to_the_owner_of_the_place(path: Path) -> None:
    os.chown(path.parent, STRANGER, STRANGER)
    with private_files.locked(str(path)):
        private_files.replace(str(path), b"x")
    assert {found.stat().st_uid for found in path.parent.iterdir()} == {STRANGER}


@needs_root
def test_what_belongs_to_another_user_is_not_trusted(path: Path) -> None:
    private_files.replace(str(path), b"x")
    path.chmod(0o644)
    path.parent.chmod(0o755)
    os.chown(path, STRANGER + 1, -1)
    os.chown(path.parent, STRANGER, -1)
    # Who may not pass the directories above it goes on from here.
    code = (
        "import os, sys; from ftpkit import private\n"
        "os.seteuid(int(sys.argv[1]))\n"
        "try: print(private_files.read('secret'))\n"
        "except private_files.LocalFileError as error: print(error)\n"
    )
    for uid, told in [
        (0, "others have access to secret: chmod 600 secret"),
        (STRANGER, "secret belongs to another user"),
        (STRANGER + 1, ". belongs to another user"),
    ]:
        done = subprocess.run(
            [sys.executable, "-c", code, str(uid)],
            cwd=path.parent,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
        )
        assert (done.stdout.strip(), done.stderr) == (told, "")


def test_each_change_moves_the_mtime_on(path: Path) -> None:
    private_files.replace(str(path), b"x")
    # As if the change before had been within the same tick of a clock, or the clock were set back.
    os.utime(path, ns=(0, 2**62))
    for _ in range(2):
        before = path.stat().st_mtime_ns
        private_files.replace(str(path), b"x")
        assert path.stat().st_mtime_ns > before


def test_a_change_that_fails_leaves_what_was(path: Path) -> None:
    resource = pytest.importorskip("resource")
    private_files.replace(str(path), b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(LocalFileError, match=f"cannot write {path}: "):
            private_files.replace(str(path), b"new" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert private_files.read(str(path)) == b"old"
    assert os.listdir(path.parent) == ["secret"]


CHANGE_FOR_EVER = """
import itertools, sys
from ftpkit import private
for number in itertools.count():
    with private_files.locked(sys.argv[1]):
        private_files.replace(sys.argv[1], b"%d." % number * 10_000)
    print(flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL here")
def test_killed_while_writing_it_is_whole(path: Path) -> None:
    for changes in range(1, 6):
        process = subprocess.Popen(
            [sys.executable, "-c", CHANGE_FOR_EVER, str(path)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        with process:
            for _ in range(changes):
                assert process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        data = private_files.read(str(path))
        assert data is not None
        number, _, _ = data.partition(b".")
        assert data == number + b"." + (number + b".") * 9_999
        with private_files.locked(str(path)):
            private_files.replace(str(path), b"mine")
        assert private_files.read(str(path)) == b"mine"


ADD_LINES = """
import sys
from ftpkit import private
path = sys.argv[1]
for number in range(50):
    with private_files.locked(path):
        private_files.replace(path, (private_files.read(path) or b"") + b"%d\\n" % number)
"""


@needs_locks
def test_changes_of_several_processes_are_all_there(path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", ADD_LINES, str(path)]) for _ in range(3)]
    assert [process.wait(WAIT_S) for process in processes] == [0, 0, 0]
    lines = (private_files.read(str(path)) or b"").splitlines()
    assert sorted(map(int, lines)) == sorted([*range(50)] * 3)
