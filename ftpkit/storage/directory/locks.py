"""The lock of a root, and the locks of its uploads, which the processes of one server share."""

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ftpkit.osapi import files as os_files
from ftpkit.storage.api import UploadLocks
from ftpkit.storage.directory.filesystem import DirHandle, FileSystem, warn_unsupported

_LOCK: Final = "lock"


class LocalUploadLocks:
    """The upload locks of a server with one process."""

    def acquire(self, key: str) -> None:
        pass

    def release(self, key: str) -> None:
        pass


@dataclass(frozen=True, slots=True)
class RootLease:
    """The right to use a root that another process has locked and keeps in order.

    ``lock`` is a descriptor of that lock, which holds until the last copy is closed; it belongs
    to the store. ``number`` differs from that of every other lease.
    """

    lock: int
    number: int
    locks: UploadLocks


@contextlib.contextmanager
def lock_root(private: DirHandle, files: FileSystem) -> Iterator[int]:
    """Lock a root against other servers: two would not know of each other's uploads."""
    with contextlib.suppress(FileExistsError):
        os.close(files.create(private, _LOCK))
    fd = private.open_file(_LOCK, write=True, hard_linked=True)
    try:
        with os_files.lock(fd) as locked:
            if locked is None:
                warn_unsupported("flock: a second server of the same files is not noticed")
            elif not locked:
                raise BlockingIOError(
                    errno.EAGAIN,
                    "another ftpkit server already serves this directory",
                    os.path.dirname(private.path),
                )
            yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def join_root(private: DirHandle, lease: RootLease) -> Iterator[int]:
    """Hold the lock of another process, if ``private`` is still the directory it locked."""
    try:
        if not os.path.samestat(os.fstat(lease.lock), private.stat(_LOCK)):
            raise FileNotFoundError(
                f"{os.path.dirname(private.path)} was replaced while the server was running"
            )
        yield lease.lock
    finally:
        os.close(lease.lock)
