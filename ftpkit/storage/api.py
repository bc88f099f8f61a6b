"""The interface of a store: a small core, and optional powers as further protocols.

Nothing here assumes a local path. A caller tests for an optional power with ``isinstance``,
in one place, and does without it where the store does not offer it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self, runtime_checkable

from ftpkit.errors import Code, RefusedError
from ftpkit.storage.quota import QuotaScope

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all while an operation runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """What a name refers to: ``kind`` is "file", "dir", "link" or "other".

    ``total`` is in bytes, 0 unless it is a file; ``mtime`` in nanoseconds since 1970; ``mode``
    holds the permission bits; ``version`` is opaque and changes whenever the file is replaced
    or written to; ``content_digest`` is the digest stored with the file, None if unknown.
    ``error`` says why a list is incomplete here; such an entry has the kind "other".
    """

    name: str
    kind: str
    total: int
    mtime: int
    version: str
    mode: int
    content_digest: str | None = None
    error: str | None = None

    def facts(self) -> dict[str, Any]:
        """Return the facts about a file that has no ``error``, by their names."""
        facts = asdict(self)
        del facts["error"]
        return facts


@dataclass(frozen=True, slots=True)
class BlockRecord:
    """A block that an upload holds, or can copy from its basis; offset and length in bytes."""

    offset: int
    length: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadSpec:
    """What an upload is to become: name, length in bytes (None: unknown) and metadata."""

    name: str
    total: int | None
    mtime: int | None = None
    mode: int | None = None
    overwrite: bool = True


class Reader(Protocol):
    """An open file; it stays the same file when its name is replaced or deleted."""

    info: FileInfo

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill ``view`` from ``offset``; return the bytes read, fewer only at the end of file."""

    def unchanged(self) -> bool:
        """Whether the file has not been written to since it was opened."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


@runtime_checkable
class DescriptorReader(Protocol):
    """A ``Reader`` whose bytes can be sent from a descriptor, without a copy."""

    def fileno(self) -> int:
        """Return a file descriptor of the same bytes."""


class Staged(Protocol):
    """A file that arrives in one piece; only ``commit`` makes it visible under its name."""

    def write(self, view: memoryview) -> None:
        """Append the next bytes."""

    def commit(self) -> FileInfo:
        """Publish atomically and durably; RefusedError ``digest-mismatch`` if damaged."""

    def discard(self) -> None:
        """Delete the file unless it was published; may be called twice."""


class BlockWriter(Protocol):
    """Receives one block of an upload."""

    def write(self, view: memoryview) -> None:
        """Append the next bytes; RefusedError ``busy`` once a newer writer has this block."""

    def finish(self) -> None:
        """Hold the block, or raise RefusedError ``digest-mismatch``."""

    def release(self) -> None:
        """End the write; without ``finish`` the block is not held."""


class Upload(Protocol):
    """A file that arrives in blocks, in any order, over any connections of its owner."""

    @property
    def id(self) -> str: ...

    @property
    def spec(self) -> UploadSpec: ...

    @property
    def block(self) -> int:
        """The block size in bytes."""

    @property
    def held(self) -> int:
        """The bytes of the blocks that are held."""

    def renew(self, spec: UploadSpec) -> None:
        """Replace the spec by a later one with the same name and total."""

    def records(self, algorithm: str) -> list[BlockRecord]:
        """Return the blocks that need not be sent, by offset."""

    def write(self, offset: int, size: int, digest: str) -> BlockWriter:
        """Start a block; it takes the block over from an unfinished older writer."""

    def offer_basis(self, reader: Reader, algorithm: str, progress: Progress) -> None:
        """Offer the blocks of ``reader``; on success the upload owns and closes it."""

    def commit(
        self, total: int, content_digest: str | None, blocks_digest: str | None, progress: Progress
    ) -> FileInfo:
        """Publish atomically and durably; a repeated call returns the first result.

        RefusedError: ``incomplete``, ``digest-mismatch``, or ``exists`` without ``overwrite``.
        """

    def release(self) -> None:
        """Checkpoint the held blocks and let go; the upload can be continued later."""


class Store(Protocol):
    """A tree of files by name. Names have been checked; every failure is a RefusedError."""

    def stat(self, name: str) -> FileInfo: ...

    def list_files(self, name: str, *, recursive: bool, after: str | None) -> Iterator[FileInfo]:
        """Yield what is in a directory, in byte order of full names, beginning after ``after``.

        What cannot be listed is an entry with an ``error``: a name that no request can contain,
        in escaped form, or a directory that cannot be read, its name with a ``/`` behind it.
        """

    def mkdir(self, name: str) -> None:
        """Make a directory and its parents; an existing directory is no error."""

    def rename(self, name: str, to: str, *, overwrite: bool) -> None:
        """Rename a file or directory, and make the parents of ``to``."""

    def delete(self, name: str, *, recursive: bool, progress: Progress) -> None: ...

    def read(self, name: str) -> Reader: ...

    def stage(self, spec: UploadSpec, digest: str | None) -> Staged:
        """Start a file that arrives in one piece and must match ``digest``, if given."""

    def begin(self, spec: UploadSpec, *, owner: str, block: int) -> Upload:
        """Start an upload, or continue the owner's unfinished one of this name, total and block."""

    def upload(self, identity: str, *, owner: str) -> Upload:
        """Return an unfinished upload, begun on this or another connection of its owner."""

    def abort(self, identity: str, *, owner: str) -> None:
        """Delete an unfinished upload and its blocks."""

    def published(self, identity: str, *, owner: str) -> FileInfo | None:
        """Return what ``commit`` of this upload returned; None if it is unknown or expired."""

    def close(self) -> None: ...


@runtime_checkable
class SweepingStore(Protocol):
    """A ``Store`` that keeps unfinished uploads and commit results until they are swept."""

    def sweep(self, *, uploads_s: float, publications_s: float) -> None:
        """Delete uploads idle for ``uploads_s`` seconds and results of that age."""


@runtime_checkable
class QuotaAwareStore(Protocol):
    """A ``Store`` that can reserve what it stores, and count what is stored."""

    def with_quota(self, quota: QuotaScope) -> Store:
        """Return the same store, with every change reserved from and reported to ``quota``."""

    def used_bytes(self, name: str, should_continue: Callable[[], bool]) -> int:
        """Return the bytes stored under ``name``, or declared by unfinished uploads.

        The count ends early once ``should_continue`` returns False. OSError: a directory was moved
        during the count.
        """


class UploadLocks(Protocol):
    """Decides which process of a server has which upload open."""

    def acquire(self, key: str) -> None:
        """Lock an upload for this process; WrongWorkerError names the process that has it."""

    def release(self, key: str) -> None:
        """Unlock an upload."""


OpenStore = Callable[[Sequence[int], UploadLocks], Store]
"""Opens a store that another process has open, with descriptors of its own."""


@dataclass(frozen=True, slots=True)
class StoreLease:
    """What another process needs to open the same store.

    It calls ``open`` (which can be pickled) with its own copies of ``descriptors``, which
    then belong to the store, and with the locks that it shares with the other processes.
    """

    open: OpenStore
    descriptors: tuple[int, ...] = ()


@runtime_checkable
class ShareableStore(Protocol):
    """A ``Store`` that several processes of one server can have open at a time.

    The first process opens it, sweeps it and outlives the others.
    """

    def use_locks(self, locks: UploadLocks) -> None:
        """Lock uploads in ``locks`` from now on; no upload may be open."""

    def lease(self, number: int) -> StoreLease:
        """Return the lease for the process ``number``."""

    def reclaim(self, number: int) -> None:
        """Delete what the process ``number``, which has ended, left in staging."""


def offer_basis(store: Store, upload: Upload, algorithm: str, progress: Progress) -> None:
    """Offer ``upload`` the blocks of the file that has its name now, if there is one."""
    try:
        reader = store.read(upload.spec.name)
    except RefusedError as error:
        if error.code is Code.NOT_FOUND:
            return
        raise
    try:
        upload.offer_basis(reader, algorithm, progress)
    except BaseException:
        reader.__exit__()
        raise


def hold_block(upload: Upload, offset: int, data: memoryview, digest: str) -> bool:
    """Write a whole block from memory; False: it does not match ``digest``."""
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
