"""An unfinished upload in blocks, as all stores have it: writers, held blocks, basis, commit."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any, Final, Generic, Protocol, TypeVar

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.digest import Hasher, format_digest, new_hasher, split_digest
from ftpkit.storage import journal
from ftpkit.storage.api import BlockRecord, FileInfo, Progress, Reader, UploadSpec
from ftpkit.storage.blocks import Basis, BlockGrid, check_blocks_digest, no_such_upload
from ftpkit.storage.content_digest import ContentDigest
from ftpkit.storage.os_errors import translate_os_errors
from ftpkit.storage.quota import NO_RESERVATION, UNLIMITED, QuotaScope, Reservation

# Each `begin` with another spec adds a record: this limits the journal of an upload.
_MAX_SPEC_BYTES: Final = 1024 * 1024
_BLOCK_RECORD_BYTES: Final = 128


class Staging(Protocol):
    """Where a store keeps the bytes of an unfinished upload, and its journal, if it has one."""

    journal_length: int = 0

    def write(self, view: memoryview, offset: int) -> None: ...

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill ``view`` from ``offset``; return the bytes read."""

    def append(self, record: bytes, *, unsafe: int = 0, sync: bool = False) -> None:
        """Append to the journal, durably if ``sync``; a checkpoint covers ``unsafe`` bytes more."""

    def start_writeback(self, block: BlockRecord) -> bool:
        """Start to make a block durable; return whether a checkpoint is due."""
        return False

    def checkpoint(self) -> None:
        """Make all blocks durable that the journal has."""

    def complete(self, total: int, spec: UploadSpec, content_digest: str) -> None:
        """Make the whole file durable, and the record that it may be published."""

    def has_data(self) -> bool:
        """Whether the bytes are still here, and not under the name of the upload."""
        return True

    def close(self) -> None: ...


S = TypeVar("S", bound=Staging)
Publish = Callable[["UnfinishedUpload[S]", str], FileInfo]
OnRelease = Callable[["UnfinishedUpload[S]"], None]


class UnfinishedUpload(Generic[S]):
    """What is between ``begin`` and ``commit``; api.py documents the methods of ``Upload``.

    Several connections may write blocks at once. Each block has one writer: a newer writer
    takes it over, because the connection of the older one may have died unnoticed. ``publish``
    is called with the digest of the complete file, ``on_release`` by each ``release``.
    """

    def __init__(
        self,
        identity: str,
        spec: UploadSpec,
        block: int,
        staged: S,
        publish: "Publish[S]",
        on_release: "OnRelease[S]",
        blocks: Iterable[BlockRecord] = (),
    ) -> None:
        self.id, self.spec, self.block, self.staged = identity, spec, block, staged
        self.users = 0
        """How many have it open; counted by the store."""
        self.quota: QuotaScope = UNLIMITED
        """What blocks are reserved from while the total is unknown."""
        self._grid = BlockGrid(block, spec.total)
        self._publish, self._on_release = publish, on_release
        self._lock = threading.Lock()
        # Held during a checkpoint, a commit and the end: it comes before the other lock.
        self._ending = threading.Lock()
        self._writers: dict[int, BlockFileWriter] = {}
        self._blocks = {held.offset: held for held in blocks}
        self._basis: Basis | None = None
        self._publication: FileInfo | None = None
        self._open = True
        self._committing = False
        self._content = ContentDigest(staged.read_into, self._lock, self._blocks, self._forget)

    @property
    def held(self) -> int:
        with self._lock:
            return sum(held.length for held in self._blocks.values())

    def records(self, algorithm: str) -> list[BlockRecord]:
        with self._lock:
            known = sorted({**self._offered(), **self._blocks}.items())
        return [record for _, record in known if split_digest(record.digest)[0] == algorithm]

    def renew(self, spec: UploadSpec) -> None:
        with self._lock:
            self._check_open()
            if spec != self.spec:
                limit = _MAX_SPEC_BYTES + _BLOCK_RECORD_BYTES * len(self._blocks)
                if self.staged.journal_length > limit:
                    raise RefusedError(
                        Code.BUSY,
                        "this upload was continued with too many changes of its metadata:"
                        " abort it first",
                    )
                self.spec = spec
                self.staged.append(spec_record(self.id, spec, self.block))

    def offer_basis(self, reader: Reader, algorithm: str, progress: Progress) -> None:
        basis = Basis(reader, self._grid, algorithm, progress)
        with self._lock:
            self._check_open()
            self._drop_basis()
            self._basis = basis

    def drop_basis(self) -> None:
        """Close the basis; its blocks are no longer offered."""
        with self._lock:
            self._drop_basis()

    def write(self, offset: int, size: int, digest: str) -> "BlockFileWriter":
        self._grid.check(offset, size)
        writer = BlockFileWriter(self, BlockRecord(offset, size, digest))
        reserved = self.spec.total is not None
        try:
            while True:
                with self._lock:
                    writer.keep = self._take_over(writer.block)
                    if reserved or not writer.keep:
                        writer.content_hasher = self._content.running.fork(offset)
                        self._writers[offset] = writer
                        return writer
                # Without the lock: it may take seconds.
                writer.reservation = self.quota.reserve(self.spec.name, size)
                reserved = True
        except BaseException:
            writer.reservation.cancel()
            raise

    def put(self, view: memoryview, offset: int) -> None:
        """Store bytes of a block."""
        with translate_os_errors(self.spec.name):
            self.staged.write(view, offset)

    def hold(self, writer: "BlockFileWriter") -> None:
        """Record a block that arrived whole and matches its digest."""
        block = writer.block
        with self._lock:
            self._check_open()
            if self._writers.get(block.offset) is not writer:
                raise _block_taken_over()
            del self._writers[block.offset]
            if writer.keep:
                self._add(block)
                writer.reservation.commit()
            self._content.running.join(writer.content_hasher, block.offset, block.length)
        if writer.keep:
            due = self.staged.start_writeback(block)
            self._content.catch_up(2 * self.block)
            if due:
                self.checkpoint()

    def leave(self, writer: "BlockFileWriter") -> None:
        """Forget a writer that did not finish."""
        with self._lock:
            if self._writers.get(writer.block.offset) is writer:
                del self._writers[writer.block.offset]

    def checkpoint(self) -> None:
        """Make all held blocks durable."""
        with self._ending, translate_os_errors(self.spec.name):
            if self._open:
                self.staged.checkpoint()

    def commit(
        self, total: int, content_digest: str | None, blocks_digest: str | None, progress: Progress
    ) -> FileInfo:
        with self._ending, self._sealed():
            with self._lock:
                if self._publication is not None:
                    return self._publication
                self._check_open()
                missing = self._grid.missing(total, self._blocks, self._offered())
                self._revoke_writers()
            self._copy_from_basis(missing, progress)
            check_blocks_digest(
                (self._blocks[offset].digest for offset in range(0, total, self.block)),
                blocks_digest,
            )
            known = self._content.result(total, self.block, content_digest, progress)
            with translate_os_errors(self.spec.name):
                self.staged.complete(total, self.spec, known)
            try:
                info = self._publish(self, known)
            except BaseException:
                if not self.staged.has_data():
                    with self._lock:
                        self._close()
                raise
            with self._lock:
                self._publication = info
                with contextlib.suppress(OSError):
                    self.staged.append(journal.encode_published(info.facts()))
                self._close()
            return info

    def abort(self) -> None:
        """Revoke all writers and close; the store deletes the bytes."""
        with self._ending, self._lock:
            self._check_open()
            self._close()

    def release(self) -> None:
        self._try_checkpoint()
        self._on_release(self)

    def close(self) -> None:
        """Checkpoint and close; may be called twice."""
        self._try_checkpoint()
        with self._ending, self._lock:
            self._close()

    def _try_checkpoint(self) -> None:
        with contextlib.suppress(OSError, RefusedError):
            self.checkpoint()

    @contextlib.contextmanager
    def _sealed(self) -> Iterator[None]:
        """Refuse new writers until the block ends: what is published is what was checked."""
        with self._lock:
            self._committing = True
        try:
            yield
        finally:
            with self._lock:
                self._committing = False

    def _copy_from_basis(self, missing: list[BlockRecord], progress: Progress) -> None:
        """Copy what was not sent from the basis (without the lock)."""
        if not missing or self._basis is None:
            return
        reservation: Reservation = NO_RESERVATION
        if self.spec.total is None:
            size = sum(block.length for block in missing)
            reservation = self.quota.reserve(self.spec.name, size)
        try:
            for done, block in enumerate(missing):
                progress(done, len(missing))
                self.put(self._basis.read(block), block.offset)
                with self._lock:
                    self._check_open()
                    self._add(block)
        finally:
            # After a failure some blocks were copied; the next count finds how many.
            reservation.commit()
            self.quota.note_deleted(self.spec.name)

    # The methods below are called with the lock held.

    def _check_open(self) -> None:
        if not self._open:
            raise no_such_upload()

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._revoke_writers()  # the number of a closed descriptor is reused
            self._drop_basis()
            self._content.stop()
            self.staged.close()

    def _offered(self) -> dict[int, BlockRecord]:
        return self._basis.blocks if self._basis else {}

    def _drop_basis(self) -> None:
        if self._basis is not None:
            self._basis.close()
            self._basis = None

    def _revoke_writers(self) -> None:
        while self._writers:
            _, writer = self._writers.popitem()
            writer.revoke()

    def _take_over(self, block: BlockRecord) -> bool:
        """Revoke an older writer of the block; return whether its bytes must be written."""
        self._check_open()
        if self._committing:
            raise RefusedError(Code.BUSY, "the upload is being committed: no block can be written")
        if (older := self._writers.pop(block.offset, None)) is not None:
            older.revoke()
        if (held := self._blocks.get(block.offset)) is not None:
            if held.digest == block.digest:
                return False
            self._forget(block.offset)
        return True

    def _add(self, block: BlockRecord) -> None:
        """Hold a block whose bytes have been written."""
        record = journal.encode_block(block.offset, block.length, block.digest)
        with translate_os_errors(self.spec.name):
            self.staged.append(record, unsafe=block.length)
        self._blocks[block.offset] = block

    def _forget(self, offset: int) -> None:
        """Stop holding a block, on stable storage, before its bytes are overwritten."""
        if offset in self._writers:  # a newer writer has the damaged block
            return
        with translate_os_errors(self.spec.name):
            self.staged.append(journal.encode_forget(offset), sync=True)
        del self._blocks[offset]
        self._content.running.forget(offset)
        if self.spec.total is None:
            self.quota.note_deleted(self.spec.name)


class BlockFileWriter:
    """Receives one block, verifies it while it arrives, and has its upload hold it."""

    def __init__(self, upload: UnfinishedUpload[Any], block: BlockRecord) -> None:
        self._upload, self.block = upload, block
        self.content_hasher: Hasher | None = None
        """Hashes the same bytes for the digest of the whole file."""
        self.keep = True
        """False: the upload holds the block already, and the bytes are only verified."""
        self.reservation = NO_RESERVATION
        self._algorithm = split_digest(block.digest)[0]
        self._hasher = new_hasher(self._algorithm)
        self._at = block.offset
        self._lock = threading.Lock()
        self._revoked = False

    def write(self, view: memoryview) -> None:
        self._hasher.update(view)
        if self.content_hasher is not None:
            self.content_hasher.update(view)
        if self.keep:
            with self._lock:
                if self._revoked:
                    raise _block_taken_over()
                self._upload.put(view, self._at)
        self._at += len(view)

    def finish(self) -> None:
        if format_digest(self._algorithm, self._hasher.digest()) != self.block.digest:
            raise RefusedError(
                Code.DIGEST_MISMATCH, f"the block at {self.block.offset} does not match its digest"
            )
        self._upload.hold(self)

    def release(self) -> None:
        self._upload.leave(self)
        self.reservation.cancel()

    def revoke(self) -> None:
        """Refuse all further bytes: a newer writer has the block, or the upload is closed."""
        with self._lock:
            self._revoked = True
        self.reservation.cancel()


def spec_record(identity: str, spec: UploadSpec, block: int) -> bytes:
    """Return the journal's record of what an upload is to become."""
    return journal.encode_spec({"id": identity, "block": block, **asdict(spec)})


def _block_taken_over() -> RefusedError:
    return RefusedError(Code.BUSY, "another connection is writing this block now")
