"""Files and descriptors: what the operating system offers beyond plain Python, with fallbacks."""

import contextlib
import errno
import mmap
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Final

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]  # probed below

# Held directory descriptors: without them paths are joined and checked part by part.
HAS_DIR_FD: Final = {
    os.open,
    os.stat,
    os.mkdir,
    os.rmdir,
    os.unlink,
    os.rename,
    os.link,
} <= os.supports_dir_fd and os.scandir in os.supports_fd
# Blocks reserved before they are written; without it promises are counted.
HAS_ALLOCATE: Final = hasattr(os, "posix_fallocate")
HAS_LOCKS: Final = fcntl is not None
# Files belong to somebody, and say who else may read them.
HAS_OWNERS: Final = hasattr(os, "geteuid")
HAS_NOFOLLOW: Final = hasattr(os, "O_NOFOLLOW")
O_NOFOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
O_DIRECTORY: Final = getattr(os, "O_DIRECTORY", 0)
O_NONBLOCK: Final = getattr(os, "O_NONBLOCK", 0)
O_NOCTTY: Final = getattr(os, "O_NOCTTY", 0)
O_BINARY: Final = getattr(os, "O_BINARY", 0)
O_CLOEXEC: Final = getattr(os, "O_CLOEXEC", 0)
_RENAME_NOREPLACE: Final = 1
# What is said by a kernel or a disk that cannot do that.
_CANNOT: Final = {errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP}

# Where there is no pread, a file's position is shared by its readers and writers.
_POSITION: Final = threading.Lock()


def lazy_memory(length: int) -> memoryview:
    """Return zeros that take no memory before something else is written there, where possible."""
    if hasattr(mmap, "MAP_PRIVATE"):
        return memoryview(mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    return memoryview(bytearray(length))


def read_at(fd: int, view: memoryview, offset: int) -> int:
    """Fill ``view`` from ``offset`` of a file; return how many bytes there were (0: the end)."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [view], offset)
    with _POSITION:
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, len(view))
    view[: len(data)] = data
    return len(data)


def write_at(fd: int, view: memoryview, offset: int) -> None:
    """Write all of ``view`` at ``offset`` of a file."""
    while view:
        if hasattr(os, "pwrite"):
            done = os.pwrite(fd, view, offset)
        else:
            with _POSITION:
                os.lseek(fd, offset, os.SEEK_SET)
                done = os.write(fd, view)
        view, offset = view[done:], offset + done


def append(fd: int, data: bytes) -> None:
    """Write ``data`` at the end of a file in one call."""
    with _POSITION:
        os.lseek(fd, 0, os.SEEK_END)
        write = os.write(fd, data)
    if write != len(data):
        raise OSError(f"only {write} of {len(data)} bytes were written")


def preallocate(fd: int, size: int, promised: int = 0) -> None:
    """Make sure that a file can grow to ``size`` bytes, or raise OSError with ENOSPC.

    Where blocks can be allocated ahead they are; elsewhere the free space is
    looked at, less what was ``promised`` to other files.
    """
    if hasattr(os, "fstatvfs"):
        # Asked for too much, some file systems allocate all there is before they say no.
        space = os.fstatvfs(fd)
        if size > space.f_bavail * space.f_frsize - promised:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if HAS_ALLOCATE:
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                os.ftruncate(fd, 0)
                raise
    else:
        # Its length tells what was promised to it; see ``unallocated``.
        os.ftruncate(fd, size)


def unallocated(status: os.stat_result) -> int:
    """Return how many bytes of a file have no block on the disk yet, as far as that is told."""
    return max(0, status.st_size - getattr(status, "st_blocks", status.st_size) * 512)


def set_xattr(fd: int, key: str, value: bytes) -> None:
    """Keep a short note with a file, as an extended attribute, where there are such."""
    if hasattr(os, "setxattr"):
        with contextlib.suppress(OSError):
            os.setxattr(fd, f"user.{key}", value)


def get_xattr(fd: int, key: str) -> bytes | None:
    """Return the note that was kept with a file, if it was and still is."""
    if hasattr(os, "getxattr"):
        with contextlib.suppress(OSError):
            return os.getxattr(fd, f"user.{key}")
    return None


@contextlib.contextmanager
def secret_file(data: bytes) -> Iterator[str]:
    """Hold ``data`` in a file for those who read nothing else; yield its path."""
    with contextlib.ExitStack() as stack:
        if hasattr(os, "memfd_create") and os.path.exists("/proc/self/fd"):
            fd = os.memfd_create("ftpkit", os.MFD_CLOEXEC)
            path = f"/proc/self/fd/{fd}"
        else:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            path = os.path.join(directory, "secret")
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | O_CLOEXEC | O_BINARY, 0o600)
        stack.callback(os.close, fd)
        append(fd, data)
        yield path


def sync_data(fd: int) -> None:
    """Bring a file's bytes and length to stable storage."""
    getattr(os, "fdatasync", os.fsync)(fd)


def sync_directory(path: str) -> None:
    """Bring the names in a directory to stable storage, where directories can be opened."""
    if O_DIRECTORY:
        fd = os.open(path, os.O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def rename_noreplace(source_fd: int, part: str, target_fd: int, to: str) -> None:
    """Move ``part`` of one directory to a free name in another, in one step.

    NotImplementedError says that the system cannot, or not on this disk.
    """
    if sys.platform != "linux":
        raise NotImplementedError
    import ctypes  # os has no such call

    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        raise NotImplementedError from None
    if call(source_fd, os.fsencode(part), target_fd, os.fsencode(to), _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        if number in _CANNOT:
            raise NotImplementedError
        raise OSError(number, os.strerror(number), part)


def start_writeback(fd: int, offset: int, size: int) -> None:
    """Ask for these bytes to be written to the disk soon, without waiting for it."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)


def start_readahead(fd: int, offset: int, size: int) -> None:
    """Ask for these bytes to be read from the disk soon, without waiting for it."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, offset, size, os.POSIX_FADV_WILLNEED)


def set_mode(fd: int, path: str, mode: int) -> None:
    """Set the permission bits, of ``fd`` where that works, else of ``path``."""
    os.chmod(fd if os.chmod in os.supports_fd else path, mode)


def set_mtime(fd: int, path: str, mtime: int) -> None:
    """Set the modification time in nanoseconds, of ``fd`` where that works, else of ``path``."""
    os.utime(fd if os.utime in os.supports_fd else path, ns=(mtime, mtime))


def is_owned(status: os.stat_result) -> bool:
    """Whether what has this status belongs to us, as far as that is told; root has everything."""
    return not HAS_OWNERS or os.geteuid() in (0, status.st_uid)


def chown_to_directory_owner(fd: int, directory: str) -> None:
    """Let a file that root has made in a directory belong to the owner of that directory."""
    if HAS_OWNERS and os.geteuid() == 0:
        status = os.stat(directory)
        os.fchown(fd, status.st_uid, status.st_gid)


@contextlib.contextmanager
def lock(fd: int, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock on an open file until the block ends; False says that another process does.

    With ``wait`` the other one is waited for.
    """
    if not HAS_LOCKS:
        yield True
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
        return
    yield True
    fcntl.flock(fd, fcntl.LOCK_UN)


def is_locked(fd: int) -> bool:
    """Whether another process holds ``lock`` on an open file; there must be locks."""
    try:
        # Shared, so that two who ask are not in each other's way.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False
