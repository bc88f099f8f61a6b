"""A cache of the digests of a local file's blocks, valid until the file changes.

With it an upload that is resumed does not read again the blocks that were sent.
"""

import contextlib
import os
import time
import zlib
from struct import Struct
from typing import Final

from ftpkit.osapi import files as os_files
from ftpkit.protocol.digest import DIGEST_BYTES, digest_of, format_digest, split_digest

_RECORD: Final = Struct(f"!Q{DIGEST_BYTES}s")
_CRC: Final = Struct("!I")
_LENGTH: Final = _RECORD.size + _CRC.size

# Within this time after a change, another change may leave the same times.
_MIN_AGE_NS: Final = 2 * 10**9
_MAX_UNUSED_S: Final = 30 * 86400


class DigestCache:
    """The digests of one file's blocks, by offset.

    They are stored in ``directory``, under a name made from the file's device, inode, size,
    mtime and ctime (in ``status``), the size of a ``block`` and the algorithm; without a
    directory, in memory. Truncated and damaged records are ignored, and so are I/O errors.
    """

    def __init__(
        self, directory: str | None, status: os.stat_result, *, block: int, algorithm: str
    ) -> None:
        self._algorithm = algorithm
        self._digests: dict[int, str] = {}
        self._fd: int | None = None
        self._path = ""
        # A program can set the mtime as it likes, but not the ctime.
        changed = max(status.st_mtime_ns, status.st_ctime_ns)
        if directory is not None and time.time_ns() - changed > _MIN_AGE_NS:
            identity = [status.st_dev, status.st_ino, status.st_size]
            times = [status.st_mtime_ns, status.st_ctime_ns]
            key = digest_of(repr((identity, times, block, algorithm)).encode())
            self._path = os.path.join(directory, split_digest(key)[1].hex()[:32])
            with contextlib.suppress(OSError):
                self._open(directory)

    def get(self, offset: int) -> str | None:
        return self._digests.get(offset)

    def add(self, offset: int, digest: str) -> None:
        if self._digests.get(offset) == digest:
            return
        self._digests[offset] = digest
        if self._fd is not None:
            record = _RECORD.pack(offset, split_digest(digest)[1])
            with contextlib.suppress(OSError):
                os_files.append(self._fd, record + _CRC.pack(zlib.crc32(record)))

    def clear(self) -> None:
        """Forget the file: it has been sent, or it has changed."""
        self._digests.clear()
        if self._path:
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def close(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    def _open(self, directory: str) -> None:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        _sweep(directory)
        flags = (
            os.O_RDWR | os.O_CREAT | os_files.O_NOFOLLOW | os_files.O_BINARY | os_files.O_CLOEXEC
        )
        self._fd = os.open(self._path, flags, 0o600)
        with open(self._path, "rb") as file:
            data = file.read()
        whole = len(data) - len(data) % _LENGTH
        for start in range(0, whole, _LENGTH):
            record = data[start : start + _RECORD.size]
            (crc,) = _CRC.unpack_from(data, start + _RECORD.size)
            if zlib.crc32(record) == crc:
                offset, raw = _RECORD.unpack(record)
                self._digests[offset] = format_digest(self._algorithm, raw)
        os.ftruncate(self._fd, whole)


def _sweep(directory: str) -> None:
    """Remove the digests of files that were not sent to the end for 30 days."""
    oldest = time.time() - _MAX_UNUSED_S
    with os.scandir(directory) as children:
        for child in children:
            with contextlib.suppress(OSError):
                if child.stat(follow_symlinks=False).st_mtime < oldest:
                    os.unlink(child.path)
