"""Deletes what was moved to the trash, beside others who still have its directories open."""

import contextlib
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ftpkit.storage.api import Progress
from ftpkit.storage.directory.filesystem import DirHandle, FileSystem


@dataclass(frozen=True, slots=True)
class Undeletable:
    """``part`` of the trash, which was at ``path`` and stays because of ``cause`` in it."""

    part: str
    path: str
    cause: str
    error: OSError


def purge(
    files: FileSystem, trash: DirHandle, part: str, path: str, progress: Progress
) -> list[Undeletable]:
    """Delete ``part`` of ``trash``, which was at ``path``, as far as it can be deleted.

    Return the rest, directories before what was in them.

    Directories in it are first renamed into ``trash``, so that neither recursion nor open
    descriptors grow with the depth.
    """
    waiting, kept, removed = deque([(part, path)]), list[Undeletable](), 0

    def on_removed() -> None:
        nonlocal removed
        removed += 1
        progress(removed, removed + len(waiting))

    while waiting:
        part, path = waiting.popleft()
        try:
            failed = _remove(files, trash, part, path, waiting, on_removed)
        except OSError as error:
            failed = path, error
        if failed:
            kept.append(Undeletable(part, path, *failed))
    return kept


def _remove(
    files: FileSystem,
    trash: DirHandle,
    part: str,
    path: str,
    waiting: deque[tuple[str, str]],
    on_removed: Callable[[], None],
) -> tuple[str, OSError] | None:
    """Delete one file or directory; its directories join ``waiting``.

    Return the path of what cannot be deleted in it, and why. The lock waits for those who
    have renamed something into the directory and take it back.
    """
    try:
        directory = trash.open_directory(part)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        with contextlib.suppress(FileNotFoundError):
            files.unlink(trash, part)
        return None
    failed: tuple[str, OSError] | None = None
    with directory, directory.locked():
        for inner, is_directory in list(directory.names()):
            try:
                if is_directory:
                    moved = secrets.token_hex(16)
                    try:
                        files.rename(directory, inner, trash, moved)
                        waiting.append((moved, f"{path}/{inner}"))
                    except PermissionError as error:
                        # The server need not have access to an empty one.
                        if not _is_removed(files, directory, inner):
                            failed = failed or (f"{path}/{inner}", error)
                            continue
                else:
                    files.unlink(directory, inner)
                on_removed()
            except FileNotFoundError:
                continue
            except OSError as error:
                failed = failed or (f"{path}/{inner}", error)
        if failed is None:
            try:
                files.rmdir(trash, part)
            except OSError:
                if not any(directory.names()):
                    raise
                # Others had it open, and made a directory in it.
                waiting.append((part, path))
    return failed


def _is_removed(files: FileSystem, directory: DirHandle, part: str) -> bool:
    with contextlib.suppress(OSError):
        files.rmdir(directory, part)
        return True
    return False
