"""What the server asks of a store; nothing here assumes a local path."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, Self

from ftpkit.errors import Code, RefusedError
from ftpkit.storage.quota import UNLIMITED, QuotaScope

Progress = Callable[[int, int], None]
"""Called with how many bytes of how many are done, while work takes long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """What stands under a name: kind "file", "dir", "link" or "other".

    ``total`` is in bytes, 0 for what is no file; ``mtime`` in nanoseconds;
    ``mode`` has the permission bits; ``version`` is opaque and changes when
    the file is replaced or written to; ``content_digest`` is what was stored,
    if that is known.
    """

    name: str
    kind: str
    total: int
    mtime: int
    version: str
    mode: int
    content_digest: str | None = None


@dataclass(frozen=True, slots=True)
class BlockRecord:
    """One block that an upload holds, or could take from its basis."""

    offset: int
    length: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadSpec:
    """What a file is to be: its name, its length if known, and what travels with it."""

    name: str
    total: int | None
    mtime: int | None = None
    mode: int | None = None
    overwrite: bool = True


class Reader(Protocol):
    """An open file: it stays the same file whatever happens to its name."""

    info: FileInfo

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill ``view`` from ``offset``; return how many bytes there were (0: the end)."""

    def fileno(self) -> int:
        """Return a descriptor of the same bytes, to send them without a copy."""

    def unchanged(self) -> bool:
        """Whether nobody has written to the file since it was opened."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class Staged(Protocol):
    """A file that arrives in one piece; it appears under its name with ``commit`` alone."""

    def write(self, view: memoryview) -> None:
        """Take the next bytes."""

    def commit(self) -> FileInfo:
        """Publish: digest right, on stable storage, under its name, in one step."""

    def discard(self) -> None:
        """Throw it away, if it was not published; safe to call twice."""


class BlockWriter(Protocol):
    """One block on its way into an upload."""

    def write(self, view: memoryview) -> None:
        """Take the next bytes; refused as ``busy`` once another connection writes this block."""

    def finish(self) -> None:
        """Hold the block if it is whole and matches its digest; else refuse it."""

    def release(self) -> None:
        """Let go of the block; without ``finish`` nothing of it counts."""


class Upload(Protocol):
    """A file that arrives in blocks, in any order, over any connection of its owner."""

    @property
    def id(self) -> str: ...

    @property
    def spec(self) -> UploadSpec: ...

    @property
    def block(self) -> int: ...

    @property
    def held(self) -> int:
        """Bytes of the blocks that have arrived."""

    def renew(self, spec: UploadSpec) -> None:
        """Take over a later wish for the same name and total."""

    def records(self, algorithm: str) -> list[BlockRecord]:
        """Return the blocks that need not be sent again, by offset."""

    def write(self, offset: int, size: int, digest: str) -> BlockWriter:
        """Start a block."""

    def offer_basis(self, reader: Reader, algorithm: str, progress: Progress) -> None:
        """Offer the blocks of ``reader``, which from then on belongs to the upload."""

    def commit(
        self,
        total: int,
        content_digest: str | None,
        blocks_digest: str | None,
        progress: Progress,
    ) -> FileInfo:
        """Publish the whole file, once."""

    def release(self) -> None:
        """Let go: what is held is checkpointed, and the upload can be continued later."""


class Store(Protocol):
    """A tree of files by name; names have been checked. Refusals are RefusedErrors."""

    def stat(self, name: str) -> FileInfo: ...

    def list_files(self, name: str, *, recursive: bool, after: str | None) -> Iterator[FileInfo]:
        """Yield entries in the byte order of their full names."""

    def mkdir(self, name: str) -> None: ...

    def rename(self, name: str, to: str, *, overwrite: bool) -> None: ...

    def delete(self, name: str, *, recursive: bool, progress: Progress) -> None: ...

    def read(self, name: str) -> Reader: ...

    def stage(self, spec: UploadSpec, digest: str | None) -> Staged:
        """Open a place for a file that arrives in one piece and should match ``digest``."""

    def begin(self, spec: UploadSpec, *, owner: str, block: int) -> Upload:
        """Open an upload, or continue the owner's unfinished one of this name, total and block."""

    def offer_basis(self, upload: Upload, algorithm: str, progress: Progress) -> None:
        """Offer the blocks of the file that stands under the upload's name, if there is one."""

    def upload(self, identity: str, *, owner: str) -> Upload:
        """Take hold of an upload that was begun, here or on another connection."""

    def abort(self, identity: str, *, owner: str) -> None:
        """Throw an unfinished upload and all its blocks away."""

    def sweep(self, *, uploads_s: float, publications_s: float) -> None:
        """Remove unfinished uploads that nobody touched for ``uploads_s``, and old answers."""

    def published(self, identity: str, *, owner: str) -> FileInfo | None:
        """Return what ``commit`` of this upload answered, if that was within a day."""

    def close(self) -> None: ...


class QuotaAwareStore(Store, Protocol):
    """A store whose files take what they need from a room, before anything is made of them."""

    def stage(self, spec: UploadSpec, digest: str | None, quota: QuotaScope = UNLIMITED) -> Staged:
        """Take the total, and give it back if the file is not published."""

    def begin(
        self, spec: UploadSpec, *, owner: str, block: int, quota: QuotaScope = UNLIMITED
    ) -> Upload:
        """Take the total, unless an upload is continued; without a total, each block takes."""

    def upload(self, identity: str, *, owner: str, quota: QuotaScope = UNLIMITED) -> Upload: ...

    def abort(self, identity: str, *, owner: str, quota: QuotaScope = UNLIMITED) -> None: ...

    def used_bytes(self, name: str, go_on: Callable[[], bool]) -> int:
        """Return the bytes that are stored under ``name``, or promised to unfinished uploads.

        It looks as long as ``go_on`` is true. OSError says that it could not look everywhere.
        """


def hold_block(upload: Upload, offset: int, data: memoryview, digest: str) -> bool:
    """Hold a whole block that is here already; False says that it does not match its digest."""
    writer = upload.write(offset, len(data), digest)
    try:
        writer.write(data)
        writer.finish()
    except RefusedError as refusal:
        if refusal.code is not Code.DIGEST_MISMATCH:
            raise
        return False
    finally:
        writer.release()
    return True
