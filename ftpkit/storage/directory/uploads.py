"""The uploads of a root: which are open here, which can be continued, which were published."""

import contextlib
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from ftpkit.errors import RefusedError, WrongWorkerError
from ftpkit.protocol.digest import digest_of, split_digest
from ftpkit.storage.api import FileInfo, UploadLocks, UploadSpec
from ftpkit.storage.blocks import no_such_upload
from ftpkit.storage.directory.filesystem import (
    DirHandle,
    FileSystem,
    is_hard_linked,
    make_directory,
)
from ftpkit.storage.directory.tree import Tree, no_progress
from ftpkit.storage.directory.upload import (
    DATA,
    JOURNAL,
    DirectoryUpload,
    UploadFactory,
    read_journal,
)
from ftpkit.storage.journal import JournalState
from ftpkit.storage.os_errors import translate_os_errors
from ftpkit.storage.quota import QuotaScope

# The key of an upload and a nonce: several uploads with one key may follow each other.
_IDENTITY: Final = re.compile(r"([0-9a-f]{32})-([0-9a-f]{16})")


class Uploads:
    """Opens each upload once, for as many users as there are, and closes it after the last.

    ``Store`` documents the methods of the same names.

    ``unfinished`` holds a directory for each key, which is named after owner, name, total and
    block size; ``published`` holds the journals of published uploads. ``locks`` keep other
    processes from opening an upload that is open here.
    """

    def __init__(
        self,
        tree: Tree,
        files: FileSystem,
        unfinished: DirHandle,
        published: DirHandle,
        locks: UploadLocks,
    ) -> None:
        self._tree, self._files = tree, files
        self.unfinished, self._published = unfinished, published
        self.locks = locks
        self._factory = UploadFactory(files, self._publish, self._on_release)
        self._lock = threading.Lock()
        self._busy: dict[str, tuple[threading.Lock, int]] = {}
        """The lock of each upload that is being opened or closed, and how many want it."""
        self._open: dict[str, DirectoryUpload] = {}

    def begin(self, spec: UploadSpec, owner: str, block: int, quota: QuotaScope) -> DirectoryUpload:
        key = _key(owner, spec, block)
        with translate_os_errors(spec.name), self._locked(key):
            upload = self._get(key)
        if upload is None:
            # Without the lock: it may take seconds.
            reservation = quota.reserve(spec.name, spec.total or 0)
            try:
                with translate_os_errors(spec.name), self._locked(key):
                    upload = self._get(key)
                    if upload is None:
                        upload = self._create(key, spec, block)
                        reservation.commit()
            finally:
                reservation.cancel()
        upload.quota = quota
        try:
            upload.renew(spec)
        except BaseException:
            upload.release()
            raise
        return upload

    def open(self, identity: str, owner: str, quota: QuotaScope) -> DirectoryUpload:
        if match := _IDENTITY.fullmatch(identity):
            with translate_os_errors(identity), self._locked(match[1]):
                upload = self._get(match[1])
            if upload is not None:
                if upload.id == identity and _key(owner, upload.spec, upload.block) == match[1]:
                    upload.quota = quota
                    return upload
                upload.release()
        raise no_such_upload()

    def abort(self, identity: str, owner: str, quota: QuotaScope) -> None:
        upload = self.open(identity, owner, quota)
        try:
            upload.abort()
            key = _key_of(upload)
            # In one step: a `begin` in between would find what is about to be deleted.
            with translate_os_errors(upload.spec.name), self._locked(key):
                self._open.pop(key, None)
                self._delete(key)
        finally:
            quota.note_deleted(upload.spec.name)
            upload.release()

    def published(self, identity: str, owner: str) -> FileInfo | None:
        match = _IDENTITY.fullmatch(identity)
        if match is None:
            return None
        state = read_journal(self._published, identity)
        if state is None:
            with translate_os_errors(identity), self._locked(match[1]):
                self._recover(match[1])
            state = read_journal(self._published, identity)
        if state is None:
            return None
        spec = UploadSpec(name=state.spec["name"], total=state.spec["total"])
        if _key(owner, spec, state.spec["block"]) != match[1]:
            return None
        return self._publication(state)

    def sweep(self, uploads_s: float, publications_s: float) -> None:
        now = time.time()
        for key, _ in list(self.unfinished.names()):
            with contextlib.suppress(OSError, WrongWorkerError), self._locked(key):
                self._recover(key)
                if key not in self._open and now - self._last_write(key) > uploads_s:
                    self._delete(key)
        for part, _ in list(self._published.names()):
            with contextlib.suppress(OSError):
                if now - self._published.stat(part).st_mtime > publications_s:
                    self._files.unlink(self._published, part)

    def recover(self) -> None:
        """Finish publications that a crash interrupted."""
        for key, _ in list(self.unfinished.names()):
            with contextlib.suppress(OSError):
                self._recover(key)

    def data_statuses(self) -> Iterator[os.stat_result]:
        """Yield the status of each unfinished upload's data."""
        for key, _ in self.unfinished.names():
            with (
                contextlib.suppress(FileNotFoundError, NotADirectoryError),
                self.unfinished.open_directory(key) as directory,
            ):
                yield directory.stat(DATA)

    def close(self) -> None:
        uploads = list(self._open.values())
        self._open.clear()
        for upload in uploads:
            upload.close()

    @contextlib.contextmanager
    def _exclusive(self, key: str) -> Iterator[None]:
        """Have one upload exclusively; opening and closing it may take long, others go on."""
        with self._lock:
            lock, users = self._busy.get(key, (threading.Lock(), 0))
            self._busy[key] = lock, users + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, users = self._busy.pop(key)
                if users > 1:
                    self._busy[key] = lock, users - 1

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Have an upload exclusively, in all processes while it is not open here."""
        with self._exclusive(key):
            if key not in self._open:
                self.locks.acquire(key)
            try:
                yield
            finally:
                if key not in self._open:
                    self.locks.release(key)

    # The methods below are called with the upload held exclusively.

    def _remove(self, key: str) -> None:
        """Note that an upload is no longer open here."""
        if self._open.pop(key, None) is not None:
            self.locks.release(key)

    def _delete(self, key: str) -> None:
        self._tree.purge(self.unfinished, key, no_progress)

    def _get(self, key: str) -> DirectoryUpload | None:
        """Open an upload once more, or again after an earlier session or process closed it."""
        if key not in self._open:
            self._recover(key)
            try:
                directory = self.unfinished.open_directory(key)
            except FileNotFoundError:
                return None
            reopened = self._factory.reopen(directory)
            if reopened is None:
                self._delete(key)
                return None
            self._open[key] = reopened
        self._open[key].users += 1
        return self._open[key]

    def _create(self, key: str, spec: UploadSpec, block: int) -> DirectoryUpload:
        identity, others = f"{key}-{secrets.token_hex(8)}", self.data_statuses()
        try:
            directory = make_directory(self._files, self.unfinished, key, 0o700)
            upload = self._factory.create(directory, identity, spec, block, others)
        except BaseException:
            with contextlib.suppress(OSError):
                self._delete(key)
            raise
        self._open[key] = upload
        upload.users += 1
        return upload

    def _last_write(self, key: str) -> float:
        """Return when an upload was last written to, in seconds since 1970."""
        with self.unfinished.open_directory(key) as directory:
            times = [directory.stat(part).st_mtime for part, _ in directory.names()]
            return max(times, default=directory.status().st_mtime)

    def _recover(self, key: str) -> None:
        """Finish the publication of an upload that has its name already."""
        if key in self._open:
            return
        try:
            directory = self.unfinished.open_directory(key)
        except FileNotFoundError:
            return
        with directory:
            state = read_journal(directory, JOURNAL)
            # Without a journal nothing of it can be used.
            if state is not None:
                if state.prepared is None or not self._was_published(directory, state.spec):
                    return
                self._tree.ensure_durable(state.spec["name"])
                self._files.rename(directory, JOURNAL, self._published, state.spec["id"])
        self._delete(key)

    def _was_published(self, directory: DirHandle, spec: dict[str, Any]) -> bool:
        """Whether a prepared upload has got its name; data that is still here is a leftover."""
        try:
            # After a crash during a rename the file may have both names.
            if is_hard_linked(directory.stat(DATA)):
                return self._tree.has_name(directory, DATA, spec["name"])
        except FileNotFoundError:
            return True
        with contextlib.suppress(FileNotFoundError):
            self._published.stat(spec["id"])
            return True
        return False

    # The methods below are called without it.

    def _publication(self, state: JournalState) -> FileInfo | None:
        if state.published is not None:
            return FileInfo(**state.published)
        if state.prepared is None:
            return None
        # The machine crashed between the rename and the record of it.
        with contextlib.suppress(RefusedError):
            info = self._tree.stat(state.spec["name"])
            digest = state.prepared["content_digest"]
            prepared = state.prepared["total"], state.prepared.get("mtime")
            # Another file may have replaced it since.
            if (info.total, info.mtime) == prepared and info.content_digest in (None, digest):
                return replace(info, content_digest=digest)
        return None

    def _publish(self, upload: DirectoryUpload, content_digest: str) -> FileInfo:
        spec, staged, key = upload.spec, upload.staged, _key_of(upload)
        try:
            info = self._tree.publish(staged.directory, DATA, staged.data, spec, content_digest)
        except BaseException:
            if not staged.has_data():
                # It has its name all the same: a repeated commit finds that out in _recover.
                with self._exclusive(key):
                    self._remove(key)
            raise
        finally:
            # A count in progress may have found it in both places.
            upload.quota.note_deleted(spec.name)
        with self._exclusive(key):
            # The file is published: _recover does later what fails here.
            with contextlib.suppress(OSError):
                self._files.rename(staged.directory, JOURNAL, self._published, upload.id)
                self._files.rmdir(self.unfinished, key)
            self._remove(key)
        return info

    def _on_release(self, upload: DirectoryUpload) -> None:
        key = _key_of(upload)
        with self._exclusive(key):
            upload.users -= 1
            if self._open.get(key) is not upload:
                upload.close()  # it ended: nothing opens it again
            elif not upload.users:
                # Closed first: nothing may open the same files before that.
                upload.close()
                self._remove(key)


def _key(owner: str, spec: UploadSpec, block: int) -> str:
    """Return what all uploads of this owner, name, total and block size share."""
    text = "\0".join([owner, spec.name, str(spec.total), str(block)])
    return split_digest(digest_of(text.encode()))[1].hex()[:32]


def _key_of(upload: DirectoryUpload) -> str:
    return upload.id.partition("-")[0]
