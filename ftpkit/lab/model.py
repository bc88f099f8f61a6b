"""One direction of a test link: which packets get through, and when; time is an argument."""

import heapq
import random
from dataclasses import dataclass
from math import inf
from typing import Final

# A packet out of order is late by up to one more delay, and by this much even on a short link.
_SHORTEST_HOLD_S: Final = 0.001


@dataclass(slots=True)
class NetworkStats:
    """What became of the packets that entered one direction of a link.

    ``packets + duplicated == forwarded + lost + dropped + too_long + cut + waiting``.
    """

    packets: int = 0  # that entered
    bytes: int = 0  # of these, IP headers included
    forwarded: int = 0  # that left, copies included
    forwarded_bytes: int = 0
    lost: int = 0  # at random
    dropped: int = 0  # because the queue was full
    too_long: int = 0  # for the path
    cut: int = 0  # because the link was cut, or the device at its end down
    reordered: int = 0  # that were held back, so that later ones overtake them
    duplicated: int = 0  # that leave twice
    waiting: int = 0  # that are under way now
    overrun: int = 0  # not in ``packets``: the sender was faster than the relay could read
    latest_s: float = 0.0  # by how much the latest packet left too late


class NetworkModel:
    """A queue of ``queue_bytes``, a wire of ``bits_per_s``, and a delay of ``delay_s``.

    A packet that does not get lost leaves the queue once the bits before it
    have left, at ``bits_per_s``, and arrives ``delay_s`` later. Which packets
    are lost depends on ``seed`` and on their number alone. One longer than
    ``path_mtu`` bytes never leaves, as where a narrower wire begins.
    """

    def __init__(
        self,
        *,
        bits_per_s: float,
        delay_s: float,
        loss: float,
        reorder: float,
        duplicate: float,
        path_mtu: int,
        queue_bytes: int,
        seed: str,
    ) -> None:
        self._s_per_byte, self._delay_s = 8 / bits_per_s, delay_s
        self._loss, self._reorder, self._duplicate = loss, reorder, duplicate
        self.path_mtu = path_mtu
        """How long a packet may be that enters from now on."""
        # Half a byte more, for times are not exact.
        self._longest_wait_s = (queue_bytes + 0.5) * self._s_per_byte
        self._losing = random.Random(f"loss {seed}").random  # noqa: S311  # must be repeatable
        self._disturbing = random.Random(f"order {seed}").random  # noqa: S311  # likewise
        self._free_at = -inf  # when the last bit that was taken will be on the wire
        self._under_way: list[tuple[float, int, bytes]] = []
        self._is_cut = False
        self.count = NetworkStats()

    def take(self, packet: bytes, now: float) -> bool:
        """Let ``packet`` enter at ``now`` seconds, which never go back.

        False says that it was refused for its length, as only a router would tell.
        """
        count, size = self.count, len(packet)
        count.packets += 1
        count.bytes += size
        if self._is_cut:
            count.cut += 1
            return True
        if self._losing() < self._loss:
            count.lost += 1
            return True
        if size > self.path_mtu:
            count.too_long += 1
            return False
        start = max(now, self._free_at)
        free_at = start + size * self._s_per_byte
        if free_at - now > self._longest_wait_s:
            count.dropped += 1
            return True
        self._free_at = free_at
        due = free_at + self._delay_s
        # Decided only where asked for: a number drawn for every packet is time spent.
        if self._reorder and self._disturbing() < self._reorder:
            count.reordered += 1
            due += max(_SHORTEST_HOLD_S, self._disturbing() * self._delay_s)
        # The number keeps packets of the same moment in order.
        heapq.heappush(self._under_way, (due, 2 * count.packets, packet))
        if self._duplicate and self._disturbing() < self._duplicate:
            count.duplicated += 1
            heapq.heappush(self._under_way, (due, 2 * count.packets + 1, packet))
        return True

    @property
    def under_way(self) -> int:
        """How many packets, copies included, have not arrived yet."""
        return len(self._under_way)

    @property
    def next_due(self) -> float:
        """When the next packet arrives; infinity if none is under way."""
        return self._under_way[0][0] if self._under_way else inf

    def arrived(self, now: float) -> list[bytes]:
        """Return the packets that have arrived by ``now``, in their order."""
        under_way, packets = self._under_way, []
        if under_way and under_way[0][0] <= now:
            self.count.latest_s = max(self.count.latest_s, now - under_way[0][0])
            while under_way and under_way[0][0] <= now:
                packets.append(heapq.heappop(under_way)[2])
        return packets

    def cut(self) -> None:
        """Let nothing enter from now on, and drop what is under way."""
        self._is_cut = True
        self.count.cut += len(self._under_way)
        self._under_way.clear()
        self._free_at = -inf

    def mend(self) -> None:
        """Let packets enter again."""
        self._is_cut = False
