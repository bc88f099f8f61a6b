"""The directory store: files below a root, everything unfinished below ``.ftpkit`` in it."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import partial
from typing import Final, Self

from ftpkit.protocol.names import RESERVED, split_name
from ftpkit.storage.api import FileInfo, Progress, StoreLease, UploadLocks, UploadSpec
from ftpkit.storage.directory.filesystem import DirHandle, FileSystem, make_directory
from ftpkit.storage.directory.listing import list_tree
from ftpkit.storage.directory.locks import LocalUploadLocks, RootLease, join_root, lock_root
from ftpkit.storage.directory.staged_file import FileReader, StagedFile
from ftpkit.storage.directory.tree import Tree, no_progress
from ftpkit.storage.directory.upload import DirectoryUpload
from ftpkit.storage.directory.uploads import Uploads
from ftpkit.storage.directory.usage import declared_bytes, stored_bytes
from ftpkit.storage.quota import UNLIMITED, QuotaScope

log = logging.getLogger("ftpkit.server")

_STAGING: Final = "staging"
_UPLOADS: Final = "uploads"
_PUBLISHED: Final = "published"


class DirectoryStore:
    """Keeps files in a directory, which no other server can use until ``close``.

    ``root`` is made if it is missing; OSError says why it cannot be used. Unless ``durable``,
    acknowledged files survive the death of the process, but not that of the machine. The
    store offers all optional powers of ``ftpkit.storage.api``, whose methods are documented
    there.

    ============================  ==================================================
    ``.ftpkit/staging/``          files that arrive in one piece; emptied at start
    ``.ftpkit/uploads/<key>/``    ``data`` and ``journal`` of an unfinished upload
    ``.ftpkit/published/<id>``    journals of published uploads, for repeated commits
    ============================  ==================================================
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        files: FileSystem | None = None,
        *,
        durable: bool = True,
        lease: RootLease | None = None,
    ) -> None:
        self._files = files or FileSystem(durable=durable)
        self._quota: QuotaScope = UNLIMITED
        with contextlib.ExitStack() as stack:
            self.root = stack.enter_context(self._open_root(os.path.realpath(root)))
            private = stack.enter_context(self._private(self.root, RESERVED))
            _check_owner(private)
            self._root_lock = stack.enter_context(
                join_root(private, lease) if lease else lock_root(private, self._files)
            )
            self._staging = stack.enter_context(self._private(private, _STAGING))
            unfinished = stack.enter_context(self._private(private, _UPLOADS))
            published = stack.enter_context(self._private(private, _PUBLISHED))
            self._tree = Tree(self.root, self._files, private)
            locks = lease.locks if lease else LocalUploadLocks()
            self._uploads = Uploads(self._tree, self._files, unfinished, published, locks)
            if lease:
                part = str(lease.number)
                self._staging = stack.enter_context(self._private(self._staging, part))
            else:
                # What was being deleted must not come back in part.
                self._files.sync_directory(self._staging)
                for part, _ in list(self._staging.names()):
                    self._purge(part)
                self._uploads.recover()
            self._stack = stack.pop_all()

    def _open_root(self, path: str) -> DirHandle:
        """Open the root; make it and its parents, durably, where they are missing."""
        parent, part = os.path.split(path)
        if not os.path.isdir(path):
            with self._open_root(parent) as directory:
                return make_directory(self._files, directory, part)
        # Its maker may have died before the sync; the parent may be unreadable to us.
        with contextlib.suppress(OSError), DirHandle.open(parent) as directory:
            self._files.sync_directory(directory)
        return DirHandle.open(path)

    def _private(self, directory: DirHandle, part: str) -> DirHandle:
        private = make_directory(self._files, directory, part, 0o700)
        # What a file inherits comes from the directory that it is published in.
        self._files.give_nothing(private)
        return private

    def use_locks(self, locks: UploadLocks) -> None:
        self._uploads.locks = locks

    def lease(self, number: int) -> StoreLease:
        open_lease = partial(_open_lease, self.root.path, self._files, number)
        return StoreLease(open_lease, (self._root_lock,))

    def reclaim(self, number: int) -> None:
        self._purge(str(number))

    def _purge(self, part: str) -> None:
        try:
            self._tree.purge(self._staging, part, no_progress)
        except OSError as error:
            log.warning("cannot empty %s: %s", self._staging.path, error)

    def with_quota(self, quota: QuotaScope) -> Self:
        store = copy(self)
        store._quota = quota
        return store

    def close(self) -> None:
        """Checkpoint and close open uploads, and unlock the root."""
        self._uploads.close()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def stat(self, name: str) -> FileInfo:
        return self._tree.stat(name)

    def list_files(self, name: str, *, recursive: bool, after: str | None) -> Iterator[FileInfo]:
        return list_tree(self._tree, name, recursive=recursive, after=after)

    def mkdir(self, name: str) -> None:
        self._tree.mkdir(name)

    def rename(self, name: str, to: str, *, overwrite: bool) -> None:
        try:
            self._tree.rename(name, to, overwrite=overwrite)
        finally:
            # A rename that failed may have happened in part.
            self._quota.note_renamed(name, to)

    def delete(self, name: str, *, recursive: bool, progress: Progress) -> None:
        try:
            self._tree.delete(name, recursive=recursive, trash=self._staging, progress=progress)
        finally:
            self._quota.note_deleted(name)

    def read(self, name: str) -> FileReader:
        return FileReader(name, self._tree.open(name))

    def used_bytes(self, name: str, should_continue: Callable[[], bool]) -> int:
        # Uploads first: one that is published meanwhile counts twice rather than never.
        total = declared_bytes(self._uploads.unfinished, name, should_continue)
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
            self._tree.directory(split_name(name)) as directory,
        ):
            total += stored_bytes(directory, should_continue)
        return total

    def stage(self, spec: UploadSpec, digest: str | None) -> StagedFile:
        self._tree.check_target(spec.name, overwrite=spec.overwrite)
        others = self._uploads.data_statuses()
        return StagedFile(spec, digest, self._staging, self._tree, self._files, others, self._quota)

    def begin(self, spec: UploadSpec, *, owner: str, block: int) -> DirectoryUpload:
        self._tree.check_target(spec.name, overwrite=spec.overwrite)
        return self._uploads.begin(spec, owner, block, self._quota)

    def upload(self, identity: str, *, owner: str) -> DirectoryUpload:
        return self._uploads.open(identity, owner, self._quota)

    def abort(self, identity: str, *, owner: str) -> None:
        self._uploads.abort(identity, owner, self._quota)

    def published(self, identity: str, *, owner: str) -> FileInfo | None:
        return self._uploads.published(identity, owner)

    def sweep(self, *, uploads_s: float, publications_s: float) -> None:
        try:
            self._uploads.sweep(uploads_s, publications_s)
        finally:
            self._quota.note_deleted("")


def _open_lease(
    root: str, files: FileSystem, number: int, descriptors: Sequence[int], locks: UploadLocks
) -> DirectoryStore:
    """Open a root that another process has locked."""
    return DirectoryStore(root, files, lease=RootLease(descriptors[0], number, locks))


def _check_owner(directory: DirHandle) -> None:
    """Refuse journals that another user may have written, in a root that many can write to."""
    if hasattr(os, "geteuid") and directory.status().st_uid not in (os.geteuid(), 0):
        raise PermissionError(
            f"{directory.path} belongs to another user: change its owner, or serve another root"
        )
