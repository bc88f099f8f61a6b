"""System calls on files and descriptors, with portable fallbacks."""

import contextlib
import errno
import mmap
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from struct import Struct
from typing import Final

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]  # probed below

# The *at() calls, relative to a directory descriptor.
_AT_CALLS: Final = {os.open, os.stat, os.mkdir, os.rmdir, os.unlink, os.rename, os.link}
HAS_DIR_FD: Final = os.supports_dir_fd >= _AT_CALLS and os.scandir in os.supports_fd
HAS_ALLOCATE: Final = sys.platform == "linux"
HAS_LOCKS: Final = fcntl is not None
# Files have an owner and permission bits.
HAS_OWNERS: Final = hasattr(os, "geteuid")
HAS_NOFOLLOW: Final = hasattr(os, "O_NOFOLLOW")
O_NOFOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
O_DIRECTORY: Final = getattr(os, "O_DIRECTORY", 0)
O_NONBLOCK: Final = getattr(os, "O_NONBLOCK", 0)
O_NOCTTY: Final = getattr(os, "O_NOCTTY", 0)
O_BINARY: Final = getattr(os, "O_BINARY", 0)
O_CLOEXEC: Final = getattr(os, "O_CLOEXEC", 0)
_RENAME_NOREPLACE: Final = 1
# Errors of a kernel or a file system without renameat2, or without fallocate.
_UNSUPPORTED: Final = {errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP}

# Errors of a file system that lacks an operation; EPERM, as vfat and FUSE return it for chmod.
UNSUPPORTED: Final = frozenset(_UNSUPPORTED)
# NFS locks a directory only if it is open for writing, which no directory can be.
_NO_LOCKS: Final = UNSUPPORTED | {errno.ENOLCK, errno.EBADF}

# linux/posix_acl_xattr.h: tag, permission bits, and user or group.
_ACL_ENTRY: Final = Struct("<HHI")
_ACL_USER, _ACL_GROUP, _ACL_MASK, _ACL_OTHER = 0x01, 0x04, 0x10, 0x20

# Without pread and pwrite, threads share the file's position.
_POSITION: Final = threading.Lock()


def lazy_memory(length: int) -> memoryview:
    """Return ``length`` zero bytes: mmap(2), which allocates pages when written, or a bytearray."""
    if hasattr(mmap, "MAP_PRIVATE"):
        return memoryview(mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    return memoryview(bytearray(length))


def read_at(fd: int, view: memoryview, offset: int) -> int:
    """Read into ``view`` from ``offset``, return how many bytes: preadv(2), or lseek and read."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [view], offset)
    with _POSITION:
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, len(view))
    view[: len(data)] = data
    return len(data)


def write_at(fd: int, view: memoryview, offset: int) -> None:
    """Write all of ``view`` at ``offset``: pwrite(2), or lseek and write."""
    while view:
        if hasattr(os, "pwrite"):
            done = os.pwrite(fd, view, offset)
        else:
            with _POSITION:
                os.lseek(fd, offset, os.SEEK_SET)
                done = os.write(fd, view)
        view, offset = view[done:], offset + done


def append(fd: int, data: bytes) -> None:
    """Append ``data`` to a file with one write(2); OSError if it is not written whole."""
    with _POSITION:
        os.lseek(fd, 0, os.SEEK_END)
        written = os.write(fd, data)
    if written != len(data):
        raise OSError(f"only {written} of {len(data)} bytes were written")


def allocate(fd: int, size: int) -> bool:
    """Allocate ``size`` bytes for a file: fallocate(2); OSError with ENOSPC if there is no room.

    Returns False, and changes nothing, where the kernel or the file system does not support it.
    posix_fallocate(3) would then write every block instead, which takes as long as the upload.
    """
    if not HAS_ALLOCATE:
        return False
    import ctypes  # os does not offer the call

    library = ctypes.CDLL(None, use_errno=True)
    # The name of the variant with offsets of 64 bits in glibc; musl has no other.
    call = getattr(library, "fallocate64", None) or library.fallocate
    offset = ctypes.c_longlong
    while call(fd, 0, offset(0), offset(size)):
        number = ctypes.get_errno()
        if number in _UNSUPPORTED:
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True


def free_bytes(fd: int) -> int | None:
    """Return the free space of a file's disk for this user: fstatvfs(3); None without it."""
    if not hasattr(os, "fstatvfs"):
        return None
    space = os.fstatvfs(fd)
    return space.f_bavail * space.f_frsize


def unallocated(status: os.stat_result) -> int:
    """Return how many bytes of a file have no disk block yet (st_blocks); 0 if unknown."""
    return max(0, status.st_size - getattr(status, "st_blocks", status.st_size) * 512)


def set_xattr(fd: int, key: str, value: bytes) -> None:
    """Set the extended attribute ``user.KEY``: setxattr(2); OSError if it cannot be stored."""
    if not hasattr(os, "setxattr"):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    os.setxattr(fd, f"user.{key}", value)


def get_xattr(fd: int, key: str) -> bytes | None:
    """Return the extended attribute ``user.KEY``: getxattr(2); None if unset or not supported."""
    if hasattr(os, "getxattr"):
        with contextlib.suppress(OSError):
            return os.getxattr(fd, f"user.{key}")
    return None


@contextlib.contextmanager
def secret_file(data: bytes) -> Iterator[str]:
    """Yield the path of a private file of ``data``: memfd_create(2), or a temporary file."""
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


@contextlib.contextmanager
def where_supported() -> Iterator[None]:
    """Go on where the file system does not support an operation, as CIFS and FUSE often do."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def sync_data(fd: int) -> None:
    """Flush a file's bytes and length to stable storage: fdatasync(2), or fsync."""
    getattr(os, "fdatasync", os.fsync)(fd)


def sync_directory(path: str) -> None:
    """Flush a directory's entries to stable storage: fsync(2), where that is supported."""
    if O_DIRECTORY:
        fd = os.open(path, os.O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        try:
            with where_supported():
                os.fsync(fd)
        finally:
            os.close(fd)


def rename_noreplace(source_fd: int, part: str, target_fd: int, to: str) -> None:
    """Rename ``part`` in one directory to ``to`` in another unless that exists: renameat2(2).

    Raises FileExistsError, or NotImplementedError if the system or file system does not
    support it; there is no fallback.
    """
    if sys.platform != "linux":
        raise NotImplementedError
    import ctypes  # os does not offer the call

    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        raise NotImplementedError from None
    if call(source_fd, os.fsencode(part), target_fd, os.fsencode(to), _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        if number in _UNSUPPORTED:
            raise NotImplementedError
        raise OSError(number, os.strerror(number), part)


def start_writeback(fd: int, offset: int, size: int) -> None:
    """Start writing a range to the disk: posix_fadvise(2) DONTNEED; nothing without it."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)


def start_readahead(fd: int, offset: int, size: int) -> None:
    """Start reading a range from the disk: posix_fadvise(2) WILLNEED; nothing without it."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, offset, size, os.POSIX_FADV_WILLNEED)


def set_mode(fd: int, path: str, mode: int) -> None:
    """Set the permission bits: fchmod(2), or chmod of ``path``."""
    os.chmod(fd if os.chmod in os.supports_fd else path, mode)


def set_mtime(fd: int, path: str, mtime: int) -> None:
    """Set the modification time in nanoseconds: futimens(3), or utime of ``path``."""
    os.utime(fd if os.utime in os.supports_fd else path, ns=(mtime, mtime))


def may_change(path: str, dir_fd: int | None) -> bool:
    """Whether files in the directory ``path`` may be created and deleted: faccessat(2)."""
    effective = os.access in os.supports_effective_ids
    return os.access(path, os.W_OK | os.X_OK, dir_fd=dir_fd, effective_ids=effective)


def mount_id(fd: int) -> int | None:
    """Return the number of the mount that a descriptor is on: proc(5); None if unknown.

    Two mounts may show one file system; rename(2) does not cross them.
    """
    with contextlib.suppress(OSError):
        info = os.open(f"/proc/self/fdinfo/{fd}", os.O_RDONLY | O_CLOEXEC)
        try:
            text = os.read(info, 1024)
        finally:
            os.close(info)
        _, found, rest = text.partition(b"mnt_id:")
        if found:
            return int(rest.split()[0])
    return None


def inherit_group(fd: int, directory_fd: int) -> bool:
    """Give a file the group of a setgid directory: fchown(2); return whether it had another."""
    status = os.fstat(directory_fd)
    if not status.st_mode & stat.S_ISGID or status.st_gid == os.fstat(fd).st_gid:
        return False
    os.chown(fd, -1, status.st_gid)
    return True


def inherit_acl(fd: int, directory_fd: int) -> bool:
    """Give a file the access control list of new files in a directory, if it has one: acl(5)."""
    default = _get_default_acl(directory_fd)
    if default is not None:
        os.setxattr(fd, "system.posix_acl_access", _acl_of_new_file(default))
    return default is not None


def give_nothing(directory_fd: int, path: str) -> None:
    """Let a directory give neither group nor access control list to new files in it."""
    mode = os.fstat(directory_fd).st_mode
    if mode & stat.S_ISGID:
        set_mode(directory_fd, path, stat.S_IMODE(mode) & ~stat.S_ISGID)
    if _get_default_acl(directory_fd) is not None:
        os.removexattr(directory_fd, "system.posix_acl_default")


def _get_default_acl(directory_fd: int) -> bytes | None:
    if hasattr(os, "getxattr"):
        with contextlib.suppress(OSError):
            return os.getxattr(directory_fd, "system.posix_acl_default")
    return None


def _acl_of_new_file(default: bytes) -> bytes:
    """Return the list of a file that is created with the mode 0o666 below a default list.

    Its owner can always read.
    """
    version, acl = default[:4], list(_ACL_ENTRY.iter_unpack(default[4:]))
    # The bits of the group limit the mask, if there is one.
    group = _ACL_MASK if any(tag == _ACL_MASK for tag, _, _ in acl) else _ACL_GROUP
    limits = {_ACL_USER: 6, group: 6, _ACL_OTHER: 6}
    return version + b"".join(
        _ACL_ENTRY.pack(tag, bits & limits.get(tag, 7) | (4 if tag == _ACL_USER else 0), who)
        for tag, bits, who in acl
    )


def is_owned(status: os.stat_result) -> bool:
    """Whether the effective user owns the file or is root; True on systems without owners."""
    return not HAS_OWNERS or os.geteuid() in (0, status.st_uid)


def chown_to_directory_owner(fd: int, directory: str) -> None:
    """If root, give a new file to the owner of its directory: fchown(2)."""
    if HAS_OWNERS and os.geteuid() == 0:
        status = os.stat(directory)
        os.fchown(fd, status.st_uid, status.st_gid)


@contextlib.contextmanager
def lock(fd: int, *, wait: bool = False, shared: bool = False) -> Iterator[bool | None]:
    """Hold a flock(2) until the block ends; yield False if another process excludes it.

    With ``wait`` the call blocks instead. Where the system or the file system has no flock,
    nothing is locked, and None is yielded.
    """
    if not HAS_LOCKS:
        yield None
        return
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(fd, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
        return
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        yield None
        return
    yield True
    fcntl.flock(fd, fcntl.LOCK_UN)


def is_locked(fd: int) -> bool:
    """Whether another process holds ``lock`` on an open file, or may do so; only if HAS_LOCKS."""
    # A shared lock, so that two callers do not see each other.
    with lock(fd, shared=True) as locked:
        return not locked
