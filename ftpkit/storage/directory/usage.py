"""How many bytes are stored in a directory, and promised to what is unfinished for it."""

import contextlib
from collections.abc import Callable
from typing import Final

from ftpkit.protocol.names import is_in, is_reserved
from ftpkit.storage.directory.filesystem import DirHandle
from ftpkit.storage.directory.journal import MAX_RECORD
from ftpkit.storage.directory.upload import DATA, JOURNAL, read_journal

# What vanished, is no directory any more, or may not be looked at.
_PASSED_OVER: Final = FileNotFoundError, NotADirectoryError, PermissionError

GoOn = Callable[[], bool]


def stored_in(top: DirHandle, go_on: GoOn) -> int:
    """Return the lengths of all files in ``top`` and below, as long as ``go_on`` is true.

    Each directory is opened once and the way back is "..", so that neither work nor open
    descriptors grow with the depth. OSError says that one was moved away meanwhile.
    """
    current = top.open_directory(".")
    try:
        total, waiting = _look(current)
        levels = [(current.status(), waiting)]
        while go_on():
            _, waiting = levels[-1]
            if waiting:
                try:
                    below = current.open_directory(waiting.pop())
                except _PASSED_OVER:
                    continue
                current.close()
                current = below
                stored, inner = _look(current)
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


def promised_in(uploads: DirHandle, name: str, go_on: GoOn) -> int:
    """Return what unfinished uploads of ``name``, or into it, have been promised.

    That is their total; where it is not known, what has arrived.
    """
    total = 0
    for key, _ in uploads.names():
        if not go_on():
            break
        with contextlib.suppress(*_PASSED_OVER), uploads.open_directory(key) as directory:
            directory.stat(DATA)  # one without data has its name already
            total += _promised(directory, name)
    return total


def _look(directory: DirHandle) -> tuple[int, list[str]]:
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


def _promised(directory: DirHandle, name: str) -> int:
    state = read_journal(directory, JOURNAL, MAX_RECORD)
    if state is None or state.spec is None or not is_in(name, state.spec["name"]):
        return 0
    if (total := state.spec["total"]) is not None:
        return int(total)
    state = read_journal(directory, JOURNAL)
    return sum(held.length for held in state.blocks.values()) if state else 0
