"""A store as one sees it who may not fill the disk."""

from collections.abc import Iterator

from ftpkit.storage.api import (
    FileInfo,
    Progress,
    QuotaAwareStore,
    Reader,
    Staged,
    Upload,
    UploadSpec,
)
from ftpkit.storage.quota import QuotaScope


class QuotaStore:
    """Does with ``store`` what it is asked for, as far as there is ``quota``, and tells it."""

    def __init__(self, store: QuotaAwareStore, quota: QuotaScope) -> None:
        self._store, self._quota = store, quota

    def stat(self, name: str) -> FileInfo:
        """Describe a file or directory."""
        return self._store.stat(name)

    def list_files(self, name: str, *, recursive: bool, after: str | None) -> Iterator[FileInfo]:
        """Yield what is in a directory."""
        return self._store.list_files(name, recursive=recursive, after=after)

    def mkdir(self, name: str) -> None:
        """Make a directory and its parents."""
        self._store.mkdir(name)

    def rename(self, name: str, to: str, *, overwrite: bool) -> None:
        """Move a file or directory."""
        try:
            self._store.rename(name, to, overwrite=overwrite)
        finally:
            # What failed may have happened in part.
            self._quota.note_renamed(name, to)

    def delete(self, name: str, *, recursive: bool, progress: Progress) -> None:
        """Delete a file or directory."""
        try:
            self._store.delete(name, recursive=recursive, progress=progress)
        finally:
            self._quota.note_deleted(name)

    def read(self, name: str) -> Reader:
        """Open a file."""
        return self._store.read(name)

    def stage(self, spec: UploadSpec, digest: str | None) -> Staged:
        """Open a place for a file that arrives in one piece, if there is room for it."""
        return self._store.stage(spec, digest, self._quota)

    def begin(self, spec: UploadSpec, *, owner: str, block: int) -> Upload:
        """Continue an upload, or open one if there is room for it."""
        return self._store.begin(spec, owner=owner, block=block, quota=self._quota)

    def offer_basis(self, upload: Upload, algorithm: str, progress: Progress) -> None:
        """Offer the blocks of the file that stands under the upload's name, if there is one."""
        self._store.offer_basis(upload, algorithm, progress)

    def upload(self, identity: str, *, owner: str) -> Upload:
        """Take hold of an upload that was begun."""
        return self._store.upload(identity, owner=owner, quota=self._quota)

    def abort(self, identity: str, *, owner: str) -> None:
        """Throw an unfinished upload away."""
        self._store.abort(identity, owner=owner, quota=self._quota)

    def published(self, identity: str, *, owner: str) -> FileInfo | None:
        """Return what the first ``commit`` of this upload answered."""
        return self._store.published(identity, owner=owner)

    def sweep(self, *, uploads_s: float, publications_s: float) -> None:
        """Remove what has expired."""
        try:
            self._store.sweep(uploads_s=uploads_s, publications_s=publications_s)
        finally:
            self._quota.note_deleted("")

    def close(self) -> None:
        """Close the store."""
        self._store.close()
