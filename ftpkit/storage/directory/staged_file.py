"""One file of the directory store: open for reading, or staged until it is complete."""

import contextlib
import os
import secrets
from collections.abc import Iterable
from typing import Final, Self

from ftpkit.osapi import files as os_files
from ftpkit.protocol.digest import DEFAULT, format_digest, new_hasher, split_digest
from ftpkit.protocol.fields import nearest_time
from ftpkit.storage.api import FileInfo, UploadSpec
from ftpkit.storage.blocks import check_content_digest
from ftpkit.storage.directory.filesystem import DirHandle, FileSystem, digest_xattr
from ftpkit.storage.directory.tree import Tree, file_info
from ftpkit.storage.os_errors import translate_os_errors
from ftpkit.storage.quota import UNLIMITED, QuotaScope

# Writeback of larger pieces starts early; smaller ones are written by the commit alone.
_WRITEBACK_BYTES: Final = 256 * 1024


class FileReader:
    """A file of the directory store, open for reading."""

    def __init__(self, name: str, fd: int) -> None:
        self._fd = fd
        status = os.fstat(fd)
        self.info = file_info(name, status, digest_xattr(fd, status))

    def read_into(self, view: memoryview, offset: int) -> int:
        return os_files.read_at(self._fd, view, offset)

    def fileno(self) -> int:
        return self._fd

    def unchanged(self) -> bool:
        status = os.fstat(self._fd)
        now = status.st_size, nearest_time(status.st_mtime_ns)
        return now == (self.info.total, self.info.mtime)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._fd >= 0:  # may be called twice
            fd, self._fd = self._fd, -1
            os.close(fd)


class StagedFile:
    """A file that arrives in one piece, and is hashed meanwhile.

    ``others`` is the status of the data of unfinished uploads, whose space is taken already.
    """

    def __init__(
        self,
        spec: UploadSpec,
        digest: str | None,
        staging: DirHandle,
        tree: Tree,
        files: FileSystem,
        others: Iterable[os.stat_result],
        quota: QuotaScope = UNLIMITED,
    ) -> None:
        self._spec, self._digest, self._quota = spec, digest, quota
        self._staging, self._tree, self._files = staging, tree, files
        self._algorithm = split_digest(digest)[0] if digest else DEFAULT
        self._hasher = new_hasher(self._algorithm)
        self._part = secrets.token_hex(16)
        self._length = 0
        self._fd = -1
        self._reservation = quota.reserve(spec.name, spec.total or 0)
        try:
            with translate_os_errors(spec.name):
                self._fd = files.create(staging, self._part, 0o666)
                files.preallocate(self._fd, spec.total or 0, others)
        except BaseException:
            self.discard()
            raise

    def write(self, view: memoryview) -> None:
        self._hasher.update(view)
        with translate_os_errors(self._spec.name):
            self._files.write(self._fd, view, self._length)
        if len(view) >= _WRITEBACK_BYTES:
            os_files.start_writeback(self._fd, self._length, len(view))
        self._length += len(view)

    def commit(self) -> FileInfo:
        actual = format_digest(self._algorithm, self._hasher.digest())
        check_content_digest(actual, self._digest)
        spec = self._spec
        with translate_os_errors(spec.name):
            path = os.path.join(self._staging.path, self._part)
            self._files.set_metadata(self._fd, path, spec.mode, spec.mtime, actual)
            self._files.sync(self._fd)
        try:
            info = self._tree.publish(
                self._staging, self._part, self._fd, spec, actual, self._quota
            )
        except BaseException:
            # It may be published all the same; the next count finds out.
            self._reservation.commit()
            self._quota.note_deleted(spec.name)
            raise
        self._reservation.commit()
        self._close()
        return info

    def discard(self) -> None:
        if self._fd >= 0:
            self._close()
            with contextlib.suppress(OSError):
                self._files.unlink(self._staging, self._part)
        self._reservation.cancel()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)
