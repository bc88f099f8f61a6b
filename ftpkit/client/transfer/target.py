"""Where a download is staged and published on the local file system."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Final, Self

from ftpkit.client.transfer.blocks import BLOCK
from ftpkit.errors import Code, LocalFileError, RefusedError
from ftpkit.osapi import files as os_files
from ftpkit.protocol.digest import digest_of, split_digest
from ftpkit.storage.api import FileInfo, UploadSpec
from ftpkit.storage.directory.filesystem import DirHandle, FileSystem
from ftpkit.storage.directory.tree import Tree
from ftpkit.storage.directory.upload import (
    DATA,
    JOURNAL,
    DirectoryUpload,
    UploadFactory,
    read_journal,
)

MARK: Final = ".ftpkit"
# Most file systems limit a name to so many bytes.
_MAX_NAME: Final = 255
_MAX_PREFIX: Final = 200


class DownloadTarget:
    """Stages the blocks of a download in ``.NAME.part/`` beside ``path``, and publishes them.

    A directory of that name that no download made is left alone: then, and where the name would
    be too long, the name ends in a hash. The directory of a download contains the file ``MARK``.

    The staged blocks of a failed download are used by the next one. ``path`` is replaced
    atomically if ``overwrite`` is set; else it must not exist. Methods raise LocalFileError.
    """

    def __init__(self, path: str, *, overwrite: bool) -> None:
        self._path, self._overwrite = path, overwrite
        self._files = FileSystem()
        self._uploads = UploadFactory(self._files, self._publish, DirectoryUpload.close)
        self._upload: DirectoryUpload | None = None
        # A symbolic link stays, and the file that it points to is replaced.
        directory, self._base = os.path.split(os.path.realpath(path))
        if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
            raise LocalFileError(f"cannot write {path!r}: not a regular file")
        with contextlib.ExitStack() as stack, self.errors():
            self._directory = stack.enter_context(DirHandle.open(directory))
            self._tree = Tree(self._directory, self._files)
            self._tree.check_target(self._base, overwrite=overwrite)
            self._part, self._stage = self._open_stage()
            stack.enter_context(self._stage)
            stack.enter_context(self._lock())
            self._stack = stack.pop_all()

    @property
    def has_blocks(self) -> bool:
        """Whether an earlier download has left blocks to resume with."""
        state = read_journal(self._stage, JOURNAL)
        return state is not None and bool(state.blocks)

    def stage(self, identity: str, spec: UploadSpec) -> DirectoryUpload:
        """Open the staged blocks of ``identity``; blocks of anything else are removed."""
        with self.errors():
            if self._upload is None:
                directory = self._directory.open_directory(self._part)
                self._upload = self._uploads.reopen(directory)
            if self._upload is None or self._upload.id != identity:
                self.drop()
                directory = self._directory.open_directory(self._part)
                self._upload = self._uploads.create(directory, identity, spec, BLOCK)
            return self._upload

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn an error of the local file system into a LocalFileError."""
        try:
            yield
        except RefusedError as refusal:
            if refusal.code is Code.EXISTS:
                raise LocalFileError(
                    f"{self._path!r} already exists; leave out --no-overwrite to replace it"
                ) from refusal
            raise LocalFileError(f"cannot write {self._path!r}: {refusal}") from refusal
        except OSError as error:
            reason = error.strerror or str(error)
            raise LocalFileError(f"cannot write {self._path!r}: {reason}") from error

    def drop(self) -> None:
        self._close_upload()
        self._empty()

    def close(self) -> None:
        """Close it; blocks that the next download can use are kept."""
        self._close_upload()
        if not self.has_blocks:
            with contextlib.suppress(OSError):
                self._empty()
                self._unlink(MARK)
                self._files.rmdir(self._directory, self._part)
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _close_upload(self) -> None:
        if self._upload is not None:
            self._upload.close()
            self._upload = None

    def _publish(self, upload: DirectoryUpload, content_digest: str) -> FileInfo:
        staged = upload.staged
        spec = replace(upload.spec, name=self._base, overwrite=self._overwrite)
        info = self._tree.publish(staged.directory, DATA, staged.data, spec, content_digest)
        self._empty()
        return info

    def _open_stage(self) -> tuple[str, DirHandle]:
        """Open the directory of an earlier download to this target, or make one."""
        for part in _stage_names(self._base):
            made = False
            with contextlib.suppress(FileExistsError):
                self._files.mkdir(self._directory, part, 0o700)
                made = True
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                stage = self._directory.open_directory(part)
                if made:
                    os.close(self._files.create(stage, MARK))
                if made or _is_marked(stage):
                    return part, stage
                stage.close()
        raise LocalFileError(f"cannot stage {self._path!r}: no download made {part!r}; rename it")

    def _empty(self) -> None:
        """Remove the files of the upload, and nothing else."""
        self._unlink(DATA)
        self._unlink(JOURNAL)

    def _unlink(self, part: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.unlink(self._stage, part)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        if self._stage.dir_fd is None:
            yield
            return
        with os_files.lock(self._stage.dir_fd) as locked:
            if locked is False:
                raise LocalFileError(f"another download to {self._path!r} is running")
            yield


def _stage_names(base: str) -> list[str]:
    """Return the names that the directory of a download to ``base`` may have."""
    plain = f".{base}.part"
    start = os.fsencode(base)[:_MAX_PREFIX].decode(errors="ignore")
    digest = split_digest(digest_of(os.fsencode(base)))[1].hex()[:32]
    hashed = f".{start}.{digest}.part"
    return [plain, hashed] if len(os.fsencode(plain)) <= _MAX_NAME else [hashed]


def _is_marked(stage: DirHandle) -> bool:
    """Whether a download made this directory; older versions left only a journal in it."""
    with contextlib.suppress(FileNotFoundError):
        stage.stat(MARK)
        return True
    with contextlib.suppress(OSError):
        state = read_journal(stage, JOURNAL)
        return state is not None and state.spec is not None
    return False
