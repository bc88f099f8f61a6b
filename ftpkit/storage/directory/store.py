"""The directory store: files under a root, everything unfinished under ``.ftpkit`` in it."""

import contextlib
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any, Final, Self

from ftpkit.errors import Code, RefusedError, WrongWorkerError
from ftpkit.osapi import files as os_files
from ftpkit.protocol.digest import digest_of, split_digest
from ftpkit.protocol.names import RESERVED, split_name
from ftpkit.storage.api import FileInfo, Progress, StoreLease, UploadLocks, UploadSpec
from ftpkit.storage.directory import journal
from ftpkit.storage.directory.filesystem import DirHandle, FileSystem, is_hard_linked
from ftpkit.storage.directory.locks import LocalUploadLocks, RootLease
from ftpkit.storage.directory.staged_file import FileReader, StagedFile
from ftpkit.storage.directory.tree import Tree
from ftpkit.storage.directory.upload import (
    DATA,
    JOURNAL,
    DirectoryUpload,
    create_upload,
    read_journal,
    reopen_upload,
)
from ftpkit.storage.directory.usage import promised_in, stored_in
from ftpkit.storage.os_errors import translate_os_errors
from ftpkit.storage.quota import UNLIMITED, QuotaScope

_LOCK: Final = "lock"
_STAGING: Final = "staging"
_UPLOADS: Final = "uploads"
_PUBLISHED: Final = "published"

# The key tells whose upload of what it is, the nonce which of several in a row.
_IDENTITY: Final = re.compile(r"([0-9a-f]{32})-([0-9a-f]{16})")


class DirectoryStore:
    """Keeps files in a directory, which no other server can use until ``close``.

    ``root`` is made if it is missing; OSError says why it cannot be used. Unless ``durable``,
    acknowledged files survive the death of the process, but not that of the machine. The
    store offers all optional powers of ``ftpkit.storage.api``.

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
        self._locks: UploadLocks = lease.locks if lease else LocalUploadLocks()
        self._lock = threading.Lock()
        self._open: dict[str, tuple[DirectoryUpload, int]] = {}
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self.root = stack.enter_context(self._open_root(os.path.realpath(root)))
            self._private = stack.enter_context(self._make(self.root, RESERVED))
            _check_owner(self._private)
            self._root_lock = stack.enter_context(self._shared(lease) if lease else self._alone())
            self._staging = stack.enter_context(self._make(self._private, _STAGING))
            self._uploads = stack.enter_context(self._make(self._private, _UPLOADS))
            self._published = stack.enter_context(self._make(self._private, _PUBLISHED))
            self._tree = Tree(self.root, self._files, self._private)
            if lease:
                part = str(lease.number)
                self._staging = stack.enter_context(self._make(self._staging, part))
            else:
                # What was being deleted must not come back in part.
                self._files.sync_directory(self._staging)
                for part, _ in list(self._staging.names()):
                    with contextlib.suppress(OSError):  # nobody sees what has to stay
                        self._tree.purge(self._staging, part, _ignore)
                for key, _ in list(self._uploads.names()):
                    with contextlib.suppress(OSError):
                        self._recover(key)
            self._stack = stack.pop_all()

    def _open_root(self, path: str) -> DirHandle:
        """Open the root; it and its parents are made, durably, where they are missing."""
        parent, part = os.path.split(path)
        if not os.path.isdir(path):
            with self._open_root(parent) as directory:
                return self._make(directory, part, 0o777)
        # Who made it may have died before the sync; we need not be allowed to look there.
        with contextlib.suppress(OSError), DirHandle.open(parent) as directory:
            self._files.sync_directory(directory)
        return DirHandle.open(path)

    def _make(self, directory: DirHandle, part: str, mode: int = 0o700) -> DirHandle:
        with contextlib.suppress(FileExistsError):
            self._files.mkdir(directory, part, mode)
        # Also where it exists: who made it may have died before the sync.
        self._files.sync_directory(directory)
        return directory.open_directory(part)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[int]:
        """Keep other servers off this root: two would not know of each other's uploads."""
        with contextlib.suppress(FileExistsError):
            os.close(self._files.create(self._private, _LOCK))
        fd = self._private.open_file(_LOCK, write=True, hard_linked=True)
        try:
            with os_files.lock(fd) as alone:
                if not alone:
                    raise BlockingIOError(f"another server uses {self.root.path}")
                yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _shared(self, lease: RootLease) -> Iterator[int]:
        """Help to keep other servers off this root, if it is still the one that was locked."""
        try:
            if not os.path.samestat(os.fstat(lease.lock), self._private.stat(_LOCK)):
                raise FileNotFoundError(f"{self.root.path} is not what it was")
            yield lease.lock
        finally:
            os.close(lease.lock)

    def use_locks(self, locks: UploadLocks) -> None:
        """Lock uploads in ``locks`` from now on; no upload may be open."""
        self._locks = locks

    def lease(self, number: int) -> StoreLease:
        """Return what the process ``number`` needs to open the same root."""
        return StoreLease(
            partial(_open_lease, self.root.path, self._files, number), (self._root_lock,)
        )

    def reclaim(self, number: int) -> None:
        """Delete what the process ``number``, which has ended, left in staging."""
        with contextlib.suppress(OSError):  # what has to stay is invisible
            self._tree.purge(self._staging, str(number), _ignore)

    def with_quota(self, quota: QuotaScope) -> Self:
        """Return the same store, with every change reserved from and reported to ``quota``."""
        store = copy(self)
        store._quota = quota
        return store

    def close(self) -> None:
        """Checkpoint and close what is open, and give the root free."""
        with self._lock:
            uploads = [upload for upload, _ in self._open.values()]
            self._open.clear()
        for upload in uploads:
            upload.close()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # Files and directories by name

    def stat(self, name: str) -> FileInfo:
        """Describe a file or directory."""
        return self._tree.stat(name)

    def list_files(self, name: str, *, recursive: bool, after: str | None) -> Iterator[FileInfo]:
        """Yield what is in a directory, in byte order of full names, behind ``after``."""
        return self._tree.list_files(name, recursive=recursive, after=after)

    def mkdir(self, name: str) -> None:
        """Make a directory and its parents."""
        self._tree.mkdir(name)

    def rename(self, name: str, to: str, *, overwrite: bool) -> None:
        """Rename a file or directory."""
        try:
            self._tree.rename(name, to, overwrite=overwrite)
        finally:
            # A rename that failed may have happened in part.
            self._quota.note_renamed(name, to)

    def delete(self, name: str, *, recursive: bool, progress: Progress) -> None:
        """Delete a file or directory."""
        try:
            self._tree.delete(name, recursive=recursive, trash=self._staging, progress=progress)
        finally:
            self._quota.note_deleted(name)

    def read(self, name: str) -> FileReader:
        """Open a file; it stays the same file whatever happens to its name."""
        return FileReader(name, self._tree.open(name))

    def used_bytes(self, name: str, go_on: Callable[[], bool]) -> int:
        """Return how many bytes are stored under ``name``, or promised to unfinished uploads.

        It looks as long as ``go_on`` is true. OSError says that it was moved meanwhile.
        """
        # The unfinished first: what gets its name meanwhile counts twice rather than never.
        total = promised_in(self._uploads, name, go_on)
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
            self._tree.directory(split_name(name)) as directory,
        ):
            total += stored_in(directory, go_on)
        return total

    # Files that arrive

    def stage(self, spec: UploadSpec, digest: str | None) -> StagedFile:
        """Open a place for a file that arrives in one piece."""
        self._tree.check_target(spec.name, overwrite=spec.overwrite)
        return StagedFile(
            spec, digest, self._staging, self._tree, self._files, self._unfinished(), self._quota
        )

    def begin(self, spec: UploadSpec, *, owner: str, block: int) -> DirectoryUpload:
        """Open an upload, or continue the owner's unfinished one of this name, total, block."""
        self._tree.check_target(spec.name, overwrite=spec.overwrite)
        key = _key(owner, spec, block)
        upload = self._continue(key, spec)
        if upload is None:
            # Not with the lock held: it may take long.
            reservation = self._quota.reserve(spec.name, spec.total or 0)
            try:
                with translate_os_errors(spec.name), self._lock, self._claimed(key):
                    upload = self._hold(key) or self._reopen(key)
                    if upload is None:
                        upload = self._create(key, spec, block)
                        reservation.commit()
            finally:
                reservation.cancel()
        upload.quota = self._quota
        try:
            upload.renew(spec)
        except BaseException:
            upload.release()
            raise
        return upload

    def _continue(self, key: str, spec: UploadSpec) -> DirectoryUpload | None:
        with translate_os_errors(spec.name), self._lock, self._claimed(key):
            return self._hold(key) or self._reopen(key)

    def upload(self, identity: str, *, owner: str) -> DirectoryUpload:
        """Take hold of an upload that was begun."""
        match = _IDENTITY.fullmatch(identity)
        if match is not None:
            with translate_os_errors(identity), self._lock, self._claimed(match[1]):
                upload = self._hold(match[1]) or self._reopen(match[1])
            if upload is not None:
                if upload.id == identity and _key(owner, upload.spec, upload.block) == match[1]:
                    upload.quota = self._quota
                    return upload
                upload.release()
        raise RefusedError(Code.NOT_FOUND, "there is no such unfinished upload")

    def abort(self, identity: str, *, owner: str) -> None:
        """Throw an unfinished upload away."""
        upload = self.upload(identity, owner=owner)
        try:
            upload.abort()
            key = identity.partition("-")[0]
            # In one step: a begin in between would find what is about to be removed.
            with translate_os_errors(upload.spec.name), self._lock, self._claimed(key):
                self._open.pop(key, None)
                self._tree.purge(self._uploads, key, _ignore)
        finally:
            self._quota.note_deleted(upload.spec.name)
            upload.release()

    def published(self, identity: str, *, owner: str) -> FileInfo | None:
        """Return what the first ``commit`` of this upload answered."""
        match = _IDENTITY.fullmatch(identity)
        if match is None:
            return None
        state = read_journal(self._published, identity)
        if state is None or state.spec is None:
            with translate_os_errors(identity), self._lock, self._claimed(match[1]):
                self._recover(match[1])
            state = read_journal(self._published, identity)
        if state is None or state.spec is None or _owner_key(state.spec, owner) != match[1]:
            return None
        return self._publication(state)

    def _publication(self, state: journal.JournalState) -> FileInfo | None:
        if state.published is not None:
            return FileInfo(**state.published)
        if state.spec is None or state.prepared is None:
            return None
        # The machine died between the rename and the answer.
        with contextlib.suppress(RefusedError):
            info = self._tree.stat(state.spec["name"])
            digest = state.prepared["content_digest"]
            # The name may have been given to another file since.
            if (info.total, info.mtime) == (
                state.prepared["total"],
                state.prepared.get("mtime"),
            ) and info.content_digest in (None, digest):
                return replace(info, content_digest=digest)
        return None

    def sweep(self, *, uploads_s: float, publications_s: float) -> None:
        """Remove unfinished uploads that nobody touched for ``uploads_s``, and old answers."""
        now = time.time()
        for key, _ in list(self._uploads.names()):
            with self._lock, contextlib.suppress(OSError, WrongWorkerError), self._claimed(key):
                self._recover(key)
                if key not in self._open and now - self._touched(key) > uploads_s:
                    self._tree.purge(self._uploads, key, _ignore)
        for part, _ in list(self._published.names()):
            with contextlib.suppress(OSError):
                if now - self._published.stat(part).st_mtime > publications_s:
                    self._files.unlink(self._published, part)
        self._quota.note_deleted("")

    def _touched(self, key: str) -> float:
        """Return when something was last written to an upload, in seconds since 1970."""
        with self._uploads.open_directory(key) as directory:
            times = [directory.stat(part).st_mtime for part, _ in directory.names()]
            return max(times, default=directory.status().st_mtime)

    # Uploads on the disk; all with the lock held

    @contextlib.contextmanager
    def _claimed(self, key: str) -> Iterator[None]:
        """Keep other processes off an upload until the block ends, and while it is open here."""
        if key not in self._open:
            self._locks.acquire(key)
        try:
            yield
        finally:
            if key not in self._open:
                self._locks.release(key)

    def _forget(self, key: str) -> None:
        """Let any process open an upload again that is not open here any more."""
        if self._open.pop(key, None) is not None:
            self._locks.release(key)

    def _hold(self, key: str) -> DirectoryUpload | None:
        if key not in self._open:
            return None
        upload, holders = self._open[key]
        self._open[key] = upload, holders + 1
        return upload

    def _create(self, key: str, spec: UploadSpec, block: int) -> DirectoryUpload:
        identity = f"{key}-{secrets.token_hex(8)}"
        try:
            upload = create_upload(
                self._make(self._uploads, key),
                self._files,
                identity,
                spec,
                block,
                publish=self._publish,
                on_release=self._on_release,
                beside=self._unfinished(),
            )
        except BaseException:
            with contextlib.suppress(OSError):
                self._tree.purge(self._uploads, key, _ignore)
            raise
        self._open[key] = upload, 1
        return upload

    def _reopen(self, key: str) -> DirectoryUpload | None:
        """Open what an earlier conversation or server left, if it can be continued."""
        self._recover(key)
        try:
            directory = self._uploads.open_directory(key)
        except FileNotFoundError:
            return None
        upload = reopen_upload(
            directory, self._files, publish=self._publish, on_release=self._on_release
        )
        if upload is None:
            self._tree.purge(self._uploads, key, _ignore)
            return None
        self._open[key] = upload, 1
        return upload

    def _unfinished(self) -> Iterator[os.stat_result]:
        """Yield the status of each unfinished upload's data."""
        for key, _ in self._uploads.names():
            with (
                contextlib.suppress(FileNotFoundError, NotADirectoryError),
                self._uploads.open_directory(key) as directory,
            ):
                yield directory.stat(DATA)

    def _recover(self, key: str) -> None:
        """If this upload was published and only the paper work is missing, do that."""
        if key in self._open:
            return
        try:
            directory = self._uploads.open_directory(key)
        except FileNotFoundError:
            return
        with directory:
            state = read_journal(directory, JOURNAL)
            # Without a journal nothing of it can be wanted any more.
            if state is not None:
                if state.spec is None or state.prepared is None:
                    return
                if not self._was_published(directory, state.spec):
                    return
                self._tree.ensure_durable(state.spec["name"])
                self._files.rename(directory, JOURNAL, self._published, state.spec["id"])
        self._tree.purge(self._uploads, key, _ignore)

    def _was_published(self, directory: DirHandle, spec: dict[str, Any]) -> bool:
        """Whether a prepared upload has got its name; data that is still here is a leftover."""
        try:
            # After a crash within a move a file may have both names.
            if is_hard_linked(directory.stat(DATA)):
                return self._tree.has_name(directory, DATA, spec["name"])
        except FileNotFoundError:
            return True
        with contextlib.suppress(FileNotFoundError):
            self._published.stat(spec["id"])
            return True
        return False

    # What uploads call, without the lock

    def _publish(self, upload: DirectoryUpload, content_digest: str) -> FileInfo:
        spec = upload.spec
        key = upload.id.partition("-")[0]
        try:
            info = self._tree.publish(
                upload.directory,
                DATA,
                spec.name,
                fd=upload.fileno(),
                overwrite=spec.overwrite,
                content_digest=content_digest,
            )
        except BaseException:
            if not upload.has_data():
                # It was moved all the same: for a repeated commit _settle will find that out.
                with self._lock:
                    self._forget(key)
            raise
        finally:
            # A count that is under way may find it at both places.
            upload.quota.note_deleted(spec.name)
        with self._lock:
            # The file stands: what fails here, _settle does later.
            with contextlib.suppress(OSError):
                self._files.rename(upload.directory, JOURNAL, self._published, upload.id)
                self._files.rmdir(self._uploads, key)
            self._forget(key)
        return info

    def _on_release(self, upload: DirectoryUpload) -> None:
        key = upload.id.partition("-")[0]
        with self._lock:
            held, holders = self._open.get(key, (None, 0))
            if held is not upload:
                upload.close()  # nobody can come back to it
                return
            if holders > 1:
                self._open[key] = upload, holders - 1
                return
            # Nobody may open the same files anew before these are closed.
            upload.close()
            self._forget(key)


def _open_lease(
    root: str, files: FileSystem, number: int, descriptors: Sequence[int], locks: UploadLocks
) -> DirectoryStore:
    """Open a root that another process has opened."""
    return DirectoryStore(root, files, lease=RootLease(descriptors[0], number, locks))


def _check_owner(directory: DirHandle) -> None:
    """Refuse to go by what another user has written down, in a root where many may write."""
    if hasattr(os, "geteuid") and directory.status().st_uid not in (os.geteuid(), 0):
        raise PermissionError(f"{directory.path} belongs to another user")


def _key(owner: str, spec: UploadSpec, block: int) -> str:
    """Return what is the same for all uploads of this owner, name, total and block."""
    text = "\0".join([owner, spec.name, str(spec.total), str(block)])
    return split_digest(digest_of(text.encode()))[1].hex()[:32]


def _owner_key(spec: dict[str, Any], owner: str) -> str:
    return _key(owner, UploadSpec(name=spec["name"], total=spec["total"]), spec["block"])


def _ignore(done: int, total: int) -> None:
    """Follow no progress."""
