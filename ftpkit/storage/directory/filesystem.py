"""Held directories, and every change to the disk."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator
from typing import Final, Self

from ftpkit.osapi import files as os_files
from ftpkit.protocol.digest import looks_like_digest

_DIRECTORY = os.O_RDONLY | os_files.O_DIRECTORY | os_files.O_NOFOLLOW | os_files.O_CLOEXEC
_HARMLESS = os_files.O_NOFOLLOW | os_files.O_NONBLOCK | os_files.O_NOCTTY
_READ = os.O_RDONLY | _HARMLESS | os_files.O_BINARY | os_files.O_CLOEXEC
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os_files.O_NOFOLLOW | os_files.O_BINARY
_REOPEN = os.O_RDWR | _HARMLESS | os_files.O_BINARY | os_files.O_CLOEXEC

DIGEST_XATTR: Final = "ftpkit.digest"
# Less than this is written, or refused, before anybody has waited for it.
_WORTH_PREALLOCATING: Final = 1024 * 1024
# Whoever replaces a file faster than that can as well remove it.
_MOST_LOOKS: Final = 32


class HiddenFileError(FileNotFoundError):
    """What stands there, a link or the store's own, is not there for anybody."""

    def __init__(self, part: str) -> None:
        super().__init__(errno.ENOENT, os.strerror(errno.ENOENT), part)


class DirHandle:
    """A directory that is held open: names in it are resolved against it, never along a path.

    Whoever renames or replaces a directory above it moves nothing under our
    feet. No call follows a symbolic link. Where the system cannot do this,
    ``path`` is joined instead, and links are looked for first.
    """

    def __init__(self, path: str, fd: int | None) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def open(cls, path: str) -> "DirHandle":
        """Open a directory that the administrator named, so links in ``path`` are followed."""
        path = os.path.realpath(path)
        return cls(path, os.open(path, _DIRECTORY) if os_files.HAS_DIR_FD else None)

    def at(self, part: str) -> str:
        """Return what the os functions take for ``part``, together with ``dir_fd``."""
        return part if self._fd is not None else os.path.join(self.path, part)

    @property
    def dir_fd(self) -> int | None:
        """The descriptor that names are resolved against."""
        return self._fd

    def open_directory(self, part: str) -> "DirHandle":
        """Open a directory in it; FileNotFoundError for a link, NotADirectoryError for a file."""
        path = os.path.join(self.path, part)
        if self._fd is None or not os_files.HAS_NOFOLLOW:
            self._refuse_link(part)
        if self._fd is None:
            if not stat.S_ISDIR(self.stat(part).st_mode):
                raise _error(errno.ENOTDIR, part)
            return DirHandle(path, None)
        try:
            return DirHandle(path, os.open(part, _DIRECTORY, dir_fd=self._fd))
        except NotADirectoryError:
            self._refuse_link(part)
            raise

    def above(self, expected: os.stat_result) -> "DirHandle":
        """Open the directory that it is in; OSError says that this is another one meanwhile."""
        path = os.path.dirname(self.path)
        if self._fd is None:
            return DirHandle(path, None)
        above = DirHandle(path, os.open(os.pardir, _DIRECTORY, dir_fd=self._fd))
        if os.path.samestat(above.status(), expected):
            return above
        above.close()
        raise _error(errno.ESTALE, path)

    def open_file(self, part: str, *, write: bool = False, hard_linked: bool = False) -> int:
        """Open a regular file in it; anything else is FileNotFoundError or IsADirectoryError.

        Unless ``hard_linked``, a file with a second name is not found either: that name may be one
        outside, and then the file is no more in here than what a link points to.

        Opening a FIFO or a device can block or do harm, so what stands there is looked at
        first, and what was opened must be the same. What is swapped in for a moment is opened
        without waiting for anybody, and closed again.
        """
        for _ in range(_MOST_LOOKS):
            before = self.stat(part)
            _check_regular(before, part)
            if is_hard_linked(before) and not hard_linked:
                raise _error(errno.ENOENT, part)
            fd = os.open(self.at(part), _REOPEN if write else _READ, dir_fd=self._fd)
            try:
                after = os.fstat(fd)
                if _is_unmoved(before, after):
                    _check_regular(after, part)
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
        raise _error(errno.ENOENT, part)

    def stat(self, part: str) -> os.stat_result:
        """Return the status of ``part`` itself, also where it is a link."""
        return os.stat(self.at(part), dir_fd=self._fd, follow_symlinks=False)

    def steady_stat(self, part: str) -> os.stat_result:
        """Return the status of ``part`` while it stood there, and not from a moment later."""
        status = self.stat(part)
        for _ in range(_MOST_LOOKS):
            if not stat.S_ISREG(status.st_mode):  # it has no names to count
                return status
            before, status = status, self.stat(part)
            if _is_unmoved(before, status):
                return status
        raise _error(errno.ENOENT, part)

    def status(self) -> os.stat_result:
        """Return the status of the directory itself."""
        return os.stat(self.path if self._fd is None else self._fd)

    def names(self) -> Iterator[tuple[str, bool]]:
        """Yield each name in it, in no order, and whether it is a directory (a link is none)."""
        with os.scandir(self.path if self._fd is None else self._fd) as entries:
            for info in entries:
                yield info.name, info.is_dir(follow_symlinks=False)

    def sizes(self) -> Iterator[tuple[str, int | None]]:
        """Yield the names of its files, with their lengths, and of directories, with None."""
        with os.scandir(self.path if self._fd is None else self._fd) as entries:
            for info in entries:
                if info.is_dir(follow_symlinks=False):
                    yield info.name, None
                elif info.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        yield info.name, info.stat(follow_symlinks=False).st_size

    def close(self) -> None:
        """Let go of the directory; safe to call twice."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)
            self.path = os.devnull  # a closed directory resolves nothing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _refuse_link(self, part: str) -> None:
        if stat.S_ISLNK(self.stat(part).st_mode):
            raise HiddenFileError(part)


def make_directory(
    files: "FileSystem", directory: DirHandle, part: str, mode: int = 0o777
) -> DirHandle:
    """Open a directory in ``directory``; make it durably if it is missing."""
    with contextlib.suppress(FileExistsError):
        files.mkdir(directory, part, mode)
    # Also where it exists: its maker may not have synced it yet, or have died before.
    files.sync_directory(directory)
    return directory.open_directory(part)


def digest_xattr(fd: int, status: os.stat_result) -> str | None:
    """Return the digest that was kept with a file, unless the file was written to since."""
    note = os_files.get_xattr(fd, DIGEST_XATTR) or b""
    size, _, rest = note.decode(errors="replace").partition(" ")
    mtime, _, content_digest = rest.partition(" ")
    if (size, mtime) != (str(status.st_size), str(status.st_mtime_ns)):
        return None
    return content_digest if looks_like_digest(content_digest) else None


def _error(number: int, part: str) -> OSError:
    """Return the error that the system would raise: its class follows from the number."""
    return OSError(number, os.strerror(number), part)


def is_hard_linked(status: os.stat_result) -> bool:
    """Whether a file has a second name, which may be one outside."""
    return stat.S_ISREG(status.st_mode) and status.st_nlink > 1


def _is_unmoved(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether a file has got and lost no name between two looks at it.

    One look is not enough. It finds a file by its name, and then counts its names: in between
    the one that it was found by may have been taken away.
    """
    return (
        os.path.samestat(before, after)
        and before.st_nlink == after.st_nlink
        and before.st_ctime_ns == after.st_ctime_ns
    )


def _check_regular(status: os.stat_result, part: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise _error(errno.EISDIR, part)
    if not stat.S_ISREG(status.st_mode):
        raise _error(errno.ENOENT, part)


class FileSystem:
    """Every change that the directory store makes to a disk, one method each.

    Nothing else in storage/ changes anything, so whoever replaces this object
    sees each change, in order, and can stop or lose it. Without ``durable``
    nothing waits for stable storage: what is acknowledged survives the death of
    the process, but not that of the machine.
    """

    def __init__(self, *, durable: bool = True) -> None:
        self._durable = durable

    def create(self, directory: DirHandle, part: str, mode: int = 0o600) -> int:
        """Create a file that must not exist; return its descriptor."""
        flags = _CREATE | os_files.O_CLOEXEC
        return os.open(directory.at(part), flags, mode, dir_fd=directory.dir_fd)

    def write(self, fd: int, view: memoryview, offset: int) -> None:
        os_files.write_at(fd, view, offset)

    def truncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)

    def set_metadata(self, fd: int, path: str, mode: int | None, mtime: int | None) -> None:
        """Set permission bits and modification time of an open file.

        Whatever a peer asks for, no file runs as its owner or its group.
        """
        if mode is not None:
            os_files.set_mode(fd, path, mode & 0o777)
        if mtime is not None:
            os_files.set_mtime(fd, path, mtime)

    def preallocate(self, fd: int, size: int, beside: Iterable[os.stat_result] = ()) -> None:
        """Make sure that there is room for ``size`` bytes, or raise OSError.

        The files ``beside`` have been promised their lengths.
        """
        if size >= _WORTH_PREALLOCATING:
            promised = 0 if os_files.HAS_ALLOCATE else sum(map(os_files.unallocated, beside))
            os_files.preallocate(fd, size, promised)

    def set_digest_xattr(self, fd: int, content_digest: str) -> None:
        """Keep the digest of a file's content with it, bound to its length and time."""
        status = os.fstat(fd)
        note = f"{status.st_size} {status.st_mtime_ns} {content_digest}"
        os_files.set_xattr(fd, DIGEST_XATTR, note.encode())

    def sync(self, fd: int) -> None:
        """Bring a file's bytes and attributes to stable storage."""
        if self._durable:
            os.fsync(fd)

    def sync_data(self, fd: int) -> None:
        """Bring a file's bytes and length to stable storage."""
        if self._durable:
            os_files.sync_data(fd)

    def sync_directory(self, directory: DirHandle) -> None:
        """Bring the names in a directory to stable storage, where directories can be synced."""
        if self._durable and directory.dir_fd is not None:
            os.fsync(directory.dir_fd)

    def mkdir(self, directory: DirHandle, part: str, mode: int = 0o777) -> None:
        os.mkdir(directory.at(part), mode, dir_fd=directory.dir_fd)

    def rmdir(self, directory: DirHandle, part: str) -> None:
        os.rmdir(directory.at(part), dir_fd=directory.dir_fd)

    def unlink(self, directory: DirHandle, part: str) -> None:
        os.unlink(directory.at(part), dir_fd=directory.dir_fd)

    def rename(self, source: DirHandle, part: str, target: DirHandle, to: str) -> None:
        """Move in one step; a file that stands under ``to`` is replaced."""
        os.replace(
            source.at(part), target.at(to), src_dir_fd=source.dir_fd, dst_dir_fd=target.dir_fd
        )

    def rename_noreplace(self, source: DirHandle, part: str, target: DirHandle, to: str) -> None:
        """Move in one step to a name that must not exist, or NotImplementedError."""
        if source.dir_fd is None or target.dir_fd is None:
            raise NotImplementedError
        os_files.rename_noreplace(source.dir_fd, part, target.dir_fd, to)

    def hard_link(self, source: DirHandle, part: str, target: DirHandle, to: str) -> None:
        """Give a file a second name, which must not exist."""
        os.link(
            source.at(part),
            target.at(to),
            src_dir_fd=source.dir_fd,
            dst_dir_fd=target.dir_fd,
            follow_symlinks=False,
        )
