"""The files of an unfinished upload, in a directory of its own: its data and its journal."""

import contextlib
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ftpkit.osapi import files as os_files
from ftpkit.storage import journal
from ftpkit.storage.api import BlockRecord, UploadSpec
from ftpkit.storage.content_digest import block_matches
from ftpkit.storage.directory.filesystem import DirHandle, FileSystem
from ftpkit.storage.journal import JournalState
from ftpkit.storage.upload import OnRelease, Publish, UnfinishedUpload, spec_record

DATA: Final = "data"
JOURNAL: Final = "journal"

# What a crash of the machine may cost: blocks since the last checkpoint are sent again.
_CHECKPOINT_BYTES: Final = 256 * 1024 * 1024
_CHECKPOINT_S: Final = 5.0


def read_journal(directory: DirHandle, part: str, max_bytes: int = -1) -> JournalState | None:
    """Return the state that the journal ``part`` (or its start) describes; None: it is unusable."""
    try:
        # A crash during a rename may have left it with two names.
        fd = directory.open_file(part, hard_linked=True)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        state = journal.replay(file.read(max_bytes))
    return state if state.spec else None


class UploadFiles:
    """Data and journal, open for writing; ``directory`` belongs to it.

    FileNotFoundError: one of them is missing.
    """

    def __init__(self, directory: DirHandle, files: FileSystem, journal_length: int) -> None:
        self.directory, self._files = directory, files
        self.journal_length = journal_length
        self._lock = threading.Lock()
        self._unsafe_bytes = 0
        self._checkpoint_at = time.monotonic()
        self._names_safe = False
        self.data = self._open_data()
        try:
            self._journal = directory.open_file(JOURNAL, write=True)
        except BaseException:
            os.close(self.data)
            raise

    def recover(self, state: JournalState) -> list[BlockRecord]:
        """Return the blocks of the journal, as far as they are on the disk.

        Its writer may have died before it was synced: the records used must be stable first,
        and records behind damage must not come back later. A block that no checkpoint covers
        is read again; one that does not match is struck out, so that no later checkpoint
        covers it.
        """
        self._files.truncate(self._journal, self.journal_length)
        self._files.sync_data(self._journal)
        self._sync_names()
        blocks = list[BlockRecord]()
        for offset, held in sorted(state.blocks.items()):
            block = BlockRecord(offset, held.length, held.digest)
            if state.is_safe(held):
                blocks.append(block)
            elif block_matches(self.read_into, block):
                blocks.append(block)
                self._unsafe_bytes += block.length
            else:
                self.append(journal.encode_forget(offset))
        return blocks

    def _open_data(self) -> int:
        try:
            return self.directory.open_file(DATA, write=True)
        except PermissionError:
            # A commit that was refused has set the permission bits already.
            fd = self.directory.open_file(DATA)
            try:
                self._files.make_writable(fd, os.path.join(self.directory.path, DATA))
            finally:
                os.close(fd)
            return self.directory.open_file(DATA, write=True)

    def write(self, view: memoryview, offset: int) -> None:
        self._files.write(self.data, view, offset)

    def read_into(self, view: memoryview, offset: int) -> int:
        return os_files.read_at(self.data, view, offset)

    def append(self, record: bytes, *, unsafe: int = 0, sync: bool = False) -> None:
        with self._lock:
            # Not at the end of the file: half a record that a full disk left there
            # would hide this one from every replay.
            self._files.write(self._journal, memoryview(record), self.journal_length)
            self.journal_length += len(record)
            self._unsafe_bytes += unsafe
        if sync:
            self._files.sync_data(self._journal)

    def start_writeback(self, block: BlockRecord) -> bool:
        os_files.start_writeback(self.data, block.offset, block.length)
        late = time.monotonic() - self._checkpoint_at >= _CHECKPOINT_S
        return late or self._unsafe_bytes >= _CHECKPOINT_BYTES

    def checkpoint(self) -> None:
        """Bring the blocks to stable storage, and then the journal record that says so."""
        with self._lock:
            covered, unsafe = self.journal_length, self._unsafe_bytes
        if not unsafe:
            return
        self._files.sync_data(self.data)
        self.append(journal.encode_checkpoint(covered), unsafe=-unsafe, sync=True)
        self._checkpoint_at = time.monotonic()
        self._sync_names()

    def complete(self, total: int, spec: UploadSpec, content_digest: str) -> None:
        self._files.truncate(self.data, total)
        path = os.path.join(self.directory.path, DATA)
        self._files.set_metadata(self.data, path, spec.mode, spec.mtime, content_digest)
        self._files.sync(self.data)
        # A journal that says "prepared", and has no data, means that it was published.
        self._sync_names()
        mtime = os.fstat(self.data).st_mtime_ns
        prepared = {"content_digest": content_digest, "total": total, "mtime": mtime}
        self.append(journal.encode_prepared(prepared), sync=True)

    def has_data(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            self.directory.stat(DATA)
            return True
        return False

    def close(self) -> None:
        os.close(self.data)
        os.close(self._journal)
        self.directory.close()

    def _sync_names(self) -> None:
        """Bring the names of both files to stable storage, once."""
        if not self._names_safe:
            self._files.sync_directory(self.directory)
            self._names_safe = True


DirectoryUpload = UnfinishedUpload[UploadFiles]


@dataclass(frozen=True, slots=True)
class UploadFactory:
    """Makes uploads in directories, which from then on belong to them."""

    files: FileSystem
    publish: "Publish[UploadFiles]"
    on_release: "OnRelease[UploadFiles]"

    def create(
        self,
        directory: DirHandle,
        identity: str,
        spec: UploadSpec,
        block: int,
        others: Iterable[os.stat_result] = (),
    ) -> DirectoryUpload:
        """Start an upload in an empty directory.

        ``others`` is the status of the data of other uploads, whose space is taken already.
        """
        record = spec_record(identity, spec, block)
        with contextlib.ExitStack() as undo:
            undo.enter_context(directory)
            data = self.files.create(directory, DATA, 0o666)
            try:
                self.files.preallocate(data, spec.total or 0, others)
            finally:
                os.close(data)
            fd = self.files.create(directory, JOURNAL)
            try:
                self.files.write(fd, memoryview(record), 0)
            finally:
                os.close(fd)
            staged = UploadFiles(directory, self.files, len(record))
            undo.pop_all()
        return UnfinishedUpload(identity, spec, block, staged, self.publish, self.on_release)

    def reopen(self, directory: DirHandle) -> DirectoryUpload | None:
        """Continue an upload; None, and close the directory, if its journal or data is missing."""
        with contextlib.ExitStack() as undo:
            undo.enter_context(directory)
            state = read_journal(directory, JOURNAL)
            if state is None:
                return None
            try:
                staged = UploadFiles(directory, self.files, state.length)
            except FileNotFoundError:
                return None
            undo.callback(staged.close)
            blocks = staged.recover(state)
            undo.pop_all()
        values = dict(state.spec)
        identity, block = values.pop("id"), values.pop("block")
        spec = UploadSpec(**values)
        return UnfinishedUpload(
            identity, spec, block, staged, self.publish, self.on_release, blocks
        )
