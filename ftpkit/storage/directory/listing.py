"""Lists a tree in the byte order of full names, whatever changes in it meanwhile."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace

from ftpkit.protocol.names import MAX_NAME, is_reserved, split_name
from ftpkit.storage.api import FileInfo
from ftpkit.storage.directory.filesystem import DirHandle, HiddenFileError, is_hard_linked
from ftpkit.storage.directory.tree import Tree, file_info
from ftpkit.storage.os_errors import translate_os_errors


def list_tree(tree: Tree, name: str, *, recursive: bool, after: str | None) -> Iterator[FileInfo]:
    """Yield what is in the directory ``name``, beginning after the full name ``after``.

    Names that vanish meanwhile are left out; what cannot be listed is an entry with an error. One
    directory is open at a time.
    """
    past = (after or "").encode(errors="surrogatepass")
    levels = [_Level(tree, name)]
    try:
        with translate_os_errors(name):
            levels[0].read(recursive=recursive, past=past)
        while levels:
            level = levels[-1]
            if not level.items:
                levels.pop()
                if levels:
                    levels[-1].return_from(level)
                level.close()
                continue
            item = level.items.pop()
            is_subtree, part = item.endswith(b"/"), item.removesuffix(b"/").decode()
            full = f"{level.prefix}{part}"
            info = level.errors.pop(item, None)
            try:
                if info is None and is_subtree:
                    below = _Level(tree, full)
                    below.hold(level.open().open_directory(part))
                    level.close()
                    levels.append(below)
                    below.read(recursive=True, past=past)
                elif info is None:
                    info = _listed(full, level.open().steady_stat(part))
            except (FileNotFoundError, NotADirectoryError):
                pass
            except OSError as error:
                # The rest is listed nevertheless.
                if levels[-1] is not level:
                    levels.pop().close()
                shown = f"{full}/" if is_subtree else full
                if shown.encode() > past:
                    info = _unlisted(shown, f"cannot be read: {error.strerror or error}")
            if info is not None:
                yield info
    finally:
        for level in levels:
            level.close()


class _Level:
    """One directory of a list, and the names in it that are left; it can be opened again."""

    def __init__(self, tree: Tree, name: str) -> None:
        self._tree, self._name = tree, name
        self.prefix = f"{name}/" if name else ""
        self.items = list[bytes]()
        """The names, the last one first; with a ``/`` behind it stands for what is below it."""
        self.errors = dict[bytes, FileInfo]()
        """What is listed with an error, by its name."""
        self._stack = contextlib.ExitStack()
        self._directory: DirHandle | None = None

    def open(self) -> DirHandle:
        """Return the directory; if it has vanished, drop the names that are left."""
        if self._directory is None:
            try:
                context = self._tree.directory(split_name(self._name))
                self._directory = self._stack.enter_context(context)
            except (FileNotFoundError, NotADirectoryError):
                self.items.clear()
                raise
            self.status = self._directory.status()
        return self._directory

    def hold(self, directory: DirHandle) -> None:
        """Own an open directory."""
        self._directory = self._stack.enter_context(directory)
        self.status = directory.status()

    def read(self, *, recursive: bool, past: bytes) -> None:
        """Read the names that come after ``past``."""
        directory = self.open()
        if self._tree.is_private(self.status):
            raise HiddenFileError(self._name)
        prefix = self.prefix.encode()
        for part, is_directory in directory.names():
            if is_reserved(part):
                continue
            # Differs from the name if that is not UTF-8 on the disk.
            shown = os.fsencode(part).decode(errors="backslashreplace")
            item = shown.encode()
            key, error = prefix + item, None
            if shown != part:
                error = "the name is not UTF-8"
            elif len(key) > MAX_NAME:
                error = f"the name is longer than {MAX_NAME:,} bytes"
            if key > past:
                self.items.append(item)
                if error:
                    self.errors[item] = _unlisted(f"{self.prefix}{shown}", error)
            if error:
                continue
            # In byte order "a.txt" comes between "a" and "a/b": a directory
            # and what is in it are two items.
            inside = key + b"/"
            if recursive and is_directory and (inside > past or past.startswith(inside)):
                self.items.append(item + b"/")
        self.items.sort(reverse=True)

    def return_from(self, below: "_Level") -> None:
        """Open the directory again as the parent of ``below``, if neither was moved.

        Resolving its name once for each directory in it would cost the square of the depth.
        """
        if below._directory is None:
            return
        with contextlib.suppress(OSError):  # ``below`` was moved
            self.hold(below._directory.above(self.status))

    def close(self) -> None:
        """Close the directory; may be called twice."""
        self._directory = None
        self._stack.close()


def _unlisted(name: str, error: str) -> FileInfo:
    return FileInfo(name=name, kind="other", total=0, mtime=0, version="", mode=0, error=error)


def _listed(name: str, status: os.stat_result) -> FileInfo:
    """Describe ``name`` as a list shows it: a file with a second name is not served."""
    info = file_info(name, status)
    return replace(info, kind="other", total=0) if is_hard_linked(status) else info
