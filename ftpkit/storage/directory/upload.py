"""An upload in blocks: what is held, who is writing which block, and the way to its name."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any, Final

from ftpkit.errors import Code, RefusedError
from ftpkit.osapi import files as os_files
from ftpkit.protocol.digest import (
    RunningDigest,
    digest_of,
    format_digest,
    new_hasher,
    split_digest,
)
from ftpkit.protocol.frame import MAX_SIZE
from ftpkit.storage.api import BlockRecord, FileInfo, Progress, Reader, UploadSpec
from ftpkit.storage.directory import journal
from ftpkit.storage.directory.block_writer import BlockFileWriter, upload_taken_over
from ftpkit.storage.directory.filesystem import DirHandle, FileSystem
from ftpkit.storage.directory.journal import HeldBlock, JournalState
from ftpkit.storage.os_errors import translate_os_errors
from ftpkit.storage.quota import NO_RESERVATION, UNLIMITED, QuotaScope, Reservation

DATA: Final = "data"
JOURNAL: Final = "journal"

# What a dead machine may cost: blocks since the last checkpoint are sent again.
_CHECKPOINT_BYTES: Final = 256 * 1024 * 1024
_CHECKPOINT_S: Final = 5.0
_PIECE: Final = 1024 * 1024
# So much a journal may have beside its blocks, for each `begin` may wish something else.
_MOST_WISHES: Final = 1024 * 1024
_RECORD: Final = 128

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
    on_release: "OnRelease",
    beside: Iterable[os.stat_result] = (),
) -> "DirectoryUpload":
    """Start an upload in ``directory``, which is empty and from now on belongs to it.

    ``beside`` are the files of other uploads, which have been promised their room.
    """
    with contextlib.ExitStack() as undo:
        undo.enter_context(directory)
        record = journal.encode_wish({"id": identity, "block": block, **asdict(spec)})
        data = files.create(directory, DATA, 0o666)
        try:
            files.preallocate(data, spec.total or 0, beside)
        finally:
            os.close(data)
        fd = files.create(directory, JOURNAL)
        try:
            files.write(fd, memoryview(record), 0)
        finally:
            os.close(fd)
        state = journal.replay(record)
        upload = DirectoryUpload(
            directory, files, state, found=False, publish=publish, on_release=on_release
        )
        undo.pop_all()
    return upload


def reopen_upload(
    directory: DirHandle, files: FileSystem, *, publish: Publish, on_release: "OnRelease"
) -> "DirectoryUpload | None":
    """Continue the upload that an earlier process left in ``directory``, if that is possible.

    Then ``directory`` belongs to it; else it is closed.
    """
    with contextlib.ExitStack() as undo:
        undo.enter_context(directory)
        state = read_journal(directory, JOURNAL)
        if state is None or state.spec is None:
            return None
        try:
            directory.stat(DATA)
            upload = DirectoryUpload(
                directory, files, state, found=True, publish=publish, on_release=on_release
            )
        except FileNotFoundError:
            return None
        undo.pop_all()
    return upload


def read_journal(directory: DirHandle, part: str, most: int = -1) -> JournalState | None:
    """Return what the journal ``part`` says, or its first ``most`` bytes; None: there is none."""
    try:
        # A crash within a move may have left it with both names.
        fd = directory.open_file(part, hard_linked=True)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        return journal.replay(file.read(most))


class DirectoryUpload:
    """An upload that is staged in a directory of its own: the bytes, and their journal.

    Several connections may write blocks of it at once. Each block has one
    writer: a newer one takes it over from an older one, whose connection may
    be dead without our knowing.
    """

    def __init__(
        self,
        directory: DirHandle,
        files: FileSystem,
        state: JournalState,
        *,
        found: bool,
        publish: Publish,
        on_release: "OnRelease",
    ) -> None:
        values = dict(state.spec or {})
        self.id: str = values.pop("id")
        self.block: int = values.pop("block")
        self.spec = UploadSpec(**values)
        self.quota: QuotaScope = UNLIMITED
        """Where blocks take what they need, if the total is not known."""
        self.directory = directory
        self._files = files
        self._publish, self._on_release = publish, on_release
        self._lock = threading.Lock()
        self._checkpointing = threading.Lock()
        self._hashing = threading.Lock()
        self._writers: dict[int, BlockFileWriter] = {}
        self._basis: tuple[Reader, dict[int, HeldBlock]] | None = None
        self._publication: FileInfo | None = None
        self._open = True
        self._committing = False
        self._journal_length = state.length
        self._checkpoint_at = time.monotonic()
        self._unsafe_bytes = 0
        self._names_safe = False
        # The digest of the whole file grows with the blocks while they are in
        # the cache, as long as they come in order.
        self._whole = RunningDigest()
        self._blocks: dict[int, HeldBlock] = {}
        with contextlib.ExitStack() as undo:
            self._data = directory.open_file(DATA, write=True)
            undo.callback(os.close, self._data)
            self._journal = directory.open_file(JOURNAL, write=True)
            undo.callback(os.close, self._journal)
            if found:
                self._recover(state)
            undo.pop_all()

    @property
    def held(self) -> int:
        """Bytes of the blocks that have arrived."""
        with self._lock:
            return sum(held.length for held in self._blocks.values())

    def records(self, algorithm: str) -> list[BlockRecord]:
        """Return the blocks that need not be sent again, held or from the basis, by offset."""
        with self._lock:
            known = {**(self._basis[1] if self._basis else {}), **self._blocks}
        return [
            BlockRecord(offset, held.length, held.digest)
            for offset, held in sorted(known.items())
            if split_digest(held.digest)[0] == algorithm
        ]

    def renew(self, spec: UploadSpec) -> None:
        """Take over what a later ``begin`` wishes for the same file."""
        with self._lock:
            self._check_open()
            if spec != self.spec:
                if self._journal_length > _MOST_WISHES + _RECORD * len(self._blocks):
                    raise RefusedError(
                        Code.BUSY, "this upload was begun in too many ways; abort it first"
                    )
                self.spec = spec
                self._append(journal.encode_wish({**self._identity(), **asdict(spec)}))

    def offer_basis(self, reader: Reader, algorithm: str, progress: Progress) -> None:
        """Offer the blocks of the file that stands under the name, and keep it open for them."""
        total, blocks = reader.info.total, {}
        buffer = memoryview(bytearray(self.block))
        for offset in range(0, total, self.block):
            piece = buffer[: reader.read_into(buffer[: total - offset], offset)]
            # The last block of a shorter file is none of ours.
            if self._fits(offset, len(piece)):
                blocks[offset] = HeldBlock(len(piece), digest_of(piece, algorithm), 0)
            progress(offset + len(piece), total)
        with self._lock:
            self._check_open()
            self._drop_basis()
            self._basis = reader, blocks

    def write(self, offset: int, size: int, digest: str) -> BlockFileWriter:
        """Start a block; an unfinished write of the same block is taken over."""
        if offset < 0 or offset % self.block or not self._fits(offset, size):
            raise RefusedError(
                Code.BAD_REQUEST,
                f"{size} bytes at {offset} are no block of this upload: blocks are of"
                f" {self.block} bytes and only the last may be shorter",
            )
        hasher = new_hasher(split_digest(digest)[0])
        reservation: Reservation | None = None if self.spec.total is None else NO_RESERVATION
        try:
            while True:
                with self._lock:
                    keep = self._make_way(offset, digest)
                    if reservation is not None or not keep:
                        writer = BlockFileWriter(
                            self,
                            offset,
                            size,
                            digest,
                            hasher,
                            whole=self._whole.fork(offset),
                            keep=keep,
                            reservation=reservation or NO_RESERVATION,
                        )
                        self._writers[offset] = writer
                        return writer
                # Not with the lock held: it may take long.
                reservation = self.quota.reserve(self.spec.name, size)
        except BaseException:
            if reservation is not None:
                reservation.cancel()
            raise

    def put(self, view: memoryview, offset: int) -> None:
        """Write bytes of a block into the staged file."""
        with translate_os_errors(self.spec.name):
            self._files.write(self._data, view, offset)

    def hold(self, writer: BlockFileWriter) -> None:
        """Record a block that arrived whole and matched."""
        with self._lock:
            self._check_open()
            if self._writers.get(writer.offset) is not writer:
                raise upload_taken_over()
            del self._writers[writer.offset]
            if not writer.keep:
                self._whole.join(writer.whole, writer.offset, writer.size)
                return
            with translate_os_errors(self.spec.name):
                self._append(journal.encode_block(writer.offset, writer.size, writer.digest))
            self._blocks[writer.offset] = HeldBlock(
                writer.size, writer.digest, self._journal_length
            )
            writer.reservation.commit()
            self._whole.join(writer.whole, writer.offset, writer.size)
            self._unsafe_bytes += writer.size
            late = time.monotonic() - self._checkpoint_at >= _CHECKPOINT_S
            due = late or self._unsafe_bytes >= _CHECKPOINT_BYTES
        os_files.start_writeback(self._data, writer.offset, writer.size)
        self._catch_up(2 * self.block)
        if due:
            self.checkpoint()

    def leave(self, writer: BlockFileWriter) -> None:
        """Let go of a block that was not finished."""
        with self._lock:
            if self._writers.get(writer.offset) is writer:
                del self._writers[writer.offset]

    def checkpoint(self) -> None:
        """Bring all held blocks to stable storage, and the journal that says so after them."""
        with self._checkpointing:
            with self._lock:
                if not self._open or not self._unsafe_bytes:
                    return
                covered, bytes_before = self._journal_length, self._unsafe_bytes
            with translate_os_errors(self.spec.name):
                self._files.sync_data(self._data)
                with self._lock:
                    if not self._open:
                        return
                    self._append(journal.encode_checkpoint(covered))
                    self._unsafe_bytes -= bytes_before
                    self._checkpoint_at = time.monotonic()
                self._files.sync_data(self._journal)
                self._make_names_safe()

    def commit(
        self,
        total: int,
        content_digest: str | None,
        blocks_digest: str | None,
        progress: Progress,
    ) -> FileInfo:
        """Publish the file, once. Asked again, answer as the first time."""
        with self._checkpointing, self._sealed():
            with self._lock:
                if self._publication is not None:
                    return self._publication
                self._check_open()
                missing = self._missing(total)
                self._revoke_writers()
            return self._commit(total, missing, content_digest, blocks_digest, progress)

    def fileno(self) -> int:
        """Return the descriptor of the staged file."""
        return self._data

    def has_data(self) -> bool:
        """Whether the staged file is still here, and not under its name."""
        with contextlib.suppress(FileNotFoundError):
            self.directory.stat(DATA)
            return True
        return False

    def abort(self) -> None:
        """Stop every writer and close; the directory is the store's to remove."""
        with self._checkpointing, self._lock:
            self._check_open()
            self._revoke_writers()
            self._close()

    def release(self) -> None:
        """Let go of the upload; the last one out checkpoints and closes it."""
        with contextlib.suppress(OSError, RefusedError):
            self.checkpoint()
        self._on_release(self)

    def close(self) -> None:
        """Checkpoint and close, unless that is done."""
        with contextlib.suppress(OSError, RefusedError):
            self.checkpoint()
        with self._checkpointing, self._lock:
            self._close()

    def _recover(self, state: JournalState) -> None:
        """Take over what a journal says, as far as it is true.

        Whoever wrote it may have died before it was synced: what we go by has to
        be stable first, and records behind damage must not come back later.
        A block that no checkpoint vouches for is read again. One that is not
        there is struck out: the next checkpoint must not vouch for it.
        """
        self._files.truncate(self._journal, state.length)
        self._files.sync_data(self._journal)
        self._make_names_safe()
        for offset, held in sorted(state.blocks.items()):
            if state.is_safe(held):
                self._blocks[offset] = held
            elif self._still_matches(offset, held):
                self._blocks[offset] = held
                self._unsafe_bytes += held.length
            else:
                self._append(journal.encode_forget(offset))

    def _commit(
        self,
        total: int,
        missing: list[int],
        content_digest: str | None,
        blocks_digest: str | None,
        progress: Progress,
    ) -> FileInfo:
        self._take_from_basis(missing, total)
        self._check_blocks(total, blocks_digest)
        known = self._content_digest(total, content_digest, progress)
        with translate_os_errors(self.spec.name):
            self._files.truncate(self._data, total)
            path = os.path.join(self.directory.path, DATA)
            self._files.set_metadata(self._data, path, self.spec.mode, self.spec.mtime)
            self._files.set_digest_xattr(self._data, known)
            self._files.sync(self._data)
            # Where "prepared" is found without the data, the data has been published.
            self._make_names_safe()
            mtime = os.fstat(self._data).st_mtime_ns
            with self._lock:
                self._append(
                    journal.encode_prepared(
                        {"content_digest": known, "total": total, "mtime": mtime}
                    )
                )
            self._files.sync_data(self._journal)
        try:
            info = self._publish(self, known)
        except BaseException:
            if not self.has_data():
                with self._lock:
                    self._close()
            raise
        with self._lock:
            self._publication = info
            with contextlib.suppress(OSError):
                self._append(journal.encode_published(asdict(info)))
            self._close()
        return info

    @contextlib.contextmanager
    def _sealed(self) -> Iterator[None]:
        """Take no new writer until the block ends: what is published is what was checked."""
        with self._lock:
            self._committing = True
        try:
            yield
        finally:
            with self._lock:
                self._committing = False

    def _make_names_safe(self) -> None:
        """Bring the names of data and journal to stable storage, once (without the lock)."""
        if not self._names_safe:
            self._files.sync_directory(self.directory)
            self._names_safe = True

    # What follows is called with the lock held, unless it says otherwise.

    def _check_open(self) -> None:
        if not self._open:
            raise RefusedError(Code.NOT_FOUND, "there is no such unfinished upload")

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._revoke_writers()  # the number of a closed file may soon be another file's
            self._drop_basis()
            with self._hashing:
                os.close(self._data)
                os.close(self._journal)
            self.directory.close()

    def _drop_basis(self) -> None:
        if self._basis is not None:
            self._basis[0].__exit__()
            self._basis = None

    def _revoke_writers(self) -> None:
        while self._writers:
            _, writer = self._writers.popitem()
            writer.revoke()

    def _make_way(self, offset: int, digest: str) -> bool:
        """End what an older writer does with a block; return whether it is to be written."""
        self._check_open()
        if self._committing:
            raise RefusedError(Code.BUSY, "the upload is being committed now")
        older = self._writers.pop(offset, None)
        if older is not None:
            older.revoke()
        held = self._blocks.get(offset)
        if held is not None and held.digest == digest:
            return False
        if held is not None:
            self._forget(offset)
        return True

    def _append(self, record: bytes) -> None:
        # Not at the end of the file: half a record that a full disk left there
        # would hide this one from every replay.
        self._files.write(self._journal, memoryview(record), self._journal_length)
        self._journal_length += len(record)

    def _forget(self, offset: int) -> None:
        """Take a block back, on stable storage, before its bytes are overwritten."""
        with translate_os_errors(self.spec.name):
            self._append(journal.encode_forget(offset))
            self._files.sync_data(self._journal)
        del self._blocks[offset]
        self._whole.forget(offset)
        if self.spec.total is None:
            self.quota.note_deleted(self.spec.name)

    def _identity(self) -> dict[str, Any]:
        return {"id": self.id, "block": self.block}

    def _fits(self, offset: int, size: int) -> bool:
        """Whether such a block can be part of the file (needs no lock)."""
        total = self.spec.total
        if total is None:
            return 0 < size <= self.block and offset + size <= MAX_SIZE
        return 0 < size == min(self.block, total - offset)

    def _length_at(self, offset: int, total: int) -> int:
        return min(self.block, total - offset)

    def _missing(self, total: int) -> list[int]:
        """Return the offsets that neither we nor the basis have, after checking ``total``."""
        if self.spec.total is not None and total != self.spec.total:
            raise RefusedError(
                Code.BAD_REQUEST, f"the upload was begun with {self.spec.total} bytes, not {total}"
            )
        offered = self._basis[1] if self._basis else {}
        # Counting comes first: a declared length alone must not cost work.
        if len(self._blocks) + len(offered) < -(-total // self.block):
            raise RefusedError(Code.INCOMPLETE, "the upload is not complete: blocks are missing")
        missing = [
            offset
            for offset in range(0, total, self.block)
            if not self._is_whole(self._blocks.get(offset), offset, total)
        ]
        absent = [
            offset for offset in missing if not self._is_whole(offered.get(offset), offset, total)
        ]
        beyond = any(offset >= total for offset in self._blocks)
        if absent or beyond:
            what = "blocks lie beyond its end" if beyond else f"{len(absent)} blocks are missing"
            raise RefusedError(Code.INCOMPLETE, f"the upload is not complete: {what}")
        return missing

    def _is_whole(self, held: HeldBlock | None, offset: int, total: int) -> bool:
        return held is not None and held.length == self._length_at(offset, total)

    def _take_from_basis(self, missing: list[int], total: int) -> None:
        """Copy what was never sent from the standing file (without the lock)."""
        if not missing or self._basis is None:
            return
        reservation: Reservation = NO_RESERVATION
        if self.spec.total is None:
            count = sum(self._length_at(offset, total) for offset in missing)
            reservation = self.quota.reserve(self.spec.name, count)
        try:
            for offset in missing:
                self._copy_from_basis(*self._basis, offset, total)
        finally:
            # What was copied before a failure is held; how much that is the next count tells.
            reservation.commit()
            self.quota.note_deleted(self.spec.name)

    def _copy_from_basis(
        self, reader: Reader, offered: dict[int, HeldBlock], offset: int, total: int
    ) -> None:
        held = offered[offset]
        piece = memoryview(bytearray(self._length_at(offset, total)))
        got = reader.read_into(piece, offset)
        if digest_of(piece[:got], split_digest(held.digest)[0]) != held.digest:
            raise RefusedError(Code.CHANGED, "the standing file has changed meanwhile")
        self.put(piece, offset)
        with self._lock, translate_os_errors(self.spec.name):
            self._check_open()
            self._append(journal.encode_block(offset, held.length, held.digest))
            self._blocks[offset] = HeldBlock(held.length, held.digest, self._journal_length)

    def _check_blocks(self, total: int, blocks_digest: str | None) -> None:
        if blocks_digest is None:
            return
        algorithm = split_digest(blocks_digest)[0]
        hasher = new_hasher(algorithm)
        for offset in range(0, total, self.block):
            hasher.update(split_digest(self._blocks[offset].digest)[1])
        if format_digest(algorithm, hasher.digest()) != blocks_digest:
            raise RefusedError(
                Code.DIGEST_MISMATCH, "some blocks are not those that the sender means"
            )

    def _content_digest(self, total: int, expected: str | None, progress: Progress) -> str:
        """Return the digest of the whole file, as expected (without the lock)."""
        while (known := self._whole.of(total)) is None:
            self._catch_up(self.block)
            if self._whole.length not in self._blocks and self._whole.length < total:
                raise RefusedError(Code.INCOMPLETE, "a block is damaged on the disk: send it again")
            progress(self._whole.length, total)
        algorithm = split_digest(expected or known)[0]
        if algorithm != split_digest(known)[0]:
            known = self._read_digest(total, algorithm, progress)
        if expected not in (None, known):
            raise RefusedError(
                Code.DIGEST_MISMATCH, f"the file has the digest {known}, not {expected}"
            )
        return known

    def _catch_up(self, limit: int) -> None:
        """Hash blocks that are held already, up to ``limit`` bytes of them (without the lock).

        After a resume the digest of the whole file lags behind; a little of
        this with each new block, and the commit has little left to do. A block
        that the disk has not kept as it arrived is no longer held.
        """
        while limit > 0:
            with self._lock:
                offset = self._whole.length
                held = self._blocks.get(offset)
                hasher = self._whole.fork(offset) if held is not None and self._open else None
            if held is None or hasher is None:
                return
            algorithm = split_digest(held.digest)[0]
            block = new_hasher(algorithm)
            with self._hashing:
                if not self._open:
                    return
                for piece in self._pieces(offset, held.length):
                    hasher.update(piece)
                    block.update(piece)
            with self._lock:
                if self._blocks.get(offset) is not held or not self._open:
                    continue
                if format_digest(algorithm, block.digest()) == held.digest:
                    self._whole.join(hasher, offset, held.length)
                elif offset not in self._writers:
                    self._forget(offset)
            limit -= held.length

    def _read_digest(self, total: int, algorithm: str, progress: Progress) -> str:
        hasher, done = new_hasher(algorithm), 0
        for piece in self._pieces(0, total):
            hasher.update(piece)
            done += len(piece)
            progress(done, total)
        return format_digest(algorithm, hasher.digest())

    def _pieces(self, offset: int, size: int) -> Iterator[memoryview]:
        buffer, end = memoryview(bytearray(min(size, _PIECE))), offset + size
        while offset < end:
            got = os_files.read_at(self._data, buffer[: end - offset], offset)
            if got == 0:
                return
            yield buffer[:got]
            offset += got

    def _still_matches(self, offset: int, held: HeldBlock) -> bool:
        """Whether a block that no checkpoint vouches for is there all the same."""
        buffer = memoryview(bytearray(held.length))
        got = os_files.read_at(self._data, buffer, offset)
        return digest_of(buffer[:got], split_digest(held.digest)[0]) == held.digest
