"""Counts the bytes stored in a directory, and those that unfinished uploads declare."""

import contextlib
from collections.abc import Callable
from typing import Final

from ftpkit.protocol.names import is_in, is_reserved
from ftpkit.storage.directory.filesystem import DirHandle
from ftpkit.storage.directory.upload import DATA, JOURNAL, read_journal
from ftpkit.storage.journal import MAX_RECORD

# It vanished, is no longer a directory, or cannot be read.
_SKIPPED: Final = FileNotFoundError, NotADirectoryError, PermissionError

ShouldContinue = Callable[[], bool]


def stored_bytes(top: DirHandle, should_continue: ShouldContinue) -> int:
    """Return the bytes of all files below ``top``; end once ``should_continue`` returns False.

    Each directory is opened once and left by "..", so that neither the work for each nor open
    descriptors grow with the depth. OSError: a directory was moved during the count.
    """
    current = top.open_directory(".")
    try:
        total, waiting = _read(current)
        levels = [(current.status(), waiting)]
        while should_continue():
            _, waiting = levels[-1]
            if waiting:
                try:
                    below = current.open_directory(waiting.pop())
                except _SKIPPED:
                    continue
                current.close()
                current = below
                stored, inner = _read(current)
                total += stored
                levels.append((current.status(), inner))
            elif len(levels) > 1:
                levels.pop()
                above = current.above(levels[-1][0])
                current.close()
                current = above
            else:
                break
        return total
    finally:
        current.close()


def declared_bytes(uploads: DirHandle, name: str, should_continue: ShouldContinue) -> int:
    """Return the totals of unfinished uploads of ``name`` or to a name below it.

    Where the total is unknown, the bytes that have arrived count.
    """
    total = 0
    for key, _ in uploads.names():
        if not should_continue():
            break
        with contextlib.suppress(*_SKIPPED), uploads.open_directory(key) as directory:
            directory.stat(DATA)  # without data it was published
            total += _declared(directory, name)
    return total


def _read(directory: DirHandle) -> tuple[int, list[str]]:
    """Return the bytes of the files in one directory, and the directories in it."""
    total, inner = 0, list[str]()
    for part, size in directory.sizes():
        if is_reserved(part):
            continue
        if size is None:
            inner.append(part)
        else:
            total += size
    return total, inner


def _declared(directory: DirHandle, name: str) -> int:
    state = read_journal(directory, JOURNAL, MAX_RECORD)
    if state is None or not is_in(name, state.spec["name"]):
        return 0
    if (total := state.spec["total"]) is not None:
        return int(total)
    state = read_journal(directory, JOURNAL)
    return sum(held.length for held in state.blocks.values()) if state else 0
