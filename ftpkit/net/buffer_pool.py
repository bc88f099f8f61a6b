"""Buffers for bodies, used again: fresh memory pages cost more than the copy into them."""

import contextlib
import mmap
from collections import deque
from collections.abc import Iterator
from typing import Final

from ftpkit.net.frame_stream import PIECE

# What is kept after a crowd has left; a machine rarely moves more bodies at once.
_KEPT: Final = 16


class BufferPool:
    """Lends buffers of ``PIECE`` bytes, and keeps a few of those that come back.

    They are mappings: pages that no body has reached take no memory, so a thousand
    bodies that only begin to arrive cost little.
    """

    def __init__(self) -> None:
        self._free: deque[memoryview] = deque(maxlen=_KEPT)

    @contextlib.contextmanager
    def borrow(self) -> Iterator[memoryview]:
        """Lend a buffer, with whatever is in it, until the block ends."""
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = memoryview(mmap.mmap(-1, PIECE))
        try:
            yield buffer
        finally:
            self._free.append(buffer)
