"""A disk that is full, read-only, broken, or out of descriptors: a clear no, and no harm."""

import contextlib
import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.digest import digest_of
from ftpkit.server import Server
from ftpkit.server.limits import Limits
from ftpkit.storage.directory import store as store_module
from ftpkit.storage.directory.filesystem import FileSystem
from tests.faults.conftest import MIB, Eager, left_over, noise, quiet, settled, visible
from tests.faults.crowd import Raw
from tests.faults.relay import Relay

TINY = 16 * MIB
BLOCK = 4 * MIB


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    path = tmp_path / "tiny"
    path.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root and mount(8)")
    command = [mount, "-t", "tmpfs", "-o", f"size={TINY}", "tmpfs", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def ext2(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 MiB that cannot allocate blocks without writing them."""
    image, path = tmp_path / "image", tmp_path / "ext2"
    path.mkdir()
    with open(image, "wb") as file:
        file.truncate(512 * MIB)
    if os.geteuid() != 0 or shutil.which("mkfs.ext2") is None:
        pytest.skip("mounting an ext2 file system takes root and mkfs.ext2(8)")
    subprocess.run(["mkfs.ext2", "-q", "-F", "-m", "0", str(image)], check=True)
    command = ["mount", "-o", "loop", str(image), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


@contextlib.contextmanager
def serving(root: Path) -> Iterator[Server]:
    server = Server(root, port=0, limits=Limits(stall_timeout_s=5))
    server.start()
    try:
        yield server
    finally:
        server.stop(grace_s=0)


def fill(path: Path, *, leave: int) -> Path:
    """Use up a small file system but for ``leave`` bytes."""
    space = os.statvfs(path)
    filler = path / "filler"
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - leave)
    return filler


# A disk that is really full


def test_what_cannot_fit_is_refused_before_its_first_byte(tiny: Path) -> None:
    with serving(tiny) as server:
        with Raw(server.address) as raw:
            refusal = raw.ask(op="begin", name="large", total=2 * TINY, block=BLOCK)
            assert refusal["code"] == Code.NO_SPACE
            assert raw.ask(op="ping")["ok"]
            # Nothing of the body was sent: the refusal did not wait for it.
            refusal = raw.ask(op="put", name="large", size=2 * TINY)
            assert (refusal["code"], refusal["close"]) == (Code.NO_SPACE, True)
            assert raw.ends()
        quiet(server)
        assert left_over(tiny) == []
        assert visible(tiny) == []


def test_what_one_upload_has_reserved_no_other_gets(tiny: Path) -> None:
    with serving(tiny) as server:
        with Raw(server.address) as raw:
            first = raw.ask(op="begin", name="first", total=10 * MIB, block=BLOCK)
            assert first["ok"]
            second = raw.ask(op="begin", name="second", total=10 * MIB, block=BLOCK)
            assert second["code"] == Code.NO_SPACE
            assert raw.ask(op="abort", upload=first["upload"])["ok"]
            assert raw.ask(op="begin", name="second", total=10 * MIB, block=BLOCK)["ok"]
        quiet(server)


def test_where_nothing_can_be_allocated_space_is_promised_by_counting(ext2: Path) -> None:
    free = shutil.disk_usage(ext2).free
    with serving(ext2) as server:
        with Raw(server.address) as raw:
            first = raw.ask(op="begin", name="first", total=300 * MIB, block=BLOCK)
            assert first["ok"]
            # Not one block was written: on a large file that would take minutes.
            assert free - shutil.disk_usage(ext2).free < MIB
            second = raw.ask(op="begin", name="second", total=300 * MIB, block=BLOCK)
            assert second["code"] == Code.NO_SPACE
            assert raw.ask(op="begin", name="third", total=100 * MIB, block=BLOCK)["ok"]
            assert raw.ask(op="abort", upload=first["upload"])["ok"]
            assert raw.ask(op="begin", name="second", total=300 * MIB, block=BLOCK)["ok"]
        quiet(server)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the disk is filled with it")
def test_a_full_disk_during_a_small_body_keeps_the_connection_open(
    tiny: Path,
) -> None:
    with serving(tiny) as server:
        filler = fill(tiny, leave=128 * 1024)
        body = noise(900_000, 1)
        with Raw(server.address) as raw:
            refusal = raw.ask(body, op="put", name="file", size=len(body))
            assert refusal["code"] == Code.NO_SPACE
            assert "close" not in refusal
            assert raw.ask(op="ping")["ok"]
            assert left_over(tiny) == []
            filler.unlink()
            assert raw.ask(body, op="put", name="file", size=len(body))["ok"]
        assert (tiny / "file").read_bytes() == body
        quiet(server)


def test_a_client_stops_at_once_without_disk_space(tiny: Path, here: Path) -> None:
    settled(here / "large", noise(20 * MIB, 2))
    retries: list[object] = []
    with serving(tiny) as server, Eager(server.address, retry_for_s=20) as client:
        for _ in range(2):
            with pytest.raises(RefusedError) as refused:
                client.put(here / "large", on_retry=lambda error, delay: retries.append(error))
            assert refused.value.code is Code.NO_SPACE
    assert retries == []


# A disk that fails on demand


@dataclass
class Failing:
    """What to fail: the ``at``-th call of ``method`` from now on, with ``number``."""

    method: str = ""
    number: int = 0
    at: int = 0


METHODS = [name for name, value in vars(FileSystem).items() if callable(value) and name[0] != "_"]


def failing_files(fault: Failing, calls: list[str]) -> type[FileSystem]:
    """Return Files whose methods fail as ``fault`` says at the time."""

    def wrap(name: str) -> Callable[..., object]:
        real = getattr(FileSystem, name)

        def call(self: FileSystem, *args: object, **kwargs: object) -> object:
            calls.append(name)
            if fault.method == name:
                fault.at -= 1
                if fault.at < 0:
                    raise OSError(fault.number, os.strerror(fault.number))
            return real(self, *args, **kwargs)

        return call

    return type("FailingFiles", (FileSystem,), {name: wrap(name) for name in METHODS})


@pytest.fixture
def fault() -> Failing:
    return Failing()


@pytest.fixture
def changes() -> list[str]:
    """The names of the changes to the disk, in order."""
    return []


@pytest.fixture
def broken(
    tmp_path: Path, fault: Failing, changes: list[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    """A server whose disk does what ``fault`` says."""
    monkeypatch.setattr(store_module, "FileSystem", failing_files(fault, changes))
    with serving(tmp_path / "root") as server:
        yield server
        fault.method = ""


@pytest.mark.skipif(not hasattr(socket, "SO_RCVTIMEO"), reason="pieces come in other sizes")
def test_a_full_disk_keeps_the_held_blocks_and_the_put_resumes(
    broken: Server, fault: Failing, root: Path, here: Path
) -> None:
    source = settled(here / "large", noise(20 * MIB, 3))
    # The journal's first record, and three blocks: four pieces of 1 MiB and a record each.
    fault.method, fault.number, fault.at = "write", errno.ENOSPC, 16
    retries: list[object] = []
    with Relay(broken.address) as relay:
        with Eager(relay.address, retry_for_s=20) as client:
            with pytest.raises(RefusedError) as refused:
                client.put(source, on_retry=lambda error, delay: retries.append(error))
            assert refused.value.code is Code.NO_SPACE
            assert retries == []
            assert visible(root) == []
            fault.method = ""
            client.close()
            quiet(broken)
            relay.expect()
            client.put(source)
        assert relay.up <= 2 * BLOCK + BLOCK + 16 * 1024
    assert (root / "large").read_bytes() == source.read_bytes()
    assert left_over(root) == []


EXPECTED = {
    errno.ENOSPC: Code.NO_SPACE,
    errno.EDQUOT: Code.QUOTA_EXCEEDED,
    errno.EROFS: Code.FORBIDDEN,
    errno.EMFILE: Code.BUSY,
    errno.EIO: Code.INTERNAL,
}


# The journal becomes an answer, the upload's directory goes, the answer is noted.
PAPER_WORK = 3


def small_put(raw: Raw, name: str, body: bytes) -> dict[str, object]:
    return raw.ask(body, op="put", name=name, size=len(body), mtime=5, mode=0o600)


def upload_in_blocks(raw: Raw, name: str, body: bytes) -> dict[str, object]:
    """Send ``body`` as one block; stop at the first refusal."""
    begun = raw.ask(op="begin", name=name, total=len(body), block=65536, mtime=5, mode=0o600)
    if not begun["ok"]:
        return begun
    raw.stream.skip_body()
    where = {"upload": begun["upload"]}
    written = raw.ask(body, op="write", offset=0, size=len(body), digest=digest_of(body), **where)
    raw.stream.left = 0
    if not written["ok"]:
        return written
    return raw.ask(op="commit", total=len(body), **where)


@pytest.mark.parametrize("number", EXPECTED, ids=lambda number: errno.errorcode[number])
@pytest.mark.parametrize("way", [small_put, upload_in_blocks])
def test_every_change_that_fails_is_refused_and_the_server_stays_healthy(
    broken: Server,
    fault: Failing,
    changes: list[str],
    root: Path,
    way: Callable[[Raw, str, bytes], dict[str, object]],
    number: int,
) -> None:
    with Raw(broken.address) as raw:
        changes.clear()
        assert way(raw, "rehearsal/file", b"body")["ok"]
        rehearsed = list(changes)
    # The paper work behind a publication is another test's.
    faulty = rehearsed if way is small_put else rehearsed[:-PAPER_WORK]
    for at, method in enumerate(faulty):
        name = f"d{at}/file"
        (root / f"d{at}").mkdir()
        (root / name).write_bytes(b"old")
        body = b"new %d" % at
        with Raw(broken.address) as raw:
            fault.method, fault.number = method, number
            fault.at = rehearsed[:at].count(method)
            reply = way(raw, name, body)
            fault.method = ""
            where = (at, method, rehearsed, reply)
            if reply["ok"]:
                # What fails behind the publication is no reason to deny it.
                assert (root / name).read_bytes() == body, where
            else:
                assert reply["code"] in (EXPECTED[number], Code.INTERNAL), where
                assert (root / name).read_bytes() in (b"old", body), where
                assert "close" not in reply, where
            assert raw.ask(op="ping")["ok"], where
        quiet(broken)
        with Raw(broken.address) as raw:
            again = way(raw, name, body)
            assert again["ok"], (*where, again)
            assert (root / name).read_bytes() == body, where
    quiet(broken)
    assert left_over(root) == []


def test_a_commit_whose_last_sync_failed_can_be_repeated_on_the_same_connection(
    broken: Server, fault: Failing, changes: list[str]
) -> None:
    with Raw(broken.address) as raw:
        changes.clear()
        assert upload_in_blocks(raw, "rehearsal", b"body")["ok"]
        fault.method, fault.number = "sync_directory", errno.EIO
        fault.at = changes.count("sync_directory") - 1
        assert upload_in_blocks(raw, "file", b"body")["code"] == Code.INTERNAL
        fault.method = ""
        assert upload_in_blocks(raw, "file", b"body")["ok"]


@pytest.mark.parametrize("method", ["rename", "rmdir"])
def test_a_failed_cleanup_after_a_publication_leaks_no_descriptor(
    broken: Server, fault: Failing, changes: list[str], method: str
) -> None:
    with Raw(broken.address) as raw:
        changes.clear()
        assert upload_in_blocks(raw, "rehearsal", b"body")["ok"]
    quiet(broken)
    before = set(os.listdir("/proc/self/fd"))
    with Raw(broken.address) as raw:
        fault.method, fault.number, fault.at = method, errno.EIO, changes.count(method) - 1
        upload_in_blocks(raw, "file", b"body")
        fault.method = ""
    quiet(broken)
    left = set(os.listdir("/proc/self/fd")) - before
    for fd in left:
        with contextlib.suppress(OSError):  # the one that listed them
            os.close(int(fd))
    assert len(left) <= 1
