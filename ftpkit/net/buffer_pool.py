"""Reused buffers for bodies: fresh memory pages cost more than the copy into them."""

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Final

from ftpkit.net.frame_stream import PIECE
from ftpkit.osapi import files as os_files

# Few bodies move at the same moment; the buffers of a rush are freed.
_KEPT: Final = 16


class BufferPool:
    """Lends buffers of ``PIECE`` bytes, and keeps a few for reuse.

    Pages that were never written take no memory, so that a thousand bodies of which little has
    arrived cost little.
    """

    def __init__(self) -> None:
        self._free: deque[memoryview] = deque(maxlen=_KEPT)

    @contextlib.contextmanager
    def borrow(self) -> Iterator[memoryview]:
        """Lend a buffer, which holds old data, until the block ends."""
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = os_files.lazy_memory(PIECE)
        try:
            yield buffer
        finally:
            self._free.append(buffer)
