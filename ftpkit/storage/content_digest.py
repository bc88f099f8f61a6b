"""The digest of the whole file of an upload: hashed while blocks arrive, or read again."""

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.digest import Hasher, RunningDigest, format_digest, new_hasher, split_digest
from ftpkit.storage.api import BlockRecord, Progress
from ftpkit.storage.blocks import check_content_digest

_PIECE: Final = 1024 * 1024

ReadInto = Callable[[memoryview, int], int]
"""Fills a view from an offset of the file, as ``Reader.read_into`` does."""


class ContentDigest:
    """Grows with the blocks while they are in the page cache, as long as they come in order.

    ``lock`` guards ``blocks`` and everything here that says so. ``on_damaged`` is called with
    the lock held when a held block no longer matches its digest.
    """

    def __init__(
        self,
        read_into: ReadInto,
        lock: threading.Lock,
        blocks: Mapping[int, BlockRecord],
        on_damaged: Callable[[int], None],
    ) -> None:
        self._read_into, self._lock = read_into, lock
        self._blocks, self._on_damaged = blocks, on_damaged
        self._reading = threading.Lock()
        self._stopped = False
        self.running = RunningDigest()
        """Guarded by the lock."""

    def stop(self) -> None:
        """Stop reading, so that the descriptor can be closed (with the lock held)."""
        self._stopped = True
        with self._reading:
            pass

    def catch_up(self, limit: int) -> None:
        """Hash held blocks that come next, ``limit`` bytes of them at most (without the lock).

        After a resume the digest of the whole file lags behind. A few blocks with each new one
        leave little to hash at the commit.
        """
        while limit > 0:
            with self._lock:
                offset = self.running.length
                held = self._blocks.get(offset)
                hasher = self.running.fork(offset) if held and not self._stopped else None
            if held is None or hasher is None:
                return
            with self._reading:
                if self._stopped:
                    return
                good = block_matches(self._read_into, held, hasher)
            with self._lock:
                if self._blocks.get(offset) is not held or self._stopped:
                    continue
                if good:
                    self.running.join(hasher, offset, held.length)
                else:
                    self._on_damaged(offset)
            limit -= held.length

    def result(self, total: int, block: int, expected: str | None, progress: Progress) -> str:
        """Return the digest of all ``total`` bytes, in the algorithm of ``expected`` if given.

        RefusedError ``digest-mismatch``: it is not ``expected``. Call it without the lock.
        """
        while (known := self.running.of(total)) is None:
            self.catch_up(block)
            length = self.running.length
            if length not in self._blocks and length < total:
                raise RefusedError(
                    Code.INCOMPLETE, f"the block at {length} is damaged on the disk: send it again"
                )
            progress(length, total)
        algorithm = split_digest(expected or known)[0]
        if algorithm != split_digest(known)[0]:
            hasher, done = new_hasher(algorithm), 0
            for piece in _pieces(self._read_into, 0, total):
                hasher.update(piece)
                done += len(piece)
                progress(done, total)
            known = format_digest(algorithm, hasher.digest())
        check_content_digest(known, expected)
        return known


def block_matches(read_into: ReadInto, held: BlockRecord, hasher: Hasher | None = None) -> bool:
    """Whether a block still has its digest; ``hasher`` is fed the same bytes."""
    algorithm = split_digest(held.digest)[0]
    block = new_hasher(algorithm)
    for piece in _pieces(read_into, held.offset, held.length):
        block.update(piece)
        if hasher is not None:
            hasher.update(piece)
    return format_digest(algorithm, block.digest()) == held.digest


def _pieces(read_into: ReadInto, offset: int, size: int) -> Iterator[memoryview]:
    buffer, end = memoryview(bytearray(min(size, _PIECE))), offset + size
    while offset < end:
        got = read_into(buffer[: end - offset], offset)
        if got == 0:
            return
        yield buffer[:got]
        offset += got
