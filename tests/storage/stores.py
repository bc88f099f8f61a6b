"""Stores to test, of every kind, and the few functions that the tests share."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from ftpkit.errors import Code, RefusedError
from ftpkit.osapi import files as os_files
from ftpkit.protocol.digest import digest_of
from ftpkit.server.auth.shared_limits import AccountQuota, LocalLimits
from ftpkit.storage import DirectoryStore, FileInfo, MemoryStore, Store, Upload
from ftpkit.storage.api import UploadSpec
from ftpkit.storage.directory import filesystem
from ftpkit.storage.directory.filesystem import DirHandle, FileSystem
from ftpkit.storage.prefix_store import PrefixStore
from tests.support.portable import sitecustomize

BLOCK = 64 * 1024
_QUOTA = 2**63 - 1
OWNER = "ada"
# No message of a store below it may contain this name.
JAIL = "unheard/of"


class QuickFiles(FileSystem):
    """The real disk without syncs."""

    def sync(self, fd: int) -> None:
        pass

    def sync_data(self, fd: int) -> None:
        pass

    def sync_directory(self, directory: DirHandle) -> None:
        pass


class WatchedFiles(QuickFiles):
    """Calls ``before`` with the name of each change; it can raise to prevent it."""

    def __init__(self, before: Callable[[str], None]) -> None:
        self._before = before

    def create(self, directory: DirHandle, part: str, mode: int = 0o600) -> int:
        self._before("create")
        return super().create(directory, part, mode)

    def write(self, fd: int, view: memoryview, offset: int) -> None:
        self._before("write")
        super().write(fd, view, offset)

    def truncate(self, fd: int, length: int) -> None:
        self._before("truncate")
        super().truncate(fd, length)

    def set_metadata(
        self, fd: int, path: str, mode: int | None, mtime: int | None, content_digest: str
    ) -> None:
        self._before("set_metadata")
        super().set_metadata(fd, path, mode, mtime, content_digest)

    def sync(self, fd: int) -> None:
        self._before("sync")

    def sync_data(self, fd: int) -> None:
        self._before("sync_data")

    def sync_directory(self, directory: DirHandle) -> None:
        self._before("sync_directory")

    def mkdir(self, directory: DirHandle, part: str, mode: int = 0o777) -> None:
        self._before("mkdir")
        super().mkdir(directory, part, mode)

    def rmdir(self, directory: DirHandle, part: str) -> None:
        self._before("rmdir")
        super().rmdir(directory, part)

    def unlink(self, directory: DirHandle, part: str) -> None:
        self._before("unlink")
        super().unlink(directory, part)

    def rename(self, source: DirHandle, part: str, target: DirHandle, to: str) -> None:
        self._before("rename")
        super().rename(source, part, target, to)

    def rename_noreplace(self, source: DirHandle, part: str, target: DirHandle, to: str) -> None:
        self._before("rename_noreplace")
        super().rename_noreplace(source, part, target, to)

    def hard_link(self, source: DirHandle, part: str, target: DirHandle, to: str) -> None:
        self._before("hard_link")
        super().hard_link(source, part, target, to)


class Fault:
    """Fails the ``nth`` change from now (0: the next one), and counts them all."""

    def __init__(self) -> None:
        self.count = 0
        self.failed: str | None = None
        self._at: int | None = None
        self._error = 0

    def arm(self, nth: int, error: int = errno.ENOSPC) -> None:
        self.count, self.failed, self._at, self._error = 0, None, nth, error

    def disarm(self) -> None:
        self._at = None

    def __call__(self, change: str) -> None:
        self.count += 1
        if self._at is not None and self.count == self._at + 1:
            self.failed = change
            raise OSError(self._error, os.strerror(self._error))


class Place:
    """Where a store keeps its files, in ``under``; the store can be opened again."""

    def __init__(self, top: Path, under: str = "") -> None:
        self.top, self.root = top, top / under
        self._under = under
        self._stack = contextlib.ExitStack()

    def open(self, files: FileSystem | None = None) -> DirectoryStore:
        return self._stack.enter_context(DirectoryStore(self.top, files or QuickFiles()))

    def store(self) -> Store:
        """Open the store that names are relative to, with a quota if it is in ``under``."""
        store = self.open()
        if not self._under:
            return store
        store.mkdir(self._under)
        limits = LocalLimits(store.used_bytes)
        self._stack.callback(limits.quotas.close)
        return PrefixStore(
            store.with_quota(AccountQuota(limits.quotas, self._under, _QUOTA)), self._under
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def visible(self) -> list[str]:
        """Return the names in the root, read without the store, but for its private directory."""
        found = [str(path.relative_to(self.root)) for path in self.root.rglob("*")]
        return sorted(name for name in found if not name.startswith(".ftpkit"))

    def private(self) -> list[str]:
        """Return what is unfinished in the store's private directory."""
        private = self.top / ".ftpkit"
        unfinished = [*(private / "staging").iterdir(), *(private / "uploads").iterdir()]
        return [path.name for path in unfinished]


class MemoryPlace(Place):
    """A place in memory; its store outlives ``close``."""

    def __init__(self, top: Path) -> None:
        super().__init__(top)
        self._memory = MemoryStore()

    def store(self) -> Store:
        return self._memory

    def visible(self) -> list[str]:
        return [info.name for info in list_files(self._memory)]

    def private(self) -> list[str]:
        return [upload.id for upload in self._memory._uploads.values()]


def take_powers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take from this process, for one test, what ``sitecustomize`` takes from a whole run."""
    for name in sitecustomize.OS_NAMES:
        monkeypatch.delattr(os, name, raising=False)
    for name in sitecustomize.CAPABILITIES:
        monkeypatch.setattr(os, name, set())
    for name in ("HAS_ALLOCATE", "HAS_DIR_FD", "HAS_LOCKS", "HAS_NOFOLLOW"):
        monkeypatch.setattr(os_files, name, False)
    for name in ("O_NOFOLLOW", "O_DIRECTORY", "O_NONBLOCK", "O_CLOEXEC"):
        monkeypatch.setattr(os_files, name, 0)
    monkeypatch.setattr(filesystem, "_DIRECTORY", os.O_RDONLY)
    monkeypatch.setattr(filesystem, "_READ", os.O_RDONLY)
    monkeypatch.setattr(filesystem, "_REOPEN", os.O_RDWR)
    monkeypatch.setattr(filesystem, "_CREATE", os.O_RDWR | os.O_CREAT | os.O_EXCL)


def ignore(done: int, total: int) -> None:
    """Report no progress."""


@contextlib.contextmanager
def refused(*codes: Code) -> Iterator[None]:
    """Expect a refusal with one of ``codes``."""
    with pytest.raises(RefusedError) as caught:
        yield
    assert caught.value.code in codes, f"{caught.value.code}: {caught.value}"
    assert JAIL not in str(caught.value)


def stage(
    store: Store,
    name: str,
    data: bytes,
    *,
    overwrite: bool = True,
    mtime: int | None = None,
    mode: int | None = None,
    digest: str | None = None,
) -> FileInfo:
    """Put a whole file."""
    spec = UploadSpec(name=name, total=len(data), mtime=mtime, mode=mode, overwrite=overwrite)
    staged = store.stage(spec, digest)
    try:
        for at in range(0, len(data), 100_000):
            staged.write(memoryview(data)[at : at + 100_000])
        return staged.commit()
    finally:
        staged.discard()


def fetch(store: Store, name: str) -> bytes:
    """Read a whole file."""
    with store.read(name) as reader:
        buffer, offset = bytearray(reader.info.total), 0
        while offset < len(buffer):
            count = reader.read_into(memoryview(buffer)[offset:], offset)
            assert count
            offset += count
        return bytes(buffer)


def listed(
    store: Store, name: str = "", *, recursive: bool = True, after: str | None = None
) -> list[str]:
    """The names of a whole list."""
    return [info.name for info in list_files(store, name, recursive=recursive, after=after)]


def list_files(
    store: Store, name: str = "", *, recursive: bool = True, after: str | None = None
) -> list[FileInfo]:
    return list(store.list_files(name, recursive=recursive, after=after))


def begin(
    store: Store,
    name: str = "f",
    total: int | None = None,
    *,
    overwrite: bool = True,
    owner: str = OWNER,
    block: int = BLOCK,
) -> Upload:
    return store.begin(
        UploadSpec(name=name, total=total, overwrite=overwrite), owner=owner, block=block
    )


def blocks_of(data: bytes, block: int = BLOCK) -> dict[int, bytes]:
    return {at: data[at : at + block] for at in range(0, len(data), block)}


def send(upload: Upload, offset: int, data: bytes, algorithm: str = "blake3") -> None:
    """Write one block."""
    writer = upload.write(offset, len(data), digest_of(data, algorithm))
    try:
        writer.write(memoryview(data)[: len(data) // 3])
        writer.write(memoryview(data)[len(data) // 3 :])
        writer.finish()
    finally:
        writer.release()


def commit(
    upload: Upload, total: int, content_digest: str | None = None, blocks_digest: str | None = None
) -> FileInfo:
    return upload.commit(total, content_digest, blocks_digest, ignore)


def held(upload: Upload, algorithm: str = "blake3") -> list[int]:
    """The offsets of the blocks that need not be sent."""
    return [record.offset for record in upload.records(algorithm)]
