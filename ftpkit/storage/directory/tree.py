"""The tree of published files: names resolved part by part, changes made durable."""

import contextlib
import errno
import logging
import os
import secrets
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.fields import nearest_time
from ftpkit.protocol.names import split_name
from ftpkit.storage.api import FileInfo, Progress, UploadSpec
from ftpkit.storage.directory.filesystem import (
    DirHandle,
    FileSystem,
    HiddenFileError,
    digest_xattr,
    is_hard_linked,
    make_directory,
)
from ftpkit.storage.directory.trash import Undeletable, purge
from ftpkit.storage.os_errors import translate_os_errors
from ftpkit.storage.quota import UNLIMITED, QuotaScope

# What link() raises on disks without hard links.
_NO_HARD_LINKS: Final = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}

# A directory that is not remembered only costs another sync.
_MAX_DURABLE: Final = 4096

# More deletions of one directory during one call are no accident.
_MAX_ATTEMPTS: Final = 32

log = logging.getLogger("ftpkit.server")

_KINDS: Final = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link"}


def no_progress(done: int, total: int) -> None:
    """Report no progress."""


def file_info(name: str, status: os.stat_result, content_digest: str | None = None) -> FileInfo:
    """Describe what has the name ``name``.

    The version holds the inode, so that a replaced file differs, and the time of change, so
    that an inode that is used again differs too.
    """
    kind = _KINDS.get(stat.S_IFMT(status.st_mode), "other")
    version = f"{status.st_ino:x}-{status.st_ctime_ns:x}-{status.st_mtime_ns:x}-{status.st_size:x}"
    return FileInfo(
        name=name,
        kind=kind,
        total=status.st_size if kind == "file" else 0,
        mtime=nearest_time(status.st_mtime_ns),
        version=version,
        mode=status.st_mode & 0o777,
        content_digest=content_digest,
    )


class Tree:
    """The files and directories below ``root``, by name, but for what is in ``private``."""

    def __init__(
        self, root: DirHandle, files: FileSystem, private: DirHandle | None = None
    ) -> None:
        self._root = root
        self._files = files
        # Compared by inode: a case-insensitive disk finds it by other names, and it may be moved.
        self._private = private.status() if private is not None else None
        self._mount = (private or root).mount()
        # Directories, by parent and name, whose names are known to be on stable storage.
        self._durable = set[tuple[int, int, str]]()

    @contextlib.contextmanager
    def directory(
        self, parts: Sequence[str], *, make: bool = False, nearest: bool = False
    ) -> Iterator[DirHandle]:
        """Hold the directory with the path ``parts`` open.

        ``make`` makes missing ones; ``nearest`` stops above the first one that is missing.
        """
        current = self._root
        try:
            for part in parts:
                try:
                    below = self._descend(current, part, make=make)
                except HiddenFileError:
                    raise
                except FileNotFoundError:
                    if nearest:
                        break
                    raise
                if current is not self._root:
                    current.close()
                current = below
                if self.is_private(current.status()):
                    raise HiddenFileError(part)
            yield current
        finally:
            if current is not self._root:
                current.close()

    def is_private(self, status: os.stat_result) -> bool:
        """Whether this is the status of the private directory."""
        return self._private is not None and os.path.samestat(status, self._private)

    def _descend(self, directory: DirHandle, part: str, *, make: bool) -> DirHandle:
        if not make:
            return directory.open_directory(part)
        status = directory.status()
        key = status.st_dev, status.st_ino, part
        if key in self._durable:
            with contextlib.suppress(FileNotFoundError):
                return directory.open_directory(part)
            self._durable.discard(key)
        below = make_directory(self._files, directory, part)
        if len(self._durable) >= _MAX_DURABLE:
            self._durable.clear()
        self._durable.add(key)
        return below

    def stat(self, name: str) -> FileInfo:
        """Describe a file or directory; symbolic links and special files are not found."""
        with translate_os_errors(name):
            *parents, last = split_name(name) or [""]
            with self.directory(parents) as directory:
                status = directory.stat(last) if last else directory.status()
                if self.is_private(status):
                    raise HiddenFileError(last)
                if stat.S_ISDIR(status.st_mode):
                    return file_info(name, status)
                fd = directory.open_file(last)
            with open(fd, "rb", buffering=0):
                status = os.fstat(fd)
                return file_info(name, status, digest_xattr(fd, status))

    def mkdir(self, name: str) -> None:
        parts = split_name(name)
        with translate_os_errors(name):
            for _ in range(_MAX_ATTEMPTS):
                with _retry_vanished(), self.directory(parts, make=True) as directory:
                    if self._is_in_place(directory, parts):
                        return
        raise _deleted_meanwhile(name)

    def open(self, name: str) -> int:
        """Open a file for reading; return its descriptor."""
        *parents, last = split_name(name)
        with translate_os_errors(name), self.directory(parents) as directory:
            return directory.open_file(last)

    def ensure_durable(self, name: str) -> None:
        """Bring a name to stable storage, if it exists: its maker may have died before the sync."""
        *parents, last = split_name(name)
        with contextlib.suppress(RefusedError):
            with translate_os_errors(name), self.directory(parents) as directory:
                directory.stat(last)
            with translate_os_errors(name), self.directory(parents, make=True) as directory:
                self._files.sync_directory(directory)

    def check_target(self, name: str, *, overwrite: bool) -> None:
        """Raise at the start of an upload what ``publish`` would raise at its end."""
        *parents, last = split_name(name)
        with translate_os_errors(name), self.directory(parents, nearest=True) as directory:
            if self._is_in_place(directory, parents):
                _check_replaceable(directory, last, overwrite=overwrite)
            directory.check_writable()
            if directory.mount() != self._mount:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    def publish(
        self,
        source: DirHandle,
        part: str,
        fd: int,
        spec: UploadSpec,
        content_digest: str,
        quota: QuotaScope = UNLIMITED,
    ) -> FileInfo:
        """Rename a complete file from ``source`` to its name, atomically and durably.

        ``quota`` is notified of a file that it replaced. ``fd`` is a descriptor of the file, which
        a moment later may have been replaced under its name.
        """

        def place(directory: DirHandle, last: str) -> None:
            if _is_same_file(source, part, directory, last):
                # An earlier attempt ended between link and unlink.
                self._files.unlink(source, part)
                self._files.sync_directory(directory)
                return
            replaced = _check_replaceable(directory, last, overwrite=spec.overwrite)
            self._files.inherit(fd, os.path.join(source.path, part), directory, spec.mode)
            self._move(source, part, directory, last, overwrite=spec.overwrite)
            if replaced:
                quota.note_deleted(spec.name)

        with translate_os_errors(spec.name):
            self._move_in(source, part, spec.name, place)
            return file_info(spec.name, os.fstat(fd), content_digest)

    def rename(self, name: str, to: str, *, overwrite: bool) -> None:
        if name != to and self._finish_move(name, to):
            return
        self.stat(name)
        *parents, last = split_name(name)
        if split_name(to)[: len(parents) + 1] == [*parents, last] and to != name:
            raise RefusedError(Code.BAD_REQUEST, "a directory cannot be moved into itself")
        with contextlib.ExitStack() as stack:
            with translate_os_errors(name):
                source = stack.enter_context(self.directory(parents))

            def place(target: DirHandle, to_last: str) -> None:
                is_directory = stat.S_ISDIR(source.stat(last).st_mode)
                if not is_directory or not overwrite:
                    _check_replaceable(target, to_last, overwrite=overwrite)
                else:
                    _check_known(target, to_last)
                # The system replaces only an empty directory, so a race loses nothing.
                try:
                    self._move(source, last, target, to_last, overwrite=overwrite or is_directory)
                except OSError as error:
                    if not is_directory or not _is_unsupported(error, source, target):
                        raise
                    self._make_empty(target, to_last)
                    self._move_pieces([*parents, last], split_name(to))
                self._files.sync_directory(source)
                if is_directory:
                    self._durable.clear()

            with translate_os_errors(to):
                self._move_in(source, last, to, place)

    def _make_empty(self, directory: DirHandle, part: str) -> None:
        """Make an empty directory, or raise OSError where there is anything else."""
        with make_directory(self._files, directory, part) as made:
            if any(made.names()):
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), part)

    def _move_pieces(self, parts: list[str], to: list[str]) -> None:
        """Rename what is in a directory one by one, where its file system cannot rename it whole.

        At every moment each file has one of both names.
        """
        order = deque[list[str]]([[]])
        emptied = list[list[str]]()
        while order:
            below = order.popleft()
            with (
                self.directory([*parts, *below]) as source,
                self.directory([*to, *below], make=True) as target,
            ):
                self._files.set_directory_mode(target, source.status().st_mode)
                for inner, is_directory in list(source.names()):
                    try:
                        self._files.rename(source, inner, target, inner)
                    except OSError as error:
                        if not is_directory or not _is_unsupported(error, source, target):
                            raise
                        order.append([*below, inner])
                self._files.sync_directory(target)
                self._files.sync_directory(source)
            emptied.append([*parts, *below])
        for *above, last in reversed(emptied):
            with self.directory(above) as directory:
                self._files.rmdir(directory, last)
                self._files.sync_directory(directory)

    def _move_in(
        self, source: DirHandle, part: str, name: str, place: Callable[[DirHandle, str], None]
    ) -> None:
        """Have ``place`` rename ``part`` of ``source`` to ``name``, whose parents are made.

        It gets the directory of ``name``, which others may move or delete at any time. It is
        called again if the directory was deleted before ``place`` returned: what it put there is
        first taken back. The lock of the directory keeps ``purge`` waiting for that.
        """
        *parents, last = split_name(name)
        status, placed = source.stat(part), False
        for _ in range(_MAX_ATTEMPTS):
            with (
                _retry_vanished(),
                self.directory(parents, make=True) as target,
                target.locked(shared=True) if parents else contextlib.nullcontext(),
            ):
                if not self._is_in_place(target, parents):
                    continue
                place(target, last)
                placed = True
                if self._is_in_place(target, parents) or not self._is_deleted(target):
                    return
                if not os.path.samestat(target.stat(last), status):
                    return  # a newer file has replaced it
                self._move(target, last, source, part, overwrite=False)
            if not _exists(source, part):
                break
        if not placed:
            source.stat(part)
        raise _deleted_meanwhile(name)

    def _is_in_place(self, directory: DirHandle, parts: Sequence[str]) -> bool:
        """Whether an open directory still has the path ``parts``."""
        if not parts:
            return True
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return os.path.samestat(self._root.stat(os.path.join(*parts)), directory.status())
        return False

    def _is_deleted(self, directory: DirHandle) -> bool:
        """Whether an open directory is in the trash, and not only moved to another name."""
        if self._private is None:
            return False
        root, current = self._root.status(), directory.open_directory(".")
        try:
            while not os.path.samestat(status := current.status(), root):
                if self.is_private(status):
                    return True
                above = current.parent()
                current.close()
                current = above
                if os.path.samestat(current.status(), status):  # the top of all
                    break
        finally:
            current.close()
        return False

    def _finish_move(self, name: str, to: str) -> bool:
        """Unlink the old name of a file that a crash left with both; else it would be hidden."""
        *parents, last = split_name(name)
        with (
            contextlib.suppress(RefusedError),
            translate_os_errors(name),
            self.directory(parents) as source,
        ):
            if not is_hard_linked(source.stat(last)) or not self.has_name(source, last, to):
                return False
            *to_parents, _ = split_name(to)
            with self.directory(to_parents) as target:
                self._files.sync_directory(target)
            self._files.unlink(source, last)
            self._files.sync_directory(source)
            return True
        return False

    def has_name(self, source: DirHandle, part: str, name: str) -> bool:
        """Whether ``name`` is a second name of ``part`` in ``source``."""
        *parents, last = split_name(name)
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
            self.directory(parents) as directory,
        ):
            return _is_same_file(source, part, directory, last)
        return False

    def _move(
        self, source: DirHandle, part: str, target: DirHandle, to: str, *, overwrite: bool
    ) -> None:
        """Rename atomically and durably; without ``overwrite`` the name must be free.

        A directory replaces only an empty directory, whatever ``overwrite`` says.
        """
        if overwrite:
            self._files.rename(source, part, target, to)
        else:
            try:
                self._files.rename_noreplace(source, part, target, to)
            except NotImplementedError:
                self._link_and_unlink(source, part, target, to)
        self._files.sync_directory(target)

    def _link_and_unlink(self, source: DirHandle, part: str, target: DirHandle, to: str) -> None:
        """Rename to a name that must be free, in two steps; between them the file is hidden."""
        try:
            self._files.hard_link(source, part, target, to)
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_HARD_LINKS:
                raise
            # Without hard links there is only the check that was made before.
            self._files.rename(source, part, target, to)
        else:
            # A crash may lose the old name before the new one is on the disk.
            self._files.sync_directory(target)
            self._files.unlink(source, part)

    def delete(self, name: str, *, recursive: bool, trash: DirHandle, progress: Progress) -> None:
        """Delete a file or directory.

        A directory with its content is first renamed into ``trash``, so that it vanishes
        atomically.
        """
        info = self.stat(name)
        *parents, last = split_name(name)
        with translate_os_errors(name), self.directory(parents) as directory:
            if info.kind == "file":
                self._files.unlink(directory, last)
                self._files.sync_directory(directory)
                return
            if not recursive:
                self._files.rmdir(directory, last)
                self._files.sync_directory(directory)
                self._durable.clear()
                return
            part = secrets.token_hex(16)
            try:
                self._files.rename(directory, last, trash, part)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                self._delete_in_place([*parents, last], progress)
                return
            self._files.sync_directory(directory)
            self._durable.clear()
        if kept := purge(self._files, trash, part, name, progress):
            for each in kept:
                self._put_back(trash, each)
            with translate_os_errors(kept[0].cause):
                raise kept[0].error

    def _delete_in_place(self, parts: list[str], progress: Progress) -> None:
        """Delete a directory that cannot be renamed into the trash, files first.

        What is mounted in it stays, as it does in the trash.
        """
        order, removed, mount = [parts], 0, None
        failed: tuple[str, OSError] | None = None
        for path in order:  # which grows meanwhile
            try:
                with self.directory(path) as directory:
                    mount = mount or directory.mount()
                    if directory.mount() != mount:
                        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
                    for inner, is_directory in list(directory.names()):
                        if is_directory:
                            order.append([*path, inner])
                            continue
                        try:
                            self._files.unlink(directory, inner)
                        except FileNotFoundError:
                            continue
                        except OSError as error:
                            failed = failed or ("/".join([*path, inner]), error)
                        removed += 1
                        progress(removed, removed + len(order))
            except OSError as error:
                failed = failed or ("/".join(path), error)
        self._durable.clear()
        for *above, last in reversed(order):
            try:
                with self.directory(above) as directory:
                    self._files.rmdir(directory, last)
                    self._files.sync_directory(directory)
            except OSError as error:
                failed = failed or ("/".join([*above, last]), error)
        if failed:
            with translate_os_errors(failed[0]):
                raise failed[1]

    def _put_back(self, trash: DirHandle, kept: Undeletable) -> None:
        """Give what cannot be deleted its name again, so that its owner sees and can mend it."""

        def place(target: DirHandle, last: str) -> None:
            self._move(trash, kept.part, target, last, overwrite=False)

        try:
            with translate_os_errors(kept.path):
                self._move_in(trash, kept.part, kept.path, place)
        except (OSError, RefusedError) as error:
            path = os.path.join(trash.path, kept.part)
            log.warning("cannot delete %s (was %a): %s; %s", path, kept.path, kept.error, error)

    def purge(self, trash: DirHandle, part: str, progress: Progress) -> None:
        """Delete ``part`` of ``trash`` with everything in it.

        What cannot be deleted stays, directly in ``trash``; OSError says why.
        """
        for each in purge(self._files, trash, part, part, progress):
            raise each.error


@contextlib.contextmanager
def _retry_vanished() -> Iterator[None]:
    """End the block where a directory was deleted meanwhile; hidden names stay an error."""
    try:
        yield
    except HiddenFileError:
        raise
    except FileNotFoundError:
        pass


def _is_unsupported(error: OSError, source: DirHandle, target: DirHandle) -> bool:
    """Whether a file system cannot rename a directory: overlayfs, one of a lower layer."""
    return error.errno == errno.EXDEV and source.mount() == target.mount()


def _exists(directory: DirHandle, part: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        directory.stat(part)
        return True
    return False


def _deleted_meanwhile(name: str) -> RefusedError:
    return RefusedError(
        Code.BUSY, f"the directory of {name!r} is being deleted again and again: try again later"
    )


def _is_same_file(source: DirHandle, part: str, target: DirHandle, to: str) -> bool:
    try:
        return os.path.samestat(source.stat(part), target.stat(to))
    except FileNotFoundError:
        return False


def _check_known(directory: DirHandle, part: str) -> None:
    """Hide a symbolic link or special file: it is not found."""
    with contextlib.suppress(FileNotFoundError):
        mode = directory.stat(part).st_mode
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            raise RefusedError(Code.NOT_FOUND, f"no such file or directory: {part!r}")


def _check_replaceable(directory: DirHandle, part: str, *, overwrite: bool) -> bool:
    """Raise OSError unless a file may take this name; return whether it replaces a file."""
    try:
        mode = directory.stat(part).st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise FileExistsError if not overwrite else IsADirectoryError
    if not stat.S_ISREG(mode):
        raise HiddenFileError(part)
    if not overwrite:
        raise FileExistsError
    return True
