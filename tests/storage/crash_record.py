"""A file system that makes each change and records it on a model disk."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ftpkit.osapi import files as os_files
from ftpkit.storage.directory.filesystem import DIGEST_XATTR, DirHandle, FileSystem
from tests.storage.crash_disk import (
    Describe,
    Disk,
    Event,
    HardLink,
    Make,
    Remove,
    Rename,
    Resize,
    Sync,
    SyncDirectory,
    Write,
    identity,
)


class RecordingFiles(FileSystem):
    """Makes every change on the disk, below ``top``, and records it.

    A file or directory is known by its inode, whatever it is called and
    however often it was opened. One that nobody made here ends the test: the
    store has changed the disk by another way.
    """

    def __init__(self, top: Path, disk: Disk, labels: dict[tuple[int, int], int]) -> None:
        super().__init__(durable=False)
        self.top = top
        self.disk = disk
        self.events: list[Event] = []
        # What another connection does, once, right after the next directory was made.
        self.meanwhile: Callable[[], None] | None = None
        self._labels = labels

    def record(self, event: Event) -> None:
        self.events.append(event)
        self.disk.apply(event)

    def label(self, status: os.stat_result) -> int:
        """Return which file or directory of the model this is."""
        assert identity(status) in self._labels, "this was not made through Files"
        return self._labels[identity(status)]

    def _new(self, status: os.stat_result) -> int:
        # An inode that was freed may come back as another file.
        self._labels[identity(status)] = self.disk.new_label()
        return self._labels[identity(status)]

    def create(self, directory: DirHandle, part: str, mode: int = 0o600) -> int:
        fd = super().create(directory, part, mode)
        status = os.fstat(fd)
        within = self.label(directory.status())
        self.record(Make(within, part, self._new(status), False, status.st_mode & 0o777))
        return fd

    def write(self, fd: int, view: memoryview, offset: int) -> None:
        super().write(fd, view, offset)
        self.record(Write(self.label(os.fstat(fd)), offset, bytes(view)))

    def truncate(self, fd: int, length: int) -> None:
        super().truncate(fd, length)
        self.record(Resize(self.label(os.fstat(fd)), length))

    def preallocate(self, fd: int, size: int, others: Iterable[os.stat_result] = ()) -> None:
        before = os.fstat(fd).st_size
        super().preallocate(fd, size, others)
        if os.fstat(fd).st_size != before:
            self.record(Resize(self.label(os.fstat(fd)), os.fstat(fd).st_size))

    def set_metadata(
        self, fd: int, path: str, mode: int | None, mtime: int | None, content_digest: str
    ) -> None:
        super().set_metadata(fd, path, mode, mtime, content_digest)
        status = os.fstat(fd)
        note = os_files.get_xattr(fd, DIGEST_XATTR)
        self.record(Describe(self.label(status), status.st_mode & 0o777, status.st_mtime_ns, note))

    def sync(self, fd: int) -> None:
        super().sync(fd)
        self.record(Sync(self.label(os.fstat(fd)), data=False))

    def sync_data(self, fd: int) -> None:
        super().sync_data(fd)
        self.record(Sync(self.label(os.fstat(fd)), data=True))

    def sync_directory(self, directory: DirHandle) -> None:
        super().sync_directory(directory)
        if Path(directory.path) not in self.top.resolve().parents:
            self.record(SyncDirectory(self.label(directory.status())))

    def mkdir(self, directory: DirHandle, part: str, mode: int = 0o777) -> None:
        super().mkdir(directory, part, mode)
        label = self._new(directory.stat(part))
        self.record(Make(self.label(directory.status()), part, label, True, mode))
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()

    def rmdir(self, directory: DirHandle, part: str) -> None:
        super().rmdir(directory, part)
        self.record(Remove(self.label(directory.status()), part))

    def unlink(self, directory: DirHandle, part: str) -> None:
        super().unlink(directory, part)
        self.record(Remove(self.label(directory.status()), part))

    def rename(self, source: DirHandle, part: str, target: DirHandle, to: str) -> None:
        super().rename(source, part, target, to)
        self.record(Rename(self.label(source.status()), part, self.label(target.status()), to))

    def rename_noreplace(self, source: DirHandle, part: str, target: DirHandle, to: str) -> None:
        super().rename_noreplace(source, part, target, to)
        self.record(Rename(self.label(source.status()), part, self.label(target.status()), to))

    def hard_link(self, source: DirHandle, part: str, target: DirHandle, to: str) -> None:
        super().hard_link(source, part, target, to)
        self.record(HardLink(self.label(source.status()), part, self.label(target.status()), to))

    def assert_complete(self) -> None:
        """Check that the disk is as recorded: no change was made past this object."""
        assert dict(look(self.top)) == dict(look_model(self.disk))


def look(top: Path, *, past: str | None = None) -> Iterator[tuple[str, bytes | None]]:
    """Yield everything on a real disk but ``past``: content of files, None for directories."""
    waiting = [(os.fspath(top), "")]
    while waiting:
        path, prefix = waiting.pop()
        with os.scandir(path) as list_files:
            for info in list_files:
                name = prefix + info.name
                if name == past:
                    continue
                if info.is_dir(follow_symlinks=False):
                    waiting.append((info.path, f"{name}/"))
                    yield name, None
                else:
                    yield name, Path(info.path).read_bytes()


def look_model(disk: Disk) -> Iterator[tuple[str, bytes | None]]:
    """Yield the same of a model disk."""
    image = disk.now()
    for name, label in image.walk():
        yield name, image.files[label].content if label in image.files else None


class LinkingFiles(RecordingFiles):
    """A disk without an atomic rename to a free name."""

    def rename_noreplace(self, source: DirHandle, part: str, target: DirHandle, to: str) -> None:
        raise NotImplementedError
