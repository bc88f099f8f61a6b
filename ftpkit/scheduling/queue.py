"""What waits, by rank and by age."""

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Entry(NamedTuple, Generic[T]):
    """One item that waits. Tickets differ, so that items are never compared."""

    rank: float
    ticket: int
    item: T


class Queue(Generic[T]):
    """Items with a rank; all that it does costs O(log n), amortised."""

    __slots__ = ("_entries", "_heap")

    def __init__(self) -> None:
        # An entry in the heap that is not the item's own any more is passed over.
        self._entries: OrderedDict[T, Entry[T]] = OrderedDict()
        self._heap: list[Entry[T]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[T]:
        """Yield the items, those that have waited longest first."""
        return iter(self._entries)

    def entries(self) -> list[Entry[T]]:
        """Return the entries, the lowest rank first."""
        return sorted(self._entries.values())

    def push(self, item: T, rank: float, ticket: int) -> None:
        """Let ``item`` wait; one that waits already gets another rank and keeps its age."""
        entry = Entry(rank, ticket, item)
        self._entries[item] = entry
        heapq.heappush(self._heap, entry)
        self._tidy()

    def best(self) -> Entry[T]:
        """Return the entry of the lowest rank, of several the one with the lowest ticket."""
        while True:
            entry = self._heap[0]
            if self._entries.get(entry.item) is entry:
                return entry
            heapq.heappop(self._heap)

    def oldest(self) -> T:
        """Return what has waited longest."""
        return next(iter(self._entries))

    def renew(self, item: T) -> None:
        """Count the age of ``item`` from now on."""
        self._entries.move_to_end(item)

    def discard(self, item: T) -> None:
        """Take ``item`` out, if it waits."""
        if self._entries.pop(item, None) is not None:
            self._tidy()

    def _tidy(self) -> None:
        if len(self._heap) > 2 * len(self._entries) + 16:
            self._heap = list(self._entries.values())
            heapq.heapify(self._heap)
