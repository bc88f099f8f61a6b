"""Files with secrets: permissions, atomic replacement, locks and crashes."""

import contextlib
import errno
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
OTHER_UID = 12345

needs_owners = pytest.mark.skipif(not os_files.HAS_OWNERS, reason="no file owners on this system")
needs_root = pytest.mark.skipif(
    not os_files.HAS_OWNERS or os.geteuid() != 0, reason="only root can change owners"
)
needs_locks = pytest.mark.skipif(not os_files.HAS_LOCKS, reason="no file locks on this system")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a file that does not exist yet."""
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


def test_read_returns_what_replace_wrote(path: Path) -> None:
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
def test_the_umask_does_not_change_the_modes(tmp_path: Path, mask: int) -> None:
    place = tmp_path / "a" / "b"
    with umask(mask & 0o077):
        private_files.make_directory(str(place))
    with umask(mask), private_files.locked(str(place / "secret")):
        private_files.replace(str(place / "secret"), b"x")
    assert [mode(place.parent), mode(place)] == [0o700, 0o700]
    assert [mode(found) for found in place.iterdir()] == [0o600, 0o600]


def test_make_directory_accepts_a_directory_and_nothing_else(tmp_path: Path) -> None:
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
def test_a_file_that_other_users_can_access_is_not_read(path: Path, loose: int) -> None:
    private_files.replace(str(path), b"x")
    path.chmod(loose)
    with pytest.raises(
        LocalFileError, match=f"other users have access to {path}: chmod 600 {path}"
    ):
        private_files.read(str(path))
    path.chmod(0o600)
    assert private_files.read(str(path)) == b"x"


@needs_owners
@pytest.mark.parametrize("loose", [0o770, 0o777, 0o702])
def test_a_directory_that_other_users_can_write_to_is_refused(path: Path, loose: int) -> None:
    private_files.replace(str(path), b"x")
    path.parent.chmod(loose)
    error = f"other users can write to the directory {path.parent}: chmod 700"
    with pytest.raises(LocalFileError, match=error):
        private_files.read(str(path))
    with pytest.raises(LocalFileError, match=error):
        private_files.replace(str(path), b"y")
    with pytest.raises(LocalFileError, match=error), private_files.locked(str(path)):
        pass
    with pytest.raises(LocalFileError, match=error):
        private_files.make_directory(str(path.parent))
    path.parent.chmod(0o755)
    assert private_files.read(str(path)) == b"x"


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system whose permission bits, times and flushes are not supported."""

    def fail(*args: object, **options: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    for name in ("chmod", "utime", "fsync"):
        monkeypatch.setattr(os, name, fail)


@pytest.mark.usefixtures("lacking")
def test_a_file_is_written_where_the_file_system_lacks_optional_operations(path: Path) -> None:
    with private_files.locked(str(path)):
        private_files.replace(str(path), b"data")
    assert private_files.read(str(path)) == b"data"


@pytest.mark.usefixtures("lacking")
@pytest.mark.skipif(not os_files.HAS_OWNERS, reason="needs permission bits")
def test_no_secret_is_written_where_other_users_have_access(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def readable(name: str, flags: int, mode: int = 0o777) -> int:
        return real(name, flags, 0o644 if flags & os.O_CREAT else mode)

    monkeypatch.setattr(os, "open", readable)
    with pytest.raises(LocalFileError, match="other users have access"):
        private_files.replace(str(path), b"secret")
    assert list(path.parent.iterdir()) == []


def test_symbolic_links_are_not_followed(path: Path, tmp_path: Path) -> None:
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
def test_a_symbolic_link_is_not_used_as_a_lock(path: Path, tmp_path: Path) -> None:
    Path(f"{path}.lock").symlink_to(tmp_path / "made")
    with pytest.raises(LocalFileError, match="cannot lock"), private_files.locked(str(path)):
        pass
    assert not (tmp_path / "made").exists()


def test_a_directory_is_not_read(path: Path) -> None:
    path.mkdir()
    with pytest.raises(LocalFileError, match=f"{path} is not a regular file"):
        private_files.read(str(path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_a_fifo_does_not_block(path: Path) -> None:
    os.mkfifo(path, 0o600)
    with pytest.raises(LocalFileError, match=f"{path} is not a regular file"):
        private_files.read(str(path))


@needs_root
def test_files_made_by_root_get_the_owner_of_the_directory(path: Path) -> None:
    os.chown(path.parent, OTHER_UID, OTHER_UID)
    with private_files.locked(str(path)):
        private_files.replace(str(path), b"x")
    assert {found.stat().st_uid for found in path.parent.iterdir()} == {OTHER_UID}


@needs_root
def test_a_file_or_directory_of_another_user_is_refused(path: Path) -> None:
    private_files.replace(str(path), b"x")
    path.chmod(0o644)
    path.parent.chmod(0o755)
    os.chown(path, OTHER_UID + 1, -1)
    os.chown(path.parent, OTHER_UID, -1)
    # The working directory is used, as the directories above it may not be accessible.
    code = (
        "import os, sys; from ftpkit import private_files\n"
        "os.seteuid(int(sys.argv[1]))\n"
        "try: print(private_files.read('secret'))\n"
        "except private_files.LocalFileError as error: print(error)\n"
    )
    for uid, message in [
        (0, "other users have access to secret: chmod 600 secret"),
        (OTHER_UID, "secret is owned by another user"),
        (OTHER_UID + 1, ". is owned by another user"),
    ]:
        done = subprocess.run(
            [sys.executable, "-c", code, str(uid)],
            cwd=path.parent,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
        )
        assert (done.stdout.strip(), done.stderr) == (message, "")


def test_each_change_increases_the_mtime(path: Path) -> None:
    private_files.replace(str(path), b"x")
    # As after a change within the same tick of the clock, or a clock that was set back.
    os.utime(path, ns=(0, 2**62))
    for _ in range(2):
        before = path.stat().st_mtime_ns
        private_files.replace(str(path), b"x")
        assert path.stat().st_mtime_ns > before


def test_a_change_that_fails_leaves_the_old_file(path: Path) -> None:
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


REPLACE_REPEATEDLY = """
import itertools, sys
from ftpkit import private_files
for number in itertools.count():
    with private_files.locked(sys.argv[1]):
        private_files.replace(sys.argv[1], b"%d." % number * 10_000)
    print(flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="no SIGKILL on this system")
def test_a_file_is_whole_after_its_writer_was_killed(path: Path) -> None:
    for changes in range(1, 6):
        process = subprocess.Popen(
            [sys.executable, "-c", REPLACE_REPEATEDLY, str(path)], stdout=subprocess.PIPE
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
from ftpkit import private_files
path = sys.argv[1]
for number in range(50):
    with private_files.locked(path):
        private_files.replace(path, (private_files.read(path) or b"") + b"%d\\n" % number)
"""


@needs_locks
def test_concurrent_changes_by_processes_lose_nothing(path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", ADD_LINES, str(path)]) for _ in range(3)]
    assert [process.wait(WAIT_S) for process in processes] == [0, 0, 0]
    lines = (private_files.read(str(path)) or b"").splitlines()
    assert sorted(map(int, lines)) == sorted([*range(50)] * 3)
