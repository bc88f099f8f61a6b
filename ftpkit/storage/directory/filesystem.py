"""Directories that are held open, and every change that the store makes to the disk."""

import contextlib
import errno
import functools
import logging
import os
import stat
from collections.abc import Iterable, Iterator
from typing import Final, Self

from ftpkit.osapi import files as os_files
from ftpkit.protocol.digest import looks_like_digest

_DIRECTORY = os.O_RDONLY | os_files.O_DIRECTORY | os_files.O_NOFOLLOW | os_files.O_CLOEXEC
_NO_SIDE_EFFECTS = os_files.O_NOFOLLOW | os_files.O_NONBLOCK | os_files.O_NOCTTY
_READ = os.O_RDONLY | _NO_SIDE_EFFECTS | os_files.O_BINARY | os_files.O_CLOEXEC
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os_files.O_NOFOLLOW | os_files.O_BINARY
_REOPEN = os.O_RDWR | _NO_SIDE_EFFECTS | os_files.O_BINARY | os_files.O_CLOEXEC

DIGEST_XATTR: Final = "ftpkit.digest"
# A smaller file fails so soon on a full disk that preallocating it is not worth a call.
_MIN_PREALLOCATED: Final = 1024 * 1024
# A file that another program replaces more often during one call is treated as missing.
_MAX_ATTEMPTS: Final = 32


log = logging.getLogger("ftpkit.storage")
# A download stays silent about its file system, where nothing was configured to log.
log.addHandler(logging.NullHandler())


@contextlib.contextmanager
def supported(what: str, *, anything: bool = False) -> Iterator[None]:
    """Go on, with one warning, where the file system has no ``what``: after the last byte of a
    file nothing optional may fail. ``anything``: go on after every error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in os_files.UNSUPPORTED and not anything:
            raise
        warn_unsupported(what)


@functools.cache
def warn_unsupported(what: str) -> None:
    """Warn once about what a file system lacks."""
    log.warning("the file system does not support %s; see `ftpkit help reliability`", what)


class HiddenFileError(FileNotFoundError):
    """The name is a symbolic link or the store's own directory, which no user sees."""

    def __init__(self, part: str) -> None:
        super().__init__(errno.ENOENT, os.strerror(errno.ENOENT), part)


class DirHandle:
    """A directory that is held open: names in it are resolved against its descriptor.

    Renaming or replacing a directory above it changes nothing for its user, and no call follows
    a symbolic link. Where the system has no such calls, names are joined to ``path``, after a
    check for symbolic links.
    """

    def __init__(self, path: str, fd: int | None) -> None:
        self.path, self.dir_fd = path, fd

    @classmethod
    def open(cls, path: str) -> "DirHandle":
        """Open a directory that the administrator named: follow symbolic links in ``path``."""
        path = os.path.realpath(path)
        return cls(path, os.open(path, _DIRECTORY) if os_files.HAS_DIR_FD else None)

    def at(self, part: str) -> str:
        """Return the path of ``part`` to pass to functions of ``os``, together with ``dir_fd``."""
        return part if self.dir_fd is not None else os.path.join(self.path, part)

    def open_directory(self, part: str) -> "DirHandle":
        """Open a directory in it; a symbolic link is a FileNotFoundError."""
        path = os.path.join(self.path, part)
        if self.dir_fd is None or not os_files.HAS_NOFOLLOW:
            self._refuse_link(part)
        if self.dir_fd is None:
            if not stat.S_ISDIR(self.stat(part).st_mode):
                raise _error(errno.ENOTDIR, part)
            return DirHandle(path, None)
        try:
            return DirHandle(path, os.open(part, _DIRECTORY, dir_fd=self.dir_fd))
        except NotADirectoryError:
            self._refuse_link(part)
            raise

    def above(self, expected: os.stat_result) -> "DirHandle":
        """Open its parent; OSError if that is not ``expected``: this directory was moved."""
        above = self.parent()
        if self.dir_fd is None or os.path.samestat(above.status(), expected):
            return above
        path = above.path
        above.close()
        raise _error(errno.ESTALE, path)

    def parent(self) -> "DirHandle":
        """Open its parent, wherever it was moved."""
        path = os.path.dirname(self.path)
        if self.dir_fd is None:
            return DirHandle(path, None)
        return DirHandle(path, os.open(os.pardir, _DIRECTORY, dir_fd=self.dir_fd))

    @contextlib.contextmanager
    def locked(self, *, shared: bool = False) -> Iterator[None]:
        """Hold a flock(2) of the directory, where the system can lock it.

        It waits for an exclusive lock; a shared one that others exclude is not taken.
        """
        if self.dir_fd is None:
            yield
            return
        with os_files.lock(self.dir_fd, wait=not shared, shared=shared):
            yield

    def open_file(self, part: str, *, write: bool = False, hard_linked: bool = False) -> int:
        """Open a regular file in it; anything else is FileNotFoundError or IsADirectoryError.

        Unless ``hard_linked``, a file with a second name is not found either: the other name may
        be outside the root, and would lead there like a symbolic link.

        Opening a FIFO or a device can block or have effects, so the status is checked first,
        and again after the open. A file that was swapped in between is opened without blocking,
        and closed again.
        """
        for _ in range(_MAX_ATTEMPTS):
            before = self.stat(part)
            _check_regular(before, part)
            if is_hard_linked(before) and not hard_linked:
                raise _error(errno.ENOENT, part)
            fd = os.open(self.at(part), _REOPEN if write else _READ, dir_fd=self.dir_fd)
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
        """Return the status of ``part``, of the link itself where it is a symbolic link."""
        return os.stat(self.at(part), dir_fd=self.dir_fd, follow_symlinks=False)

    def steady_stat(self, part: str) -> os.stat_result:
        """Return a status of ``part`` whose count of hard links belongs to this name."""
        status = self.stat(part)
        for _ in range(_MAX_ATTEMPTS):
            if not stat.S_ISREG(status.st_mode):  # hard links do not matter
                return status
            before, status = status, self.stat(part)
            if _is_unmoved(before, status):
                return status
        raise _error(errno.ENOENT, part)

    def status(self) -> os.stat_result:
        """Return the status of the directory itself."""
        return os.stat(self.path if self.dir_fd is None else self.dir_fd)

    def mount(self) -> tuple[int, int | None]:
        """Return what differs between two directories if no file can be renamed between them."""
        mount = None if self.dir_fd is None else os_files.mount_id(self.dir_fd)
        return self.status().st_dev, mount

    def check_writable(self) -> None:
        """Raise OSError if files in it cannot be created, renamed or deleted."""
        where = self.path if self.dir_fd is None else self.dir_fd
        if hasattr(os, "statvfs") and os.statvfs(where).f_flag & os.ST_RDONLY:
            raise _error(errno.EROFS, self.path)
        if not os_files.may_change(self.at(os.curdir), self.dir_fd):
            raise _error(errno.EACCES, self.path)

    def names(self) -> Iterator[tuple[str, bool]]:
        """Yield each name in it, in no order, and whether it is a directory (not a link to one)."""
        with os.scandir(self.path if self.dir_fd is None else self.dir_fd) as entries:
            for info in entries:
                yield info.name, info.is_dir(follow_symlinks=False)

    def sizes(self) -> Iterator[tuple[str, int | None]]:
        """Yield the name and length in bytes of its files; None is the length of directories."""
        with os.scandir(self.path if self.dir_fd is None else self.dir_fd) as entries:
            for info in entries:
                if info.is_dir(follow_symlinks=False):
                    yield info.name, None
                elif info.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        yield info.name, info.stat(follow_symlinks=False).st_size

    def close(self) -> None:
        """Close the directory; may be called twice."""
        if self.dir_fd is not None:
            fd, self.dir_fd = self.dir_fd, None
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
    """Return the digest that was stored with a file, unless the file was written to since."""
    value = os_files.get_xattr(fd, DIGEST_XATTR) or b""
    size, _, rest = value.decode(errors="replace").partition(" ")
    mtime, _, content_digest = rest.partition(" ")
    if (size, mtime) != (str(status.st_size), str(status.st_mtime_ns)):
        return None
    return content_digest if looks_like_digest(content_digest) else None


def _error(number: int, part: str) -> OSError:
    """Return the error that the system would raise; OSError chooses the class by the number."""
    return OSError(number, os.strerror(number), part)


def is_hard_linked(status: os.stat_result) -> bool:
    """Whether a file has a second name, which may be outside the root."""
    return stat.S_ISREG(status.st_mode) and status.st_nlink > 1


def _is_unmoved(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether a file gained and lost no name between two calls of stat.

    One call is not enough: it looks the name up and then reads the count of names, and the
    looked up name may have been unlinked in between.
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

    Nothing else in storage/ changes the disk, so a test that replaces this object sees each
    change, in order, and can make it fail. Unless ``durable``, nothing waits for stable storage:
    acknowledged files survive the death of the process, but not that of the machine.
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

    def set_metadata(
        self, fd: int, path: str, mode: int | None, mtime: int | None, content_digest: str
    ) -> None:
        """Set modification time (nanoseconds), digest and permission bits of an open file.

        The digest is bound to the file's length and time. The permission bits come last, as
        only root may set an extended attribute on a read-only file. The setuid, setgid and
        sticky bits are masked, whatever a peer asks for; the owner can always read.
        What the file system cannot store is left out.
        """
        if mtime is not None:
            with supported("modification times: files have the time of their arrival"):
                os_files.set_mtime(fd, path, mtime)
        status = os.fstat(fd)
        value = f"{status.st_size} {status.st_mtime_ns} {content_digest}"
        with supported("extended attributes: no digest is stored with a file", anything=True):
            os_files.set_xattr(fd, DIGEST_XATTR, value.encode())
        if mode is not None:
            with supported("permission bits: files have those of a new file"):
                os_files.set_mode(fd, path, mode & 0o777 | stat.S_IRUSR)

    def inherit(self, fd: int, path: str, directory: DirHandle, mode: int | None) -> None:
        """Give a file the group and access control list of files created in ``directory``.

        ``mode`` are the permission bits that it was given, if any.
        """
        if directory.dir_fd is None:
            return
        changed = False
        with supported("giving a file the group of its setgid directory"):
            changed = os_files.inherit_group(fd, directory.dir_fd)
        with supported("giving a file the default ACL of its directory"):
            if os_files.inherit_acl(fd, directory.dir_fd):
                changed = True
                if mode is not None:
                    os_files.set_mode(fd, path, mode & 0o777 | stat.S_IRUSR)
        if changed:
            self.sync(fd)

    def give_nothing(self, directory: DirHandle) -> None:
        """Let files that are created in a directory have no group or list from it."""
        if directory.dir_fd is not None:
            with supported("removing setgid or the default ACL of .ftpkit"):
                os_files.give_nothing(directory.dir_fd, directory.path)

    def make_writable(self, fd: int, path: str) -> None:
        """Let the owner write to a file."""
        os_files.set_mode(fd, path, 0o600)

    def preallocate(self, fd: int, size: int, others: Iterable[os.stat_result] = ()) -> None:
        """Reserve disk space for ``size`` bytes, or raise OSError with ENOSPC.

        Where the file system cannot allocate, the length of each file is what was promised to
        it: the space that is free must do for this file and for ``others``, the status of all
        files that wait for their bytes (which may include this file).
        """
        if size < _MIN_PREALLOCATED:
            return
        free = os_files.free_bytes(fd)
        try:
            # Some file systems allocate all free space before they report that it is not enough.
            if free is not None and size > free:
                raise _error(errno.ENOSPC, "")
            if os_files.allocate(fd, size):
                return
            # Promised first: of two that count at the same time, each sees the other.
            os.ftruncate(fd, size)
            own = os.fstat(fd)
            promised = os_files.unallocated(own) + sum(
                os_files.unallocated(each) for each in others if not os.path.samestat(each, own)
            )
            if free is not None and promised > free:
                raise _error(errno.ENOSPC, "")
        except OSError:
            os.ftruncate(fd, 0)
            raise

    def sync(self, fd: int) -> None:
        """Bring a file's bytes and attributes to stable storage."""
        if self._durable:
            with supported("fsync: a power cut may lose files"):
                os.fsync(fd)

    def sync_data(self, fd: int) -> None:
        """Bring a file's bytes and length to stable storage."""
        if self._durable:
            with supported("fdatasync: a power cut may lose files"):
                os_files.sync_data(fd)

    def sync_directory(self, directory: DirHandle) -> None:
        """Bring the names in a directory to stable storage, where the system can sync them."""
        if self._durable and directory.dir_fd is not None:
            with supported("fsync of directories: a power cut may lose names"):
                os.fsync(directory.dir_fd)

    def mkdir(self, directory: DirHandle, part: str, mode: int = 0o777) -> None:
        os.mkdir(directory.at(part), mode, dir_fd=directory.dir_fd)

    def set_directory_mode(self, directory: DirHandle, mode: int) -> None:
        """Set the permission bits of a directory, with setgid and sticky."""
        if directory.dir_fd is not None:
            os_files.set_mode(directory.dir_fd, directory.path, stat.S_IMODE(mode))

    def rmdir(self, directory: DirHandle, part: str) -> None:
        os.rmdir(directory.at(part), dir_fd=directory.dir_fd)

    def unlink(self, directory: DirHandle, part: str) -> None:
        os.unlink(directory.at(part), dir_fd=directory.dir_fd)

    def rename(self, source: DirHandle, part: str, target: DirHandle, to: str) -> None:
        """Rename atomically; replace an existing file."""
        os.replace(
            source.at(part), target.at(to), src_dir_fd=source.dir_fd, dst_dir_fd=target.dir_fd
        )

    def rename_noreplace(self, source: DirHandle, part: str, target: DirHandle, to: str) -> None:
        """Rename atomically to a name that must not exist; NotImplementedError if unsupported."""
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
