"""A store in memory, for tests and embedders: without a disk, and without optional powers."""

import errno
import os
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Final, Self

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.digest import DEFAULT, digest_of, new_hasher, split_digest
from ftpkit.protocol.names import is_in
from ftpkit.storage.api import BlockRecord, FileInfo, Progress, Reader, UploadSpec
from ftpkit.storage.blocks import (
    Basis,
    BlockFileWriter,
    BlockGrid,
    being_committed,
    block_taken_over,
    check_blocks_digest,
    check_content_digest,
    no_such_upload,
)
from ftpkit.storage.os_errors import translate_os_errors

_CAPACITY: Final = 1024**3


class MemoryFile:
    """A file or directory of a ``MemoryStore``, and its reader; its bytes never change."""

    def __init__(self, info: FileInfo, data: bytes = b"") -> None:
        self.info, self.data = info, data

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


class MemoryStore:
    """Keeps files of ``capacity`` bytes in all; thread-safe.

    ``close`` deletes nothing: the store can be given to one server after another.
    """

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._capacity = capacity
        self.lock = threading.RLock()
        self._versions = count(1)
        self._files = {"": self._new(UploadSpec(name="", total=0, mode=0o755), "dir")}
        self._uploads: dict[tuple[str, str, int | None, int], MemoryUpload] = {}
        self._published: dict[tuple[str, str], FileInfo] = {}

    def stat(self, name: str) -> FileInfo:
        with self.lock, translate_os_errors(name):
            return self._get(name).info

    def list_files(self, name: str, *, recursive: bool, after: str | None) -> Iterator[FileInfo]:
        with self.lock, translate_os_errors(name):
            if self._get(name).info.kind != "dir":
                raise _error(errno.ENOTDIR)
            prefix, past = f"{name}/" if name else "", (after or "").encode()
            names = sorted(each.encode() for each in self._below(name) if each.encode() > past)
        for each in map(bytes.decode, names):
            file = self._files.get(each)
            if file and (recursive or "/" not in each[len(prefix) :]):
                yield replace(file.info, content_digest=None)

    def mkdir(self, name: str) -> None:
        with self.lock, translate_os_errors(name):
            self._make(name)

    def rename(self, name: str, to: str, *, overwrite: bool) -> None:
        with self.lock, translate_os_errors(name):
            file = self._get(name)
            if name != to and is_in(name, to):
                raise RefusedError(Code.BAD_REQUEST, "a directory cannot be moved into itself")
            with translate_os_errors(to):
                if name == to and overwrite:
                    return
                self._check_target(to, file.info.kind, overwrite=overwrite)
                self._make(os.path.dirname(to))
            for each in [name, *self._below(name)]:
                new = f"{to}{each[len(name) :]}"
                moved = self._files.pop(each)
                self._files[new] = MemoryFile(replace(moved.info, name=new), moved.data)

    def delete(self, name: str, *, recursive: bool, progress: Progress) -> None:
        with self.lock, translate_os_errors(name):
            self._get(name)
            names = [name, *self._below(name)]
            if len(names) > 1 and not recursive:
                raise _error(errno.ENOTEMPTY)
            for done, each in enumerate(names, 1):
                del self._files[each]
                progress(done, len(names))

    def read(self, name: str) -> MemoryFile:
        with self.lock, translate_os_errors(name):
            file = self._get(name)
            if file.info.kind == "dir":
                raise _error(errno.EISDIR)
            return MemoryFile(file.info, file.data)

    def stage(self, spec: UploadSpec, digest: str | None) -> "MemoryStaged":
        self._check_spec(spec)
        return MemoryStaged(self, spec, digest)

    def begin(self, spec: UploadSpec, *, owner: str, block: int) -> "MemoryUpload":
        with self.lock:
            self._check_spec(spec)
            key = owner, spec.name, spec.total, block
            upload = self._uploads.get(key) or MemoryUpload(self, spec, owner, block)
            upload.users += 1
            upload.renew(spec)
            self._uploads[key] = upload
            return upload

    def upload(self, identity: str, *, owner: str) -> "MemoryUpload":
        with self.lock:
            for upload in self._uploads.values():
                if (upload.id, upload.owner) == (identity, owner):
                    upload.users += 1
                    return upload
        raise no_such_upload()

    def abort(self, identity: str, *, owner: str) -> None:
        with self.lock:
            upload = self.upload(identity, owner=owner)
            upload.end()
            self.forget(upload)

    def published(self, identity: str, *, owner: str) -> FileInfo | None:
        return self._published.get((identity, owner))

    def close(self) -> None:
        pass

    def publish(self, spec: UploadSpec, data: bytes, content_digest: str) -> FileInfo:
        """Store a whole file under its name."""
        with self.lock, translate_os_errors(spec.name):
            self._check_target(spec.name, "file", overwrite=spec.overwrite)
            if sum(len(file.data) for file in self._files.values()) + len(data) > self._capacity:
                raise _error(errno.ENOSPC)
            self._make(os.path.dirname(spec.name))
            file = self._new(replace(spec, total=len(data)), "file", data, content_digest)
            self._files[spec.name] = file
            return file.info

    def forget(self, upload: "MemoryUpload", publication: FileInfo | None = None) -> None:
        """Remove an upload that was aborted, or published as ``publication``."""
        with self.lock:
            self._uploads = {key: each for key, each in self._uploads.items() if each is not upload}
            if publication is not None:
                self._published[upload.id, upload.owner] = publication

    # The methods below are called with the lock held.

    def _new(
        self, spec: UploadSpec, kind: str, data: bytes = b"", content_digest: str | None = None
    ) -> MemoryFile:
        info = FileInfo(
            name=spec.name,
            kind=kind,
            total=len(data),
            mtime=time.time_ns() if spec.mtime is None else spec.mtime,
            version=f"{next(self._versions):x}",
            mode=0o644 if spec.mode is None else spec.mode & 0o777 | 0o400,
            content_digest=content_digest,
        )
        return MemoryFile(info, data)

    def _find(self, name: str) -> MemoryFile | None:
        above = name
        while above not in self._files:
            above = os.path.dirname(above)
        if above != name and self._files[above].info.kind != "dir":
            raise _error(errno.ENOTDIR)
        return self._files.get(name)

    def _get(self, name: str) -> MemoryFile:
        file = self._find(name)
        if file is None:
            raise _error(errno.ENOENT)
        return file

    def _below(self, name: str) -> list[str]:
        return [each for each in self._files if each != name and is_in(name, each)]

    def _make(self, name: str) -> None:
        file = self._find(name)
        if file is not None and file.info.kind != "dir":
            raise _error(errno.ENOTDIR)
        while name not in self._files:
            self._files[name] = self._new(UploadSpec(name=name, total=0, mode=0o755), "dir")
            name = os.path.dirname(name)

    def _check_target(self, name: str, kind: str, *, overwrite: bool) -> None:
        """Raise OSError unless a file or directory may take this name."""
        target = self._find(name)
        if target is None:
            return
        if not overwrite:
            raise _error(errno.EEXIST)
        if target.info.kind != kind:
            raise _error(errno.EISDIR if kind == "file" else errno.ENOTDIR)
        if self._below(name):
            raise _error(errno.ENOTEMPTY)

    def _check_spec(self, spec: UploadSpec) -> None:
        with self.lock, translate_os_errors(spec.name):
            self._check_target(spec.name, "file", overwrite=spec.overwrite)
            if (spec.total or 0) > self._capacity:
                raise _error(errno.ENOSPC)


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
        return self._store.publish(self._spec, bytes(self._data), actual)

    def discard(self) -> None:
        pass


class MemoryUpload:
    """An unfinished upload in blocks."""

    def __init__(self, store: MemoryStore, spec: UploadSpec, owner: str, block: int) -> None:
        self.id, self.owner, self.block = secrets.token_hex(16), owner, block
        self.spec, self.users = spec, 0
        self._store, self._lock = store, store.lock
        self._grid = BlockGrid(block, spec.total)
        self._blocks: dict[int, tuple[BlockRecord, bytes | memoryview]] = {}
        self._writers: dict[int, tuple[BlockFileWriter, bytearray]] = {}
        self._basis: Basis | None = None
        self._publication: FileInfo | None = None
        self._open, self._committing = True, False

    @property
    def held(self) -> int:
        with self._lock:
            return sum(record.length for record, _ in self._blocks.values())

    def renew(self, spec: UploadSpec) -> None:
        self.spec = spec

    def records(self, algorithm: str) -> list[BlockRecord]:
        with self._lock:
            known = {**self._offered(), **{at: held[0] for at, held in self._blocks.items()}}
        return [known[at] for at in sorted(known) if known[at].digest.startswith(f"{algorithm}:")]

    def offer_basis(self, reader: Reader, algorithm: str, progress: Progress) -> None:
        self._basis = Basis(reader, self._grid, algorithm, progress)

    def write(self, offset: int, size: int, digest: str) -> BlockFileWriter:
        self._grid.check(offset, size)
        writer = BlockFileWriter(self, BlockRecord(offset, size, digest))
        with self._lock:
            self._check_open()
            if self._committing:
                raise being_committed()
            if offset in self._writers:
                self._writers[offset][0].revoke()
            self._writers[offset] = writer, bytearray()
            held = self._blocks.get(offset)
            writer.keep = held is None or held[0].digest != digest
            if writer.keep:
                self._blocks.pop(offset, None)
            return writer

    def put(self, view: memoryview, offset: int) -> None:
        # Without the lock: `write` revokes a writer with it held, and waits for this to end.
        self._writers[offset - offset % self.block][1].extend(view)

    def hold(self, writer: BlockFileWriter) -> None:
        with self._lock:
            self._check_open()
            offset = writer.block.offset
            if offset not in self._writers or self._writers[offset][0] is not writer:
                raise block_taken_over()
            _, data = self._writers.pop(offset)
            if writer.keep:
                self._blocks[offset] = writer.block, bytes(data)

    def leave(self, writer: BlockFileWriter) -> None:
        with self._lock:
            offset = writer.block.offset
            if offset in self._writers and self._writers[offset][0] is writer:
                del self._writers[offset]

    def commit(
        self,
        total: int,
        content_digest: str | None,
        blocks_digest: str | None,
        progress: Progress,
    ) -> FileInfo:
        with self._lock:
            if self._publication is None:
                self._check_open()
                self._committing = True
                try:
                    data = self._whole(total, blocks_digest)
                    algorithm = split_digest(content_digest)[0] if content_digest else DEFAULT
                    actual = digest_of(data, algorithm)
                    progress(total, total)
                    check_content_digest(actual, content_digest)
                    self._publication = self._store.publish(self.spec, data, actual)
                finally:
                    self._committing = False
                self.end()
                self._store.forget(self, self._publication)
            return self._publication

    def release(self) -> None:
        with self._lock:
            self.users -= 1
            if not self.users:
                self._basis = None

    def end(self) -> None:
        """Refuse everything from now on."""
        with self._lock:
            self._open = False
            for writer, _ in self._writers.values():
                writer.revoke()

    def _offered(self) -> dict[int, BlockRecord]:
        return self._basis.blocks if self._basis else {}

    def _whole(self, total: int, blocks_digest: str | None) -> bytes:
        """Return the content of the file, with what is missing copied from the basis."""
        missing = self._grid.missing(
            total,
            {at: record.length for at, (record, _) in self._blocks.items()},
            {at: record.length for at, record in self._offered().items()},
        )
        if self._basis:
            for offset in missing:
                self._blocks[offset] = self._basis.blocks[offset], self._basis.read(offset)
        blocks = [self._blocks[offset] for offset in sorted(self._blocks)]
        check_blocks_digest((record.digest for record, _ in blocks), blocks_digest)
        return b"".join(piece for _, piece in blocks)

    def _check_open(self) -> None:
        if not self._open:
            raise no_such_upload()


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
