"""What is known of a file's blocks: their digests, kept until the file changes.

So an upload that goes on after days need not read again what was sent.
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

# A file that was written to a moment ago may be written to again under the same mtime.
_SETTLED_NS: Final = 2 * 10**9
_KEPT_S: Final = 30 * 86400


class DigestCache:
    """The digests of one file's blocks by offset; in ``directory``, or for this object's life.

    A file is told by device, inode, size and mtime; whatever else changes it is another file.
    Records that are cut or damaged are as good as none. The memory only saves
    work, so a disk that fails it is no error.
    """

    def __init__(
        self, directory: str | None, status: os.stat_result, *, block: int, algorithm: str
    ) -> None:
        self._algorithm = algorithm
        self._known: dict[int, str] = {}
        self._fd: int | None = None
        self._path = ""
        if directory is not None and time.time_ns() - status.st_mtime_ns > _SETTLED_NS:
            identity = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]
            key = digest_of(repr((identity, block, algorithm)).encode())
            self._path = os.path.join(directory, split_digest(key)[1].hex()[:32])
            with contextlib.suppress(OSError):
                self._open(directory)

    def get(self, offset: int) -> str | None:
        """Return the digest of the block at ``offset``, if it was ever told."""
        return self._known.get(offset)

    def add(self, offset: int, digest: str) -> None:
        """Keep the digest of a block."""
        if self._known.get(offset) == digest:
            return
        self._known[offset] = digest
        if self._fd is not None:
            record = _RECORD.pack(offset, split_digest(digest)[1])
            with contextlib.suppress(OSError):
                os_files.append(self._fd, record + _CRC.pack(zlib.crc32(record)))

    def forget(self) -> None:
        """Drop what is known: the file has been sent, or it has changed."""
        self._known.clear()
        if self._path:
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def close(self) -> None:
        """Close the file; safe to call twice."""
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
                self._known[offset] = format_digest(self._algorithm, raw)
        os.ftruncate(self._fd, whole)


def _sweep(directory: str) -> None:
    """Remove what nobody has come back for."""
    oldest = time.time() - _KEPT_S
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.stat(follow_symlinks=False).st_mtime < oldest:
                    os.unlink(entry.path)
