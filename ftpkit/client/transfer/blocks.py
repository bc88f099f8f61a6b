"""The blocks of one file over one connection, in either direction."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, TypeVar, cast

from ftpkit.client.connection import Connection, SendBody
from ftpkit.errors import Code, CorruptDataError, RefusedError
from ftpkit.protocol.messages import Get, Write

BLOCK: Final = 4 * 1024 * 1024
TRIES: Final = 3

T = TypeVar("T")

OnProgress = Callable[[int, int], None]
"""Called with the bytes that have been transferred, and the bytes in all."""


def damaged_error(what: str) -> CorruptDataError:
    return CorruptDataError(
        f"{what} arrived damaged {TRIES} times. Check the network and the memory of both computers"
    )


def repeat_refused(connection: Connection, code: Code, work: Callable[[Connection], T]) -> T:
    """Call ``work`` up to TRIES times, as long as the server refuses with ``code``."""
    for _ in range(TRIES - 1):
        try:
            return work(connection)
        except RefusedError as refusal:
            if refusal.code is not code:
                raise
            connection.drain()
    return work(connection)


class BlockTransfer:
    """Pipelines requests, ``window`` unanswered; repeats damaged blocks, and counts progress."""

    def __init__(
        self, connection: Connection, total: int, window: int, on_progress: OnProgress
    ) -> None:
        self._connection, self._window = connection, window
        self._total, self._on_progress = total, on_progress
        self._moved = 0
        self._damaged: Counter[int] = Counter()

    @property
    def offsets(self) -> range:
        return range(0, self._total, BLOCK)

    def size(self, offset: int) -> int:
        return min(BLOCK, self._total - offset)

    def sizes(self, offsets: Iterable[int]) -> dict[int, int]:
        """Return the bytes of each block at ``offsets`` by its number, as UDP names blocks."""
        return {offset // BLOCK: self.size(offset) for offset in offsets}

    def count(self, moved: int) -> None:
        """Count ``moved`` more bytes; less, where they have to be transferred again."""
        self._moved += moved
        self._on_progress(self._moved, self._total)

    def count_missing(self, offsets: Iterable[int]) -> None:
        """Count everything as transferred but the blocks at ``offsets``."""
        self.count(self._total - sum(map(self.size, offsets)) - self._moved)

    def count_damaged(self, offset: int) -> None:
        """Take a damaged block back from the count; raise CorruptDataError the third time."""
        self._damaged[offset] += 1
        if self._damaged[offset] == TRIES:
            raise damaged_error(f"the block at offset {offset:,}")
        self.count(-self.size(offset))

    def run(
        self,
        offsets: Iterable[int],
        request: Callable[[int], tuple[Get | Write, SendBody | None]],
        finish: Callable[[int, object], bool],
    ) -> None:
        """Transfer the blocks at ``offsets``.

        ``request`` makes the request for a block; ``finish`` is given its offset and its reply,
        and returns whether the block arrived undamaged.
        """
        while True:
            damaged = []
            for answer in self._connection.pipeline(map(request, offsets), self._window):
                offset = cast(Get | Write, answer.request).offset
                if not finish(offset, answer.reply):
                    self.count_damaged(offset)
                    damaged.append(offset)
            if not damaged:
                return
            offsets = damaged
