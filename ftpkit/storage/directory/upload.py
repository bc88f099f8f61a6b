"""An upload in blocks, staged in a directory of its own: its data, its journal, its commit."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Final

from ftpkit.errors import Code, RefusedError
from ftpkit.osapi import files as os_files
from ftpkit.protocol.digest import split_digest
from ftpkit.storage.api import BlockRecord, FileInfo, Progress, Reader, UploadSpec
from ftpkit.storage.blocks import (
    Basis,
    BlockFileWriter,
    BlockGrid,
    being_committed,
    block_taken_over,
    check_blocks_digest,
    no_such_upload,
)
from ftpkit.storage.directory import journal
from ftpkit.storage.directory.content_digest import ContentDigest, block_matches
from ftpkit.storage.directory.filesystem import DirHandle, FileSystem
from ftpkit.storage.directory.journal import HeldBlock, JournalState
from ftpkit.storage.directory.upload_files import (
    JOURNAL,
    UploadFiles,
    create_files,
    read_journal,
)
from ftpkit.storage.os_errors import translate_os_errors
from ftpkit.storage.quota import NO_RESERVATION, UNLIMITED, QuotaScope, Reservation

# What a crash of the machine may cost: blocks since the last checkpoint are sent again.
_CHECKPOINT_BYTES: Final = 256 * 1024 * 1024
_CHECKPOINT_S: Final = 5.0
# Each `begin` with another spec adds a record: this limits the journal of an upload.
_MAX_SPEC_BYTES: Final = 1024 * 1024
_BLOCK_RECORD_BYTES: Final = 128

Publish = Callable[["DirectoryUpload", str], FileInfo]
OnRelease = Callable[["DirectoryUpload"], None]


def create_upload(
    directory: DirHandle,
    files: FileSystem,
    identity: str,
    spec: UploadSpec,
    block: int,
    *,
    publish: Publish,
    on_release: OnRelease,
    others: Iterable[os.stat_result] = (),
) -> "DirectoryUpload":
    """Start an upload in ``directory``, which is empty and from then on belongs to it.

    ``others`` is the status of the data of other uploads, whose space is taken already.
    """
    record = journal.encode_spec({"id": identity, "block": block, **asdict(spec)})
    with contextlib.ExitStack() as undo:
        undo.enter_context(directory)
        create_files(directory, files, record, spec.total or 0, others)
        staged = undo.enter_context(UploadFiles(directory, files, len(record)))
        upload = DirectoryUpload(
            staged, journal.replay(record), publish=publish, on_release=on_release
        )
        undo.pop_all()
    return upload


def reopen_upload(
    directory: DirHandle, files: FileSystem, *, publish: Publish, on_release: OnRelease
) -> "DirectoryUpload | None":
    """Continue the upload in ``directory``; None if its journal or data is missing.

    ``directory`` belongs to the upload, or is closed where there is none.
    """
    with contextlib.ExitStack() as undo:
        undo.enter_context(directory)
        state = read_journal(directory, JOURNAL)
        if state is None or state.spec is None:
            return None
        try:
            staged = undo.enter_context(UploadFiles(directory, files, state.length))
        except FileNotFoundError:
            return None
        upload = DirectoryUpload(staged, state, publish=publish, on_release=on_release)
        upload.recover(state)
        undo.pop_all()
    return upload


class DirectoryUpload:
    """An unfinished upload in a directory of its own; api.py documents the methods of ``Upload``.

    Several connections may write blocks at once. Each block has one writer: a newer writer
    takes it over, because the connection of the older one may have died unnoticed.
    """

    def __init__(
        self,
        staged: UploadFiles,
        state: JournalState,
        *,
        publish: Publish,
        on_release: OnRelease,
    ) -> None:
        values = dict(state.spec or {})
        self.id: str = values.pop("id")
        self.block: int = values.pop("block")
        self.spec = UploadSpec(**values)
        self.quota: QuotaScope = UNLIMITED
        """What blocks are reserved from while the total is unknown."""
        self.staged = staged
        self._grid = BlockGrid(self.block, self.spec.total)
        self._publish, self._on_release = publish, on_release
        self._lock = threading.Lock()
        self._checkpointing = threading.Lock()
        self._writers: dict[int, BlockFileWriter] = {}
        self._blocks: dict[int, HeldBlock] = {}
        self._basis: Basis | None = None
        self._publication: FileInfo | None = None
        self._open = True
        self._committing = False
        self._checkpoint_at = time.monotonic()
        self._unsafe_bytes = 0
        self._content = ContentDigest(staged.data, self._lock, self._blocks, self._forget_unwritten)

    @property
    def held(self) -> int:
        with self._lock:
            return sum(held.length for held in self._blocks.values())

    def records(self, algorithm: str) -> list[BlockRecord]:
        with self._lock:
            known = dict(self._basis.blocks) if self._basis else {}
            for offset, held in self._blocks.items():
                known[offset] = BlockRecord(offset, held.length, held.digest)
        return [
            record
            for _, record in sorted(known.items())
            if split_digest(record.digest)[0] == algorithm
        ]

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
                identity = {"id": self.id, "block": self.block}
                self.staged.append(journal.encode_spec({**identity, **asdict(spec)}))

    def offer_basis(self, reader: Reader, algorithm: str, progress: Progress) -> None:
        basis = Basis(reader, self._grid, algorithm, progress)
        with self._lock:
            self._check_open()
            self._drop_basis()
            self._basis = basis

    def write(self, offset: int, size: int, digest: str) -> BlockFileWriter:
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
        """Write bytes of a block into the staged file."""
        with translate_os_errors(self.spec.name):
            self.staged.write(view, offset)

    def hold(self, writer: BlockFileWriter) -> None:
        """Record a block that arrived whole and matches its digest."""
        block = writer.block
        with self._lock:
            self._check_open()
            if self._writers.get(block.offset) is not writer:
                raise block_taken_over()
            del self._writers[block.offset]
            if writer.keep:
                self._add(block)
                writer.reservation.commit()
                self._unsafe_bytes += block.length
            self._content.running.join(writer.content_hasher, block.offset, block.length)
            late = time.monotonic() - self._checkpoint_at >= _CHECKPOINT_S
            due = late or self._unsafe_bytes >= _CHECKPOINT_BYTES
        if not writer.keep:
            return
        os_files.start_writeback(self.staged.data, block.offset, block.length)
        self._content.catch_up(2 * self.block)
        if due:
            self.checkpoint()

    def leave(self, writer: BlockFileWriter) -> None:
        """Forget a writer that did not finish."""
        with self._lock:
            if self._writers.get(writer.block.offset) is writer:
                del self._writers[writer.block.offset]

    def checkpoint(self) -> None:
        """Bring all held blocks to stable storage, and then the journal record that says so."""
        with self._checkpointing:
            with self._lock:
                if not self._open or not self._unsafe_bytes:
                    return
                covered, bytes_before = self.staged.journal_length, self._unsafe_bytes
            with translate_os_errors(self.spec.name):
                self.staged.sync_data()
                with self._lock:
                    if not self._open:
                        return
                    self.staged.append(journal.encode_checkpoint(covered))
                    self._unsafe_bytes -= bytes_before
                    self._checkpoint_at = time.monotonic()
                self.staged.sync_journal()
                self.staged.sync_names()

    def commit(
        self,
        total: int,
        content_digest: str | None,
        blocks_digest: str | None,
        progress: Progress,
    ) -> FileInfo:
        with self._checkpointing, self._sealed():
            with self._lock:
                if self._publication is not None:
                    return self._publication
                self._check_open()
                missing = self._grid.missing(
                    total,
                    _lengths(self._blocks),
                    _lengths(self._basis.blocks if self._basis else {}),
                )
                self._revoke_writers()
            self._copy_from_basis(missing, progress)
            check_blocks_digest(
                (self._blocks[offset].digest for offset in range(0, total, self.block)),
                blocks_digest,
            )
            known = self._content.result(total, self.block, content_digest, progress)
            self._prepare(total, known)
            return self._finish(known)

    def abort(self) -> None:
        """Revoke all writers and close; the store deletes the directory."""
        with self._checkpointing, self._lock:
            self._check_open()
            self._close()

    def release(self) -> None:
        """Checkpoint and let go of the upload; the last release closes it."""
        with contextlib.suppress(OSError, RefusedError):
            self.checkpoint()
        self._on_release(self)

    def close(self) -> None:
        """Checkpoint and close; may be called twice."""
        with contextlib.suppress(OSError, RefusedError):
            self.checkpoint()
        with self._checkpointing, self._lock:
            self._close()

    def recover(self, state: JournalState) -> None:
        """Hold the blocks of a journal, as far as they are on the disk.

        Its writer may have died before it was synced: the records used must be stable first,
        and records behind damage must not come back later. A block that no checkpoint covers
        is read again; one that does not match is struck out, so that no later checkpoint
        covers it.
        """
        self.staged.truncate_journal()
        self.staged.sync_names()
        for offset, held in sorted(state.blocks.items()):
            if state.is_safe(held):
                self._blocks[offset] = held
            elif block_matches(self.staged.data, offset, held):
                self._blocks[offset] = held
                self._unsafe_bytes += held.length
            else:
                self.staged.append(journal.encode_forget(offset))

    def _prepare(self, total: int, content_digest: str) -> None:
        """Bring the complete file, and the record that it may be published, to stable storage."""
        with translate_os_errors(self.spec.name):
            mtime = self.staged.complete(total, self.spec, content_digest)
            prepared = {"content_digest": content_digest, "total": total, "mtime": mtime}
            with self._lock:
                self.staged.append(journal.encode_prepared(prepared))
            self.staged.sync_journal()

    def _finish(self, content_digest: str) -> FileInfo:
        try:
            info = self._publish(self, content_digest)
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

    def _copy_from_basis(self, missing: dict[int, int], progress: Progress) -> None:
        """Copy what was not sent from the basis (without the lock)."""
        if not missing or self._basis is None:
            return
        reservation: Reservation = NO_RESERVATION
        if self.spec.total is None:
            reservation = self.quota.reserve(self.spec.name, sum(missing.values()))
        try:
            for done, offset in enumerate(missing):
                progress(done, len(missing))
                self.put(self._basis.read(offset), offset)
                with self._lock:
                    self._check_open()
                    self._add(self._basis.blocks[offset])
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
            raise being_committed()
        older = self._writers.pop(block.offset, None)
        if older is not None:
            older.revoke()
        held = self._blocks.get(block.offset)
        if held is not None and held.digest == block.digest:
            return False
        if held is not None:
            self._forget(block.offset)
        return True

    def _add(self, block: BlockRecord) -> None:
        """Hold a block whose bytes have been written."""
        with translate_os_errors(self.spec.name):
            self.staged.append(journal.encode_block(block.offset, block.length, block.digest))
        self._blocks[block.offset] = HeldBlock(
            block.length, block.digest, self.staged.journal_length
        )

    def _forget(self, offset: int) -> None:
        """Stop holding a block, on stable storage, before its bytes are overwritten."""
        with translate_os_errors(self.spec.name):
            self.staged.append(journal.encode_forget(offset))
            self.staged.sync_journal()
        del self._blocks[offset]
        self._content.running.forget(offset)
        if self.spec.total is None:
            self.quota.note_deleted(self.spec.name)

    def _forget_unwritten(self, offset: int) -> None:
        """Forget a damaged block, unless a newer writer has it."""
        if offset not in self._writers:
            self._forget(offset)


def _lengths(blocks: Mapping[int, HeldBlock] | Mapping[int, BlockRecord]) -> dict[int, int]:
    return {offset: block.length for offset, block in blocks.items()}
