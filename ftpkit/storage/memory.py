"""A store in memory, for tests and embedders; storage/api.py documents its methods."""

import errno
import os
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Final, Self

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.digest import DEFAULT, digest_of, new_hasher, split_digest
from ftpkit.protocol.names import is_in
from ftpkit.storage.api import FileInfo, Progress, UploadSpec
from ftpkit.storage.blocks import check_content_digest, no_such_upload
from ftpkit.storage.os_errors import translate_os_errors
from ftpkit.storage.upload import Staging, UnfinishedUpload

_CAPACITY: Final = 1024**3


@dataclass(slots=True)
class MemoryFile:
    """A file or directory of a ``MemoryStore``, and its reader; its bytes never change."""

    info: FileInfo
    data: bytes = b""

    def read_into(self, view: memoryview, offset: int) -> int:
        piece = self.data[offset : offset + len(view)]
        view[: len(piece)] = piece
        return len(piece)

    def unchanged(self) -> bool:
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


class MemoryBlocks(Staging):
    """The bytes of an unfinished upload, by the offset of their block."""

    def __init__(self, owner: str, block: int) -> None:
        self.owner, self._block = owner, block
        self._blocks: dict[int, bytearray] = {}
        self.whole = b""

    def write(self, view: memoryview, offset: int) -> None:
        at = offset % self._block
        self._blocks.setdefault(offset - at, bytearray())[at : at + len(view)] = view

    def read_into(self, view: memoryview, offset: int) -> int:
        at = offset % self._block
        piece = self._blocks[offset - at][at : at + len(view)]
        view[: len(piece)] = piece
        return len(piece)

    def complete(self, total: int, spec: UploadSpec, content_digest: str) -> None:
        blocks = (self._blocks[at][: total - at] for at in range(0, total, self._block))
        self.whole = b"".join(blocks)

    def append(self, record: bytes, *, unsafe: int = 0, sync: bool = False) -> None:
        pass

    def checkpoint(self) -> None:
        pass

    def close(self) -> None:
        pass


MemoryUpload = UnfinishedUpload[MemoryBlocks]


class MemoryStore:
    """Keeps files of ``capacity`` bytes in all; thread-safe.

    ``close`` deletes nothing: the store can be given to one server after another.
    """

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._capacity, self._versions = capacity, count(1)
        # A commit takes it at its end: nothing that waits for a commit is called with it held.
        self._lock = threading.RLock()
        self._files: dict[str, MemoryFile] = {}
        self._put(UploadSpec(name="", total=0, mode=0o755), "dir")
        self._uploads: dict[tuple[str, str, int | None, int], MemoryUpload] = {}
        self._published: dict[tuple[str, str], FileInfo] = {}

    def stat(self, name: str) -> FileInfo:
        with self._lock, translate_os_errors(name):
            return self._get(name).info

    def list_files(self, name: str, *, recursive: bool, after: str | None) -> Iterator[FileInfo]:
        with self._lock, translate_os_errors(name):
            self._get(name, "dir")
            names = sorted(self._below(name), key=str.encode)
        start, past = len(name) + 1 if name else 0, (after or "").encode()
        for each in names:
            file = self._files.get(each)
            if file and each.encode() > past and (recursive or "/" not in each[start:]):
                yield replace(file.info, content_digest=None)

    def mkdir(self, name: str) -> None:
        with self._lock, translate_os_errors(name):
            self._make(name)

    def rename(self, name: str, to: str, *, overwrite: bool) -> None:
        with self._lock, translate_os_errors(name):
            kind = self._get(name).info.kind
            if name != to and is_in(name, to):
                raise RefusedError(Code.BAD_REQUEST, "a directory cannot be moved into itself")
            if name == to and overwrite:
                return
            with translate_os_errors(to):
                self._check_target(to, kind, overwrite=overwrite)
                self._make(os.path.dirname(to))
            for each in [name, *self._below(name)]:
                new, moved = f"{to}{each[len(name) :]}", self._files.pop(each)
                self._files[new] = MemoryFile(replace(moved.info, name=new), moved.data)

    def delete(self, name: str, *, recursive: bool, progress: Progress) -> None:
        with self._lock, translate_os_errors(name):
            self._get(name)
            names = [name, *self._below(name)]
            if len(names) > 1 and not recursive:
                raise _error(errno.ENOTEMPTY)
            for done, each in enumerate(names, 1):
                del self._files[each]
                progress(done, len(names))

    def read(self, name: str) -> MemoryFile:
        with self._lock, translate_os_errors(name):
            return replace(self._get(name, "file"))

    def stage(self, spec: UploadSpec, digest: str | None) -> "MemoryStaged":
        self._check(spec, spec.total or 0)
        return MemoryStaged(self, spec, digest)

    def begin(self, spec: UploadSpec, *, owner: str, block: int) -> MemoryUpload:
        self._check(spec, spec.total or 0)
        key = owner, spec.name, spec.total, block
        with self._lock:
            if (upload := self._uploads.get(key)) is None:
                identity, staged = secrets.token_hex(16), MemoryBlocks(owner, block)
                upload = MemoryUpload(identity, spec, block, staged, self._publish, self._close)
                self._uploads[key] = upload
            upload.users += 1
            upload.renew(spec)
            return upload

    def upload(self, identity: str, *, owner: str) -> MemoryUpload:
        with self._lock:
            for upload in self._uploads.values():
                if (upload.id, upload.staged.owner) == (identity, owner):
                    upload.users += 1
                    return upload
        raise no_such_upload()

    def abort(self, identity: str, *, owner: str) -> None:
        upload = self.upload(identity, owner=owner)
        self._forget(upload)
        upload.abort()

    def published(self, identity: str, *, owner: str) -> FileInfo | None:
        return self._published.get((identity, owner))

    def close(self) -> None:
        pass

    def store(self, spec: UploadSpec, data: bytes, content_digest: str) -> FileInfo:
        with self._lock, translate_os_errors(spec.name):
            self._check(spec, len(data))
            self._make(os.path.dirname(spec.name))
            return self._put(spec, "file", data, content_digest)

    def _publish(self, upload: MemoryUpload, content_digest: str) -> FileInfo:
        info = self.store(upload.spec, upload.staged.whole, content_digest)
        self._published[upload.id, upload.staged.owner] = info
        self._forget(upload)
        return info

    def _forget(self, upload: MemoryUpload) -> None:
        with self._lock:
            self._uploads = {key: each for key, each in self._uploads.items() if each is not upload}

    def _close(self, upload: MemoryUpload) -> None:
        with self._lock:
            upload.users -= 1
            if not upload.users:
                upload.drop_basis()

    def _check(self, spec: UploadSpec, size: int) -> None:
        """Raise what storing ``size`` bytes under this name would raise."""
        with self._lock, translate_os_errors(spec.name):
            self._check_target(spec.name, "file", overwrite=spec.overwrite)
            if sum(len(file.data) for file in self._files.values()) + size > self._capacity:
                raise _error(errno.ENOSPC)

    # The methods below are called with the lock held, and raise OSError.

    def _put(
        self, spec: UploadSpec, kind: str, data: bytes = b"", content_digest: str | None = None
    ) -> FileInfo:
        info = FileInfo(
            name=spec.name,
            kind=kind,
            total=len(data),
            mtime=time.time_ns() if spec.mtime is None else spec.mtime,
            version=f"{next(self._versions):x}",
            mode=0o644 if spec.mode is None else spec.mode & 0o777 | 0o400,
            content_digest=content_digest,
        )
        self._files[spec.name] = MemoryFile(info, data)
        return info

    def _get(self, name: str, kind: str | None = None) -> MemoryFile:
        """Return what has this name and is of this kind."""
        if not self._has(name):
            raise _error(errno.ENOENT)
        file = self._files[name]
        if kind not in (None, file.info.kind):
            raise _error(errno.ENOTDIR if kind == "dir" else errno.EISDIR)
        return file

    def _has(self, name: str) -> bool:
        above = name
        while above not in self._files:
            above = os.path.dirname(above)
        if above != name:
            self._get(above, "dir")
        return above == name

    def _below(self, name: str) -> list[str]:
        return [each for each in self._files if each != name and is_in(name, each)]

    def _make(self, name: str) -> None:
        if self._has(name):
            self._get(name, "dir")
        while name not in self._files:
            self._put(UploadSpec(name=name, total=0, mode=0o755), "dir")
            name = os.path.dirname(name)

    def _check_target(self, name: str, kind: str, *, overwrite: bool) -> None:
        """Raise OSError unless a file or directory may take this name."""
        if not self._has(name):
            return
        if not overwrite:
            raise _error(errno.EEXIST)
        self._get(name, kind)
        if self._below(name):
            raise _error(errno.ENOTEMPTY)


class MemoryStaged:
    """A file that arrives in one piece."""

    def __init__(self, store: MemoryStore, spec: UploadSpec, digest: str | None) -> None:
        self._store, self._spec, self._digest = store, spec, digest
        self._algorithm = split_digest(digest)[0] if digest else DEFAULT
        new_hasher(self._algorithm)  # an unknown algorithm is refused here
        self._data = bytearray()

    def write(self, view: memoryview) -> None:
        self._data += view

    def commit(self) -> FileInfo:
        actual = digest_of(self._data, self._algorithm)
        check_content_digest(actual, self._digest)
        return self._store.store(self._spec, bytes(self._data), actual)

    def discard(self) -> None:
        pass


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
