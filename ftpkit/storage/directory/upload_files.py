"""The files of an unfinished upload: its data, and the journal of what is in it."""

import contextlib
import os
from collections.abc import Iterable
from typing import Final, Self

from ftpkit.storage.api import UploadSpec
from ftpkit.storage.directory import journal
from ftpkit.storage.directory.filesystem import DirHandle, FileSystem
from ftpkit.storage.directory.journal import JournalState

DATA: Final = "data"
JOURNAL: Final = "journal"


def create_files(
    directory: DirHandle,
    files: FileSystem,
    record: bytes,
    total: int,
    others: Iterable[os.stat_result] = (),
) -> None:
    """Create data, with ``total`` bytes reserved, and a journal with one record."""
    data = files.create(directory, DATA, 0o666)
    try:
        files.preallocate(data, total, others)
    finally:
        os.close(data)
    fd = files.create(directory, JOURNAL)
    try:
        files.write(fd, memoryview(record), 0)
    finally:
        os.close(fd)


def read_journal(directory: DirHandle, part: str, max_bytes: int = -1) -> JournalState | None:
    """Return the state that the journal ``part`` (or its start) describes; None: no such file."""
    try:
        # A crash during a rename may have left it with two names.
        fd = directory.open_file(part, hard_linked=True)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        return journal.replay(file.read(max_bytes))


class UploadFiles:
    """Data and journal, open for writing; ``directory`` belongs to it.

    FileNotFoundError: one of them is missing.
    """

    def __init__(self, directory: DirHandle, files: FileSystem, journal_length: int) -> None:
        self.directory, self._files = directory, files
        self.journal_length = journal_length
        self._names_safe = False
        self.data = self._open_data()
        try:
            self._journal = directory.open_file(JOURNAL, write=True)
        except BaseException:
            os.close(self.data)
            raise

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
        """Write bytes of the data."""
        self._files.write(self.data, view, offset)

    def append(self, record: bytes) -> None:
        """Append a record to the journal."""
        # Not at the end of the file: half a record that a full disk left there
        # would hide this one from every replay.
        self._files.write(self._journal, memoryview(record), self.journal_length)
        self.journal_length += len(record)

    def truncate_journal(self) -> None:
        """Cut off what follows the good records, and bring those to stable storage."""
        self._files.truncate(self._journal, self.journal_length)
        self.sync_journal()

    def sync_data(self) -> None:
        """Bring the bytes of the data to stable storage."""
        self._files.sync_data(self.data)

    def sync_journal(self) -> None:
        """Bring the records of the journal to stable storage."""
        self._files.sync_data(self._journal)

    def sync_names(self) -> None:
        """Bring the names of both files to stable storage, once."""
        if not self._names_safe:
            self._files.sync_directory(self.directory)
            self._names_safe = True

    def complete(self, total: int, spec: UploadSpec, content_digest: str) -> int:
        """Bring the whole file, with its metadata, to stable storage; return its mtime in ns."""
        self._files.truncate(self.data, total)
        path = os.path.join(self.directory.path, DATA)
        self._files.set_metadata(self.data, path, spec.mode, spec.mtime, content_digest)
        self._files.sync(self.data)
        # A journal that says "prepared", and has no data, means that it was published.
        self.sync_names()
        return os.fstat(self.data).st_mtime_ns

    def has_data(self) -> bool:
        """Whether the data is still here, and not under the name of the upload."""
        with contextlib.suppress(FileNotFoundError):
            self.directory.stat(DATA)
            return True
        return False

    def close(self) -> None:
        """Close both files and the directory."""
        os.close(self.data)
        os.close(self._journal)
        self.directory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
