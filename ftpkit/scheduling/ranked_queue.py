"""What waits, by rank and by age."""

from collections import OrderedDict
from heapq import heapify, heappop, heappush
from typing import Generic, TypeAlias, TypeVar

T = TypeVar("T")
# Rank, ticket, item. Tickets differ, so that items are never compared.
QueuedFlow: TypeAlias = tuple[float, int, T]


class RankedQueue(Generic[T]):
    """Items with a rank; whatever is done with it costs O(log n), amortised.

    ``by_age`` has the entry of each item, what has waited longest first.
    """

    __slots__ = ("_heap", "by_age")

    def __init__(self) -> None:
        self.by_age: OrderedDict[T, QueuedFlow[T]] = OrderedDict()
        # An entry here that is not its item's any more is passed over.
        self._heap: list[QueuedFlow[T]] = []

    def push(self, item: T, rank: float, ticket: int) -> None:
        """Let ``item`` wait; one that waits already gets another rank and keeps its age."""
        entry = self.by_age[item] = (rank, ticket, item)
        if len(self._heap) <= 2 * len(self.by_age) + 16:
            heappush(self._heap, entry)
        else:
            self._heap = list(self.by_age.values())
            heapify(self._heap)

    def best(self) -> QueuedFlow[T]:
        """Return the entry of the lowest rank, of several that of the lowest ticket."""
        heap, by_age = self._heap, self.by_age
        while by_age.get((entry := heap[0])[2]) is not entry:
            heappop(heap)
        return entry

    def discard(self, item: T) -> None:
        """Take ``item`` out, if it waits."""
        self.by_age.pop(item, None)
