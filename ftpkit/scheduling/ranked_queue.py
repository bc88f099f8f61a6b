"""A priority queue that also knows the age of its items."""

from collections import OrderedDict
from heapq import heapify, heappop, heappush
from typing import Generic, TypeAlias, TypeVar

T = TypeVar("T")
# Rank, ticket, item. Tickets are unique, so that items are never compared.
QueuedFlow: TypeAlias = tuple[float, int, T]


class RankedQueue(Generic[T]):
    """A priority queue with removal and change of rank in O(log n), amortised.

    ``by_age`` maps each item to its record, the longest waiting first.
    """

    __slots__ = ("_heap", "by_age")

    def __init__(self) -> None:
        self.by_age: OrderedDict[T, QueuedFlow[T]] = OrderedDict()
        # May hold outdated records; ``best`` drops them.
        self._heap: list[QueuedFlow[T]] = []

    def push(self, item: T, rank: float, ticket: int) -> None:
        """Add ``item``, or change its rank and ticket; it keeps its age."""
        queued = self.by_age[item] = (rank, ticket, item)
        if len(self._heap) <= 2 * len(self.by_age) + 16:
            heappush(self._heap, queued)
        else:
            self._heap = list(self.by_age.values())
            heapify(self._heap)

    def best(self) -> QueuedFlow[T]:
        """Return the record of the lowest rank, then ticket; the queue must not be empty."""
        heap, by_age = self._heap, self.by_age
        while by_age.get((queued := heap[0])[2]) is not queued:
            heappop(heap)
        return queued

    def discard(self, item: T) -> None:
        self.by_age.pop(item, None)
