"""A directory of a store as a store of its own, from which nothing outside can be reached."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ftpkit.protocol.names import check_name
from ftpkit.storage.api import (
    BlockRecord,
    BlockWriter,
    FileInfo,
    Progress,
    Reader,
    Staged,
    Store,
    Upload,
    UploadSpec,
)
from ftpkit.storage.blocks import no_such_upload
from ftpkit.storage.os_errors import NamedRefusalError


class PrefixStore:
    """The directory ``root`` of ``store`` as a store: all names are relative to it.

    It is made by the first upload, or by ``mkdir("")``, and cannot be renamed or deleted from
    within. Readers keep the optional powers that they have; those of ``store`` are not offered,
    for they concern all of it.
    """

    def __init__(self, store: Store, root: str) -> None:
        self._store, self._root = store, _Root(root)

    def stat(self, name: str) -> FileInfo:
        with self._root.relative():
            return self._root.info(self._store.stat(self._root.full(name, root=True)))

    def list_files(self, name: str, *, recursive: bool, after: str | None) -> Iterator[FileInfo]:
        full = self._root.full(name, root=True)
        past = None if after is None else f"{self._root.name}/{after}"
        with self._root.relative():
            for info in self._store.list_files(full, recursive=recursive, after=past):
                yield self._root.info(info)

    def mkdir(self, name: str) -> None:
        with self._root.relative():
            self._store.mkdir(self._root.full(name, root=True))

    def rename(self, name: str, to: str, *, overwrite: bool) -> None:
        with self._root.relative():
            self._store.rename(self._root.full(name), self._root.full(to), overwrite=overwrite)

    def delete(self, name: str, *, recursive: bool, progress: Progress) -> None:
        with self._root.relative():
            self._store.delete(self._root.full(name), recursive=recursive, progress=progress)

    def read(self, name: str) -> Reader:
        with self._root.relative():
            reader = self._store.read(self._root.full(name))
        reader.info = self._root.info(reader.info)
        return reader

    def stage(self, spec: UploadSpec, digest: str | None) -> Staged:
        with self._root.relative():
            return _Staged(self._store.stage(self._root.spec(spec), digest), self._root)

    def begin(self, spec: UploadSpec, *, owner: str, block: int) -> Upload:
        with self._root.relative():
            upload = self._store.begin(self._root.spec(spec), owner=owner, block=block)
        return _Upload(upload, self._root)

    def upload(self, identity: str, *, owner: str) -> Upload:
        """Return an unfinished upload, if its name is below the directory."""
        with self._root.relative():
            upload = self._store.upload(identity, owner=owner)
        if not self._root.holds(upload.spec.name):
            upload.release()
            raise no_such_upload()
        return _Upload(upload, self._root)

    def abort(self, identity: str, *, owner: str) -> None:
        upload = self.upload(identity, owner=owner)
        try:
            with self._root.relative():
                self._store.abort(identity, owner=owner)
        finally:
            upload.release()

    def published(self, identity: str, *, owner: str) -> FileInfo | None:
        with self._root.relative():
            info = self._store.published(identity, owner=owner)
        return self._root.info(info) if info and self._root.holds(info.name) else None

    def close(self) -> None:
        """Close the whole store."""
        self._store.close()


@dataclass(frozen=True, slots=True)
class _Root:
    """Maps names below the directory to names of the whole store, and back."""

    name: str

    def full(self, name: str, *, root: bool = False) -> str:
        # Callers have checked it, but nothing else keeps ".." from leaving the directory.
        return f"{self.name}/{name}" if check_name(name, root=root) else self.name

    def short(self, full: str) -> str:
        return "" if full == self.name else full.removeprefix(f"{self.name}/")

    def holds(self, full: str) -> bool:
        return full.startswith(f"{self.name}/")

    def info(self, info: FileInfo) -> FileInfo:
        return replace(info, name=self.short(info.name))

    def spec(self, spec: UploadSpec) -> UploadSpec:
        return replace(spec, name=self.full(spec.name))

    @contextlib.contextmanager
    def relative(self) -> Iterator[None]:
        """Put relative names into the messages of refusals."""
        try:
            yield
        except NamedRefusalError as refusal:
            raise refusal.renamed(self.short(refusal.name)) from refusal


@dataclass(frozen=True, slots=True)
class _Staged:
    inner: Staged
    root: _Root

    def write(self, view: memoryview) -> None:
        with self.root.relative():
            self.inner.write(view)

    def commit(self) -> FileInfo:
        with self.root.relative():
            return self.root.info(self.inner.commit())

    def discard(self) -> None:
        self.inner.discard()


@dataclass(frozen=True, slots=True)
class _Writer:
    inner: BlockWriter
    root: _Root

    def write(self, view: memoryview) -> None:
        with self.root.relative():
            self.inner.write(view)

    def finish(self) -> None:
        with self.root.relative():
            self.inner.finish()

    def release(self) -> None:
        self.inner.release()


@dataclass(frozen=True, slots=True)
class _Upload:
    """Equal for the same upload, which the server's jobs are keyed by."""

    inner: Upload
    root: _Root

    @property
    def id(self) -> str:
        return self.inner.id

    @property
    def spec(self) -> UploadSpec:
        return replace(self.inner.spec, name=self.root.short(self.inner.spec.name))

    @property
    def block(self) -> int:
        return self.inner.block

    @property
    def held(self) -> int:
        return self.inner.held

    def renew(self, spec: UploadSpec) -> None:
        with self.root.relative():
            self.inner.renew(self.root.spec(spec))

    def records(self, algorithm: str) -> list[BlockRecord]:
        return self.inner.records(algorithm)

    def write(self, offset: int, size: int, digest: str) -> BlockWriter:
        with self.root.relative():
            return _Writer(self.inner.write(offset, size, digest), self.root)

    def offer_basis(self, reader: Reader, algorithm: str, progress: Progress) -> None:
        with self.root.relative():
            self.inner.offer_basis(reader, algorithm, progress)

    def commit(
        self, total: int, content_digest: str | None, blocks_digest: str | None, progress: Progress
    ) -> FileInfo:
        with self.root.relative():
            return self.root.info(self.inner.commit(total, content_digest, blocks_digest, progress))

    def release(self) -> None:
        self.inner.release()
