"""The model of one direction of a network: which packets pass, and when."""

import heapq
import random
from dataclasses import dataclass
from math import inf
from typing import Final

# The least extra delay of a reordered packet, for networks without delay.
_SHORTEST_HOLD_S: Final = 0.001


@dataclass(slots=True)
class NetworkStats:
    """What became of the packets that entered one direction.

    ``packets + duplicated == forwarded + lost + dropped + too_long + cut + waiting``.
    """

    packets: int = 0  # entered
    bytes: int = 0  # entered, IP headers included
    forwarded: int = 0  # duplicates included
    forwarded_bytes: int = 0
    lost: int = 0  # at random
    dropped: int = 0  # by a full queue
    too_long: int = 0  # over the path MTU
    cut: int = 0  # dropped while cut, or because the device was down
    reordered: int = 0  # delayed so that later ones overtake them
    duplicated: int = 0
    waiting: int = 0  # in flight now
    overrun: int = 0  # not in ``packets``: dropped by the device because the relay was late
    latest_s: float = 0.0  # the largest lateness of a delivery


class NetworkModel:
    """A queue of ``queue_bytes`` that drains at ``bits_per_s``, followed by ``delay_s``.

    Which packets are lost depends only on ``seed`` and their number. Times are seconds of
    one clock, given as arguments.
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
        """The longest packet in bytes that passes from now on."""
        # Half a byte more, against rounding.
        self._max_wait_s = (queue_bytes + 0.5) * self._s_per_byte
        self._draw_loss = random.Random(f"loss {seed}").random  # noqa: S311  # must be repeatable
        self._draw_order = random.Random(f"order {seed}").random  # noqa: S311  # likewise
        self._free_at = -inf  # when the queue is empty
        self._in_flight: list[tuple[float, int, bytes]] = []
        self._is_cut = False
        self.stats = NetworkStats()

    def enqueue(self, packet: bytes, now: float) -> bool:
        """Send ``packet`` at ``now``, which never decreases.

        Return False if it is over the path MTU, which a router would report.
        """
        stats, size = self.stats, len(packet)
        stats.packets += 1
        stats.bytes += size
        if self._is_cut:
            stats.cut += 1
            return True
        if self._draw_loss() < self._loss:
            stats.lost += 1
            return True
        if size > self.path_mtu:
            stats.too_long += 1
            return False
        start = max(now, self._free_at)
        free_at = start + size * self._s_per_byte
        if free_at - now > self._max_wait_s:
            stats.dropped += 1
            return True
        self._free_at = free_at
        due = free_at + self._delay_s
        # Drawn only if enabled, to save time.
        if self._reorder and self._draw_order() < self._reorder:
            stats.reordered += 1
            due += max(_SHORTEST_HOLD_S, self._draw_order() * self._delay_s)
        # The number keeps packets with the same time in order.
        heapq.heappush(self._in_flight, (due, 2 * stats.packets, packet))
        if self._duplicate and self._draw_order() < self._duplicate:
            stats.duplicated += 1
            heapq.heappush(self._in_flight, (due, 2 * stats.packets + 1, packet))
        return True

    @property
    def in_flight(self) -> int:
        """How many packets, duplicates included, have not arrived yet."""
        return len(self._in_flight)

    @property
    def next_due(self) -> float:
        """When the next packet arrives; infinity if none is in flight."""
        return self._in_flight[0][0] if self._in_flight else inf

    def arrived(self, now: float) -> list[bytes]:
        """Return the packets that have arrived by ``now``, in order of arrival."""
        under_way, packets = self._in_flight, []
        if under_way and under_way[0][0] <= now:
            self.stats.latest_s = max(self.stats.latest_s, now - under_way[0][0])
            while under_way and under_way[0][0] <= now:
                packets.append(heapq.heappop(under_way)[2])
        return packets

    def cut(self) -> None:
        """Drop all packets from now on, also those in flight."""
        self._is_cut = True
        self.stats.cut += len(self._in_flight)
        self._in_flight.clear()
        self._free_at = -inf

    def restore(self) -> None:
        """Forward packets again after ``cut``."""
        self._is_cut = False
