"""A directory of a store as a store of its own, which knows nothing of what lies around it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ftpkit.errors import Code, RefusedError
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
from ftpkit.storage.os_errors import NamedRefusalError


class PrefixStore:
    """The directory ``root`` of ``store``: names are relative to it, and so are all that is told.

    It need not be there: what is put makes it, and so does ``mkdir("")``. It cannot be moved
    or deleted from within. ``close`` closes the whole store.
    """

    def __init__(self, store: Store, root: str) -> None:
        self._store, self._root = store, _Root(root)

    def stat(self, name: str) -> FileInfo:
        """Describe a file or directory."""
        with self._root.relative():
            return self._root.info(self._store.stat(self._root.full(name, root=True)))

    def list_files(self, name: str, *, recursive: bool, after: str | None) -> Iterator[FileInfo]:
        """Yield what is in a directory, in byte order of full names, behind ``after``."""
        full = self._root.full(name, root=True)
        behind = None if after is None else f"{self._root.name}/{after}"
        with self._root.relative():
            for info in self._store.list_files(full, recursive=recursive, after=behind):
                yield self._root.info(info)

    def mkdir(self, name: str) -> None:
        """Make a directory and its parents."""
        with self._root.relative():
            self._store.mkdir(self._root.full(name, root=True))

    def rename(self, name: str, to: str, *, overwrite: bool) -> None:
        """Move a file or directory."""
        with self._root.relative():
            self._store.rename(self._root.full(name), self._root.full(to), overwrite=overwrite)

    def delete(self, name: str, *, recursive: bool, progress: Progress) -> None:
        """Delete a file or directory."""
        with self._root.relative():
            self._store.delete(self._root.full(name), recursive=recursive, progress=progress)

    def read(self, name: str) -> Reader:
        """Open a file."""
        with self._root.relative():
            reader = self._store.read(self._root.full(name))
        reader.info = self._root.info(reader.info)
        return reader

    def stage(self, spec: UploadSpec, digest: str | None) -> Staged:
        """Open a place for a file that arrives in one piece."""
        with self._root.relative():
            return _Staged(self._store.stage(self._root.spec(spec), digest), self._root)

    def begin(self, spec: UploadSpec, *, owner: str, block: int) -> Upload:
        """Open an upload, or continue the owner's unfinished one of this name, total, block."""
        with self._root.relative():
            upload = self._store.begin(self._root.spec(spec), owner=owner, block=block)
        return _Upload(upload, self._root)

    def upload(self, identity: str, *, owner: str) -> Upload:
        """Take hold of an upload that was begun; the owner's others are not found here."""
        with self._root.relative():
            upload = self._store.upload(identity, owner=owner)
        if not self._root.holds(upload.spec.name):
            upload.release()
            raise RefusedError(Code.NOT_FOUND, "there is no such unfinished upload")
        return _Upload(upload, self._root)

    def abort(self, identity: str, *, owner: str) -> None:
        """Throw an unfinished upload away."""
        upload = self.upload(identity, owner=owner)
        try:
            with self._root.relative():
                self._store.abort(identity, owner=owner)
        finally:
            upload.release()

    def published(self, identity: str, *, owner: str) -> FileInfo | None:
        """Return what the first ``commit`` of this upload answered."""
        info = self._store.published(identity, owner=owner)
        if info is None or not self._root.holds(info.name):
            return None
        return self._root.info(info)

    def close(self) -> None:
        """Close the store."""
        self._store.close()


@dataclass(frozen=True, slots=True)
class _Root:
    """The way between names in here and those of the whole store."""

    name: str

    def full(self, name: str, *, root: bool = False) -> str:
        # Whoever calls has checked it, but this is what the jail is made of.
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
        """Let refusals speak of names in here."""
        try:
            yield
        except NamedRefusalError as refusal:
            raise refusal.of(self.short(refusal.name)) from refusal


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
    """Equal to every other hold on the same upload: work for it is known by that."""

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
        self,
        total: int,
        content_digest: str | None,
        blocks_digest: str | None,
        progress: Progress,
    ) -> FileInfo:
        with self.root.relative():
            return self.root.info(self.inner.commit(total, content_digest, blocks_digest, progress))

    def release(self) -> None:
        self.inner.release()
