"""A local file that is uploaded."""

import contextlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from typing import Final, Self

from ftpkit.errors import LocalFileError, SourceChangedError
from ftpkit.osapi import files as os_files
from ftpkit.protocol.digest import format_digest, new_hasher
from ftpkit.protocol.fields import nearest_time

_PIECE: Final = 256 * 1024
# Kernels date changes by a clock that ticks every 10 ms or more often.
_TICK_NS: Final = 10 * 10**6


class Source:
    """An open local file to upload; it must not change meanwhile.

    ``total`` is its bytes, ``mtime`` in nanoseconds (of the years 1677 to 2262), ``mode`` its
    permission bits. Methods raise LocalFileError if it cannot be read, SourceChangedError if it
    changed.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            mode = os.stat(path).st_mode  # before it is opened: that can have effects on a device
            if not stat.S_ISREG(mode):
                kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
                raise LocalFileError(f"cannot upload {path!r}: it is {kind}")
            flags = os.O_RDONLY | os_files.O_NONBLOCK | os_files.O_BINARY | os_files.O_CLOEXEC
            self.fd = os.open(path, flags)
        except OSError as error:
            raise LocalFileError(f"cannot read {path!r}: {error.strerror or error}") from None
        self.status = self._steady_status()
        """The identity of what is read; ``was_touched`` renews it."""
        self.mtime = nearest_time(self.status.st_mtime_ns)
        self.mode = self.status.st_mode & 0o777
        try:
            self._check_size()
        except BaseException:
            os.close(self.fd)
            raise
        self.total = self.status.st_size
        self._buffer = memoryview(bytearray(_PIECE))

    def read(self, view: memoryview, offset: int) -> None:
        while view:
            count = self._read(view, offset)
            view, offset = view[count:], offset + count

    def digest(self, offset: int, size: int, algorithm: str) -> str:
        hasher, stop = new_hasher(algorithm), offset + size
        while offset < stop:
            count = self._read(self._buffer[: stop - offset], offset)
            hasher.update(self._buffer[:count])
            offset += count
        return format_digest(algorithm, hasher.digest())

    def check_unchanged(self) -> os.stat_result:
        """Return the status; raise SourceChangedError if the size or the mtime changed."""
        now, then = os.fstat(self.fd), self.status
        if (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns):
            raise self.changed_error()
        return now

    def was_touched(self) -> bool:
        """Whether the ctime changed since the last call: then all of it must be read again.

        A chmod or a rename leaves the content as it was, but a write after which the mtime was
        set back does not. Raises SourceChangedError if the size or the mtime changed.
        """
        then, self.status = self.status, self.check_unchanged()
        return self.status.st_ctime_ns != then.st_ctime_ns

    def changed_error(self) -> SourceChangedError:
        """Return the error for a file that changed while it was read."""
        return SourceChangedError(f"{self.path!r} changed during the upload: upload it again")

    def _steady_status(self) -> os.stat_result:
        """Return the status once a write can no longer leave the same times."""
        status = os.fstat(self.fd)
        if 0 <= time.time_ns() - status.st_ctime_ns < _TICK_NS:
            # No event says that the clock of the file system has moved on.
            time.sleep(_TICK_NS / 1e9)
            status = os.fstat(self.fd)
        return status

    def _check_size(self) -> None:
        """Copy the file to a temporary one if its size is not that of its content.

        Files of /proc have the size 0, those of /sys that of a page, whatever they contain.
        """
        size = self.status.st_size
        last = bytearray(1)
        with self._errors():
            if size > _PIECE or os_files.read_at(
                self.fd, memoryview(last), max(size - 1, 0)
            ) == min(size, 1):
                return
            with tempfile.TemporaryFile() as copy, open(self.fd, "rb", closefd=False) as file:
                file.seek(0)  # where there is no pread, the look at the end moved it
                shutil.copyfileobj(file, copy)
                copy.flush()
                if os.fstat(self.fd).st_size != size:
                    raise self.changed_error()
                os.dup2(copy.fileno(), self.fd, inheritable=False)
            self.status = os.fstat(self.fd)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LocalFileError(f"cannot read {self.path!r}: {error.strerror or error}") from None

    def _read(self, view: memoryview, offset: int) -> int:
        with self._errors():
            count = os_files.read_at(self.fd, view, offset)
        if count == 0:
            raise SourceChangedError(
                f"{self.path!r} became shorter during the upload: upload it again"
            )
        return count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)
