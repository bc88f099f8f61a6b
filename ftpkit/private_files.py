"""Small files with secrets, readable by their owner alone and replaced atomically."""

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Final

from ftpkit.errors import LocalFileError
from ftpkit.osapi import files as os_files

OTHERS_WRITE: Final = 0o022
_OTHERS: Final = 0o077
_FLAGS: Final = os_files.O_NOFOLLOW | os_files.O_NONBLOCK | os_files.O_BINARY | os_files.O_CLOEXEC


def make_directory(path: str) -> None:
    """Make a directory with mode 0700, and its parents; it may exist.

    LocalFileError if it cannot be made, or others can write to it.
    """
    parent = os.path.dirname(path)
    if parent and not os.path.isdir(parent):
        make_directory(parent)
    with _os_errors("make", path):
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
            with contextlib.suppress(OSError):  # the parent may not be readable
                os_files.sync_directory(parent or os.curdir)
        _check_directory(path)


def read(path: str) -> bytes | None:
    """Return the contents of a file, or None if it does not exist.

    LocalFileError if it cannot be read, or others can read or replace it.
    """
    with _os_errors("read", path):
        try:
            _check_directory(os.path.dirname(path))
            # Checked before it is opened, as that blocks on a FIFO, and again afterwards.
            _check_file(path, os.lstat(path))
            with open(path, "rb", opener=_open) as file:
                _check_file(path, os.fstat(file.fileno()))
                return file.read()
        except FileNotFoundError:
            return None


def replace(path: str, data: bytes) -> None:
    """Replace the contents of ``path`` by ``data`` in one step, on stable storage.

    The caller holds the lock of ``path``. The mtime grows with every change, so that a
    reader who compares it misses none. LocalFileError if it cannot be written.
    """
    directory, temporary = os.path.dirname(path), f"{path}.new"
    with _os_errors("write", path):
        _check_directory(directory)
        with contextlib.suppress(FileNotFoundError):  # left by a process that was killed
            os.unlink(temporary)
        try:
            with _created(temporary) as fd:
                os_files.write_at(fd, memoryview(data), 0)
                before = os.lstat(path).st_mtime_ns if os.path.lexists(path) else 0
                with os_files.where_supported():
                    os_files.set_mtime(fd, temporary, max(os.fstat(fd).st_mtime_ns, before + 1))
                with os_files.where_supported():
                    os.fsync(fd)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        os_files.sync_directory(directory or os.curdir)


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the lock of ``path`` against other processes, in PATH.lock; wait for it if needed."""
    lock = f"{path}.lock"
    with contextlib.ExitStack() as stack:
        with _os_errors("lock", path):
            _check_directory(os.path.dirname(path))
            try:
                fd = stack.enter_context(_created(lock))
            except FileExistsError:
                fd = _open(lock, os.O_RDWR)
                stack.callback(os.close, fd)
            stack.enter_context(os_files.lock(fd, wait=True))
        yield


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | _FLAGS)


@contextlib.contextmanager
def _created(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
    try:
        with os_files.where_supported():
            os_files.set_mode(fd, path, 0o600)
        _check_file(path, os.fstat(fd))
        with os_files.where_supported():
            os_files.chown_to_directory_owner(fd, os.path.dirname(path) or os.curdir)
        yield fd
    finally:
        os.close(fd)


def _check_directory(path: str) -> None:
    path = path or os.curdir
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise LocalFileError(f"{path} is not a directory")
    writable = f"other users can write to the directory {path}: chmod 700 {path}"
    _check_access(path, status, OTHERS_WRITE, writable)


def _check_file(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise LocalFileError(f"{path} is not a regular file")
    _check_access(path, status, _OTHERS, f"other users have access to {path}: chmod 600 {path}")


def _check_access(path: str, status: os.stat_result, forbidden: int, message: str) -> None:
    if not os_files.is_owned(status):
        raise LocalFileError(f"{path} is owned by another user")
    if os_files.HAS_OWNERS and status.st_mode & forbidden:
        raise LocalFileError(message)


@contextlib.contextmanager
def _os_errors(verb: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LocalFileError(f"cannot {verb} {path}: {error.strerror or error}") from error
