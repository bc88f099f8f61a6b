"""Faulty stores that the explorer has to catch: each drops or moves one sync or step."""

import os

from ftpkit.storage.directory.filesystem import DirHandle
from ftpkit.storage.directory.upload import JOURNAL
from tests.storage.crash_record import LinkingFiles, RecordingFiles


class NoFileSync(RecordingFiles):
    """A file is published without its bytes being stable."""

    def sync(self, fd: int) -> None:
        pass


class NoDirectorySync(RecordingFiles):
    """No directory is synced."""

    def sync_directory(self, directory: DirHandle) -> None:
        pass


class SyncAfterRename(RecordingFiles):
    """Bytes are synced only after the rename."""

    late: int | None = None

    def sync(self, fd: int) -> None:
        self.late = os.dup(fd)

    def rename(self, source: DirHandle, part: str, target: DirHandle, to: str) -> None:
        super().rename(source, part, target, to)
        if self.late is not None:
            late, self.late = self.late, None
            super().sync(late)
            os.close(late)


class RenameInTwoSteps(RecordingFiles):
    """What a rename replaces is removed first."""

    def rename(self, source: DirHandle, part: str, target: DirHandle, to: str) -> None:
        if any(to == name and not is_directory for name, is_directory in target.names()):
            self.unlink(target, to)
        super().rename(source, part, target, to)


class NoNameSyncAfterRename(RecordingFiles):
    """A file is acknowledged before its name is stable."""

    renamed = False

    def rename(self, source: DirHandle, part: str, target: DirHandle, to: str) -> None:
        super().rename(source, part, target, to)
        self.renamed = True

    def sync_directory(self, directory: DirHandle) -> None:
        if not self.renamed:
            super().sync_directory(directory)
        self.renamed = False


class NoNameSyncAfterMkdir(RecordingFiles):
    """A directory that was made is used without its name being stable."""

    made = False

    def mkdir(self, directory: DirHandle, part: str, mode: int = 0o777) -> None:
        self.made = True
        super().mkdir(directory, part, mode)

    def sync_directory(self, directory: DirHandle) -> None:
        if not self.made:
            super().sync_directory(directory)
        self.made = False


class NameSyncAfterUnlink(LinkingFiles):
    """The old name of a file is removed before the new one is stable."""

    late: DirHandle | None = None

    def hard_link(self, source: DirHandle, part: str, target: DirHandle, to: str) -> None:
        super().hard_link(source, part, target, to)
        self.late = target

    def sync_directory(self, directory: DirHandle) -> None:
        if directory is not self.late:
            super().sync_directory(directory)

    def unlink(self, directory: DirHandle, part: str) -> None:
        super().unlink(directory, part)
        if self.late is not None:
            late, self.late = self.late, None
            super().sync_directory(late)


class NoUploadNameSync(RecordingFiles):
    """The bytes and the journal of an upload are stable, but not their names."""

    def sync_directory(self, directory: DirHandle) -> None:
        if JOURNAL not in [part for part, _ in directory.names()]:
            super().sync_directory(directory)


class NoStagingSync(RecordingFiles):
    """A purge at the start can come back in part under its old name."""

    def sync_directory(self, directory: DirHandle) -> None:
        if os.path.basename(directory.path) != "staging":
            super().sync_directory(directory)


class _UploadFiles(RecordingFiles):
    """Knows the last record that went into a journal."""

    last = b""

    def write(self, fd: int, view: memoryview, offset: int) -> None:
        super().write(fd, view, offset)
        if self.is_journal(fd):
            self.last = bytes(view[:1])

    def is_journal(self, fd: int) -> bool:
        return os.pread(fd, 1, 0) == b"O"


class NoDataSyncBeforeCheckpoint(_UploadFiles):
    """A checkpoint covers bytes that are not stable."""

    def sync_data(self, fd: int) -> None:
        if self.is_journal(fd):
            super().sync_data(fd)


class DataSyncAfterCheckpoint(_UploadFiles):
    """A checkpoint is stable before the bytes that it covers."""

    late: int | None = None

    def sync_data(self, fd: int) -> None:
        if not self.is_journal(fd):
            self.late = os.dup(fd)
            return
        super().sync_data(fd)
        if self.late is not None:
            late, self.late = self.late, None
            super().sync_data(late)
            os.close(late)


class NoCheckpointSync(_UploadFiles):
    """A checkpoint is not synced."""

    def sync_data(self, fd: int) -> None:
        if self.last != b"C" or not self.is_journal(fd):
            super().sync_data(fd)


class NoForgetSync(_UploadFiles):
    """A block is overwritten while a checkpoint can still cover it."""

    def sync_data(self, fd: int) -> None:
        if self.last != b"X":
            super().sync_data(fd)


class NoPreparedSync(_UploadFiles):
    """A file is published before the journal record of that is stable."""

    def sync_data(self, fd: int) -> None:
        if self.last != b"P":
            super().sync_data(fd)


class NoRecoverySync(_UploadFiles):
    """The journal is not synced after a restart truncated it."""

    truncated = False

    def truncate(self, fd: int, length: int) -> None:
        super().truncate(fd, length)
        self.truncated = self.is_journal(fd)

    def sync_data(self, fd: int) -> None:
        if not self.truncated:
            super().sync_data(fd)
        self.truncated = False
