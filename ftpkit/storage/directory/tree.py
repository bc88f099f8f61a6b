"""The tree of published files: names resolved part by part, changes made durable."""

import contextlib
import errno
import os
import secrets
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.names import MAX_NAME, is_reserved, split_name
from ftpkit.storage.api import FileInfo, Progress
from ftpkit.storage.directory.filesystem import (
    DirHandle,
    FileSystem,
    HiddenFileError,
    digest_xattr,
    is_hard_linked,
)
from ftpkit.storage.os_errors import translate_os_errors
from ftpkit.storage.quota import UNLIMITED, QuotaScope

# What link() says on disks that have no hard links.
_NO_LINKS: Final = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}

# One more only costs another sync.
_MAX_LASTING: Final = 4096

_KINDS: Final = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link"}


def file_info(name: str, status: os.stat_result, content_digest: str | None = None) -> FileInfo:
    """Describe what stands under ``name``.

    The version holds the inode, so that a replaced file differs, and the time
    of change, so that an inode that is used again differs too.
    """
    kind = _KINDS.get(stat.S_IFMT(status.st_mode), "other")
    version = f"{status.st_ino:x}-{status.st_ctime_ns:x}-{status.st_mtime_ns:x}-{status.st_size:x}"
    total = status.st_size if kind == "file" else 0
    return FileInfo(
        name=name,
        kind=kind,
        total=total,
        mtime=status.st_mtime_ns,
        version=version,
        mode=status.st_mode & 0o777,
        content_digest=content_digest,
    )


class Tree:
    """Files and directories under ``root``, by name, except for what is in ``private``."""

    def __init__(
        self, root: DirHandle, files: FileSystem, private: DirHandle | None = None
    ) -> None:
        self._root = root
        self._files = files
        # Known by what it is: a disk may find it under names that we do not know for its own,
        # and somebody may move it.
        self._private = private.status() if private is not None else None
        # Directories, by parent and name, whose names are known to be on stable storage.
        self._lasting = set[tuple[int, int, str]]()

    @contextlib.contextmanager
    def directory(self, parts: list[str], *, make: bool = False) -> Iterator[DirHandle]:
        """Hold the directory under ``parts`` open; with ``make`` missing ones are made."""
        current = self._root
        try:
            for part in parts:
                below = self._descend(current, part, make=make)
                if current is not self._root:
                    current.close()
                current = below
                if self._is_private(current.status()):
                    raise HiddenFileError(part)
            yield current
        finally:
            if current is not self._root:
                current.close()

    def _is_private(self, status: os.stat_result) -> bool:
        return self._private is not None and os.path.samestat(status, self._private)

    def _descend(self, directory: DirHandle, part: str, *, make: bool) -> DirHandle:
        if not make:
            return directory.open_directory(part)
        status = directory.status()
        key = status.st_dev, status.st_ino, part
        if key in self._lasting:
            with contextlib.suppress(FileNotFoundError):
                return directory.open_directory(part)
            self._lasting.discard(key)
        with contextlib.suppress(FileExistsError):
            self._files.mkdir(directory, part)
        # Also where it exists: who made it may not have come so far yet, or may have died.
        self._files.sync_directory(directory)
        # A link that stands there fails here, and is not followed.
        below = directory.open_directory(part)
        if len(self._lasting) >= _MAX_LASTING:
            self._lasting.clear()
        self._lasting.add(key)
        return below

    def stat(self, name: str) -> FileInfo:
        """Describe a file or directory; links and special files are not found."""
        with translate_os_errors(name):
            *parents, last = split_name(name) or [""]
            with self.directory(parents) as directory:
                status = directory.stat(last) if last else directory.status()
                if self._is_private(status):
                    raise HiddenFileError(last)
                if stat.S_ISDIR(status.st_mode):
                    return file_info(name, status)
                fd = directory.open_file(last)
            with open(fd, "rb", buffering=0):
                status = os.fstat(fd)
                return file_info(name, status, digest_xattr(fd, status))

    def mkdir(self, name: str) -> None:
        """Make a directory and its parents."""
        with translate_os_errors(name), self.directory(split_name(name), make=True):
            pass

    def open(self, name: str) -> int:
        """Open a file for reading; return its descriptor."""
        *parents, last = split_name(name)
        with translate_os_errors(name), self.directory(parents) as directory:
            return directory.open_file(last)

    def ensure_durable(self, name: str) -> None:
        """Bring a name to stable storage, if it is there: who made it may have died before."""
        *parents, last = split_name(name)
        with contextlib.suppress(RefusedError):
            with translate_os_errors(name), self.directory(parents) as directory:
                directory.stat(last)
            with translate_os_errors(name), self.directory(parents, make=True) as directory:
                self._files.sync_directory(directory)

    def check_target(self, name: str, *, overwrite: bool) -> None:
        """Refuse early what ``publish`` would refuse late."""
        *parents, last = split_name(name)
        with translate_os_errors(name), contextlib.ExitStack() as stack:
            try:
                directory = stack.enter_context(self.directory(parents))
            except HiddenFileError:
                raise
            except FileNotFoundError:
                return
            _check_replaceable(directory, last, overwrite=overwrite)

    def publish(
        self,
        source: DirHandle,
        part: str,
        name: str,
        *,
        fd: int,
        overwrite: bool,
        content_digest: str | None = None,
        quota: QuotaScope = UNLIMITED,
    ) -> FileInfo:
        """Move a finished file from ``source`` to its name: in one step, and durably.

        ``quota`` is told if another file stood there. ``fd`` is the file: what stands under the
        name may be another one a moment later.
        """
        *parents, last = split_name(name)
        with translate_os_errors(name), self.directory(parents, make=True) as directory:
            if _is_same_file(source, part, directory, last):
                # An earlier try ended between its two steps: the file stands there already.
                self._files.unlink(source, part)
                self._files.sync_directory(directory)
                return file_info(name, os.fstat(fd), content_digest)
            replaced = _check_replaceable(directory, last, overwrite=overwrite)
            self._move(source, part, directory, last, overwrite=overwrite)
            if replaced:
                quota.note_deleted(name)
            return file_info(name, os.fstat(fd), content_digest)

    def rename(self, name: str, to: str, *, overwrite: bool) -> None:
        """Move a file or directory; parents of ``to`` are made."""
        if name != to and self._finish_move(name, to):
            return
        self.stat(name)
        *parents, last = split_name(name)
        *to_parents, to_last = split_name(to)
        if split_name(to)[: len(parents) + 1] == [*parents, last] and to != name:
            raise RefusedError(Code.BAD_REQUEST, "a directory cannot be moved into itself")
        with contextlib.ExitStack() as stack:
            with translate_os_errors(name):
                source = stack.enter_context(self.directory(parents))
            with translate_os_errors(to):
                target = stack.enter_context(self.directory(to_parents, make=True))
                is_directory = stat.S_ISDIR(source.stat(last).st_mode)
                if not is_directory or not overwrite:
                    _check_replaceable(target, to_last, overwrite=overwrite)
                else:
                    _check_known(target, to_last)
                # A directory can only replace an empty one, so nothing is lost to a race.
                self._move(source, last, target, to_last, overwrite=overwrite or is_directory)
                self._files.sync_directory(source)
                if is_directory:
                    self._lasting.clear()

    def _finish_move(self, name: str, to: str) -> bool:
        """Take the old name from a file that has both since a crash: with two it is not served."""
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
        """Whether ``part`` of ``source`` stands under ``name`` too."""
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
        """Move in one step, durably in ``target``; without ``overwrite`` the name must be free.

        ``overwrite`` has no effect on directories: only empty ones are replaced.
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
        """Move to a name that must be free, in two steps: between them the file is not served."""
        try:
            self._files.hard_link(source, part, target, to)
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LINKS:
                raise
            # No hard links on this disk: the check before is all there is.
            self._files.rename(source, part, target, to)
        else:
            # A disk may forget the old name before it remembers the new one.
            self._files.sync_directory(target)
            self._files.unlink(source, part)

    def delete(self, name: str, *, recursive: bool, trash: DirHandle, progress: Progress) -> None:
        """Delete a file or a directory.

        A directory with all that is in it goes in one step: into ``trash``, to
        be taken apart there.
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
                self._lasting.clear()
                return
            part = secrets.token_hex(16)
            self._files.rename(directory, last, trash, part)
            self._files.sync_directory(directory)
            self._lasting.clear()
        with translate_os_errors(name):
            self.purge(trash, part, progress)

    def purge(self, trash: DirHandle, part: str, progress: Progress) -> None:
        """Remove what stands in ``trash`` under ``part``, whatever it is and however deep.

        Directories in it are first moved up into ``trash``, so that neither
        depth nor open descriptors grow with the tree.
        """
        waiting, removed = deque([part]), 0
        while waiting:
            part = waiting.popleft()
            try:
                directory = trash.open_directory(part)
            except (FileNotFoundError, NotADirectoryError):
                with contextlib.suppress(FileNotFoundError):
                    self._files.unlink(trash, part)
                continue
            with directory:
                for inner, is_directory in list(directory.names()):
                    if is_directory:
                        moved = secrets.token_hex(16)
                        self._files.rename(directory, inner, trash, moved)
                        waiting.append(moved)
                    else:
                        self._files.unlink(directory, inner)
                    removed += 1
                    progress(removed, removed + len(waiting))
            self._files.rmdir(trash, part)

    def list_files(self, name: str, *, recursive: bool, after: str | None) -> Iterator[FileInfo]:
        """Yield what is in a directory, in the byte order of full names, behind ``after``.

        What vanishes meanwhile is left out, and so is what has too long a name to be asked for;
        one directory is open at a time.
        """
        past = (after or "").encode(errors="surrogatepass")
        levels = [_Level(name)]
        try:
            with translate_os_errors(name):
                self._read_level(levels[0], recursive=recursive, past=past)
            while levels:
                level = levels[-1]
                if not level.items:
                    levels.pop()
                    if levels:
                        levels[-1].come_back_from(level)
                    level.close()
                    continue
                _, part, is_subtree = level.items.popleft()
                full = f"{level.prefix}{part}"
                info = None
                with (
                    translate_os_errors(full),
                    contextlib.suppress(FileNotFoundError, NotADirectoryError),
                ):
                    directory = level.open(self)
                    if is_subtree:
                        below = _Level(full)
                        below.hold(directory.open_directory(part))
                        level.close()
                        levels.append(below)
                        self._read_level(below, recursive=True, past=past)
                    else:
                        info = _listed(full, directory.steady_stat(part))
                if info is not None:
                    yield info
        finally:
            for level in levels:
                level.close()

    def _read_level(self, level: "_Level", *, recursive: bool, past: bytes) -> None:
        prefix = level.prefix.encode()
        items: list[tuple[bytes, str, bool]] = []
        directory = level.open(self)
        if self._is_private(level.status):
            raise HiddenFileError(level.name)
        for part, is_directory in directory.names():
            try:
                key = prefix + part.encode()
            except UnicodeEncodeError:  # not UTF-8 on the disk: it cannot be named here
                continue
            if len(key) > MAX_NAME or is_reserved(part):
                continue
            if key > past:
                items.append((key, part, False))
            # In byte order "a.txt" comes between "a" and "a/b": a
            # directory and what is in it are two places in the list.
            inside = key + b"/"
            if recursive and is_directory and (inside > past or past.startswith(inside)):
                items.append((inside, part, True))
        level.items.extend(sorted(items))


class _Level:
    """One directory of a list, and what is still to come of it; it is open, or can be again."""

    def __init__(self, name: str) -> None:
        self.name, self.prefix = name, f"{name}/" if name else ""
        self.items = deque[tuple[bytes, str, bool]]()
        self._stack = contextlib.ExitStack()
        self._directory: DirHandle | None = None

    def open(self, tree: Tree) -> DirHandle:
        """Return the directory; if it is not there any more, nothing else comes of it."""
        if self._directory is None:
            try:
                self._directory = self._stack.enter_context(tree.directory(split_name(self.name)))
            except (FileNotFoundError, NotADirectoryError):
                self.items.clear()
                raise
            self.status = self._directory.status()
        return self._directory

    def hold(self, directory: DirHandle) -> None:
        """Take an open directory over."""
        self._directory = self._stack.enter_context(directory)
        self.status = directory.status()

    def come_back_from(self, below: "_Level") -> None:
        """Open the directory again from one in it, however deep it is, if both are where they were.

        To look it up by its name for each that is in it would be work without end for a deep tree.
        """
        if below._directory is None:
            return
        # Somewhere else if ``below`` was moved meanwhile.
        with contextlib.suppress(OSError):
            self.hold(below._directory.above(self.status))

    def close(self) -> None:
        """Let go of the directory."""
        self._directory = None
        self._stack.close()


def _listed(name: str, status: os.stat_result) -> FileInfo:
    """Describe what a list shows under ``name``: a file with a second name is not served."""
    info = file_info(name, status)
    return replace(info, kind="other", total=0) if is_hard_linked(status) else info


def _is_same_file(source: DirHandle, part: str, target: DirHandle, to: str) -> bool:
    """Whether both are names of one file."""
    try:
        return os.path.samestat(source.stat(part), target.stat(to))
    except FileNotFoundError:
        return False


def _check_known(directory: DirHandle, part: str) -> None:
    """Refuse to say more about a link or a special file than that it is not there."""
    with contextlib.suppress(FileNotFoundError):
        mode = directory.stat(part).st_mode
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            raise RefusedError(Code.NOT_FOUND, f"there is no {part!a}")


def _check_replaceable(directory: DirHandle, part: str, *, overwrite: bool) -> bool:
    """Refuse to put a file where a directory, a link or a special file stands.

    Return whether a file stands there.
    """
    try:
        mode = directory.stat(part).st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise FileExistsError if not overwrite else IsADirectoryError
    if not stat.S_ISREG(mode):
        raise FileNotFoundError
    if not overwrite:
        raise FileExistsError
    return True
