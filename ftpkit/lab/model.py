"""The profile of a network, and the model of one direction: which packets pass, and when."""

import heapq
import random
import re
from dataclasses import dataclass
from math import inf
from typing import Final

# The least extra delay of a reordered packet, for networks without delay.
_SHORTEST_HOLD_S: Final = 0.001
_SMALLEST_MTU: Final = 1280  # IPv6 asks for it
_LARGEST_MTU: Final = 65535
_SMALLEST_QUEUE: Final = 64 * 1024

_NUMBER: Final = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
_FORM: Final = re.compile(
    rf"(?P<rate>{_NUMBER}) ?(?P<bits>[kKMG]), *(?P<delay>{_NUMBER}) ?(?P<unit>us|ms|s)"
    rf"(?:, *(?P<loss>{_NUMBER}) ?%)?"
)
_BITS: Final = {"K": 1e3, "M": 1e6, "G": 1e9}
_PER_SECOND: Final = {"us": 1e6, "ms": 1e3, "s": 1.0}


@dataclass(frozen=True, slots=True)
class NetworkProfile:
    """How packets are treated, in each direction separately.

    ``bits_per_s`` counts whole IP packets; ``delay_s`` is one way. ``loss``, ``reorder`` and
    ``duplicate`` are probabilities from 0 to below 1; a reordered packet is delayed by up to
    ``delay_s`` more. Packets beyond ``queue_bytes`` are dropped. The device accepts packets of
    up to ``mtu`` bytes; those over ``path_mtu`` are dropped and reported as a router does
    (ICMP), or silently if ``black_hole``. With the same ``seed``, the same packets, counted per
    direction, are lost. Raises ValueError for an impossible value.
    """

    bits_per_s: float
    delay_s: float
    loss: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    mtu: int = 1500
    path_mtu: int | None = None
    black_hole: bool = False
    queue_bytes: int | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.bits_per_s < inf:
            raise ValueError("the rate must be above 0 bits per second")
        if not 0 <= self.delay_s < inf:
            raise ValueError("the delay must be at least 0 seconds")
        for name in ("loss", "reorder", "duplicate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"the {name} must be at least 0 and below 1")
        if not _SMALLEST_MTU <= self.mtu <= _LARGEST_MTU:
            raise ValueError(f"the MTU must be {_SMALLEST_MTU} to {_LARGEST_MTU} bytes")
        if not _SMALLEST_MTU <= self.narrowest <= self.mtu:
            raise ValueError(f"the path MTU must be at least {_SMALLEST_MTU} and at most the MTU")
        if self.queue < self.mtu:
            raise ValueError("the queue must hold at least one packet")

    @classmethod
    def parse(cls, text: str) -> "NetworkProfile":
        """Parse ``100M,50ms,1%``: bits per second, one-way delay and, optionally, loss.

        Raises ValueError with a message for people.
        """
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise ValueError(
                f"invalid network {text!r}: use RATE,DELAY or RATE,DELAY,LOSS as in 100M,50ms,1%"
            )
        return cls(
            bits_per_s=float(match["rate"]) * _BITS[match["bits"].upper()],
            delay_s=float(match["delay"]) / _PER_SECOND[match["unit"]],
            loss=float(match["loss"] or 0) / 100,
        )

    @property
    def narrowest(self) -> int:
        """The longest packet that passes in bytes: ``path_mtu``, or ``mtu`` by default."""
        return self.mtu if self.path_mtu is None else self.path_mtu

    @property
    def queue(self) -> int:
        """The queue in bytes: ``queue_bytes``, or one bandwidth-delay product by default."""
        if self.queue_bytes is not None:
            return self.queue_bytes
        return max(round(self.bits_per_s * 2 * self.delay_s / 8), _SMALLEST_QUEUE)


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
    """A queue that drains at the rate of ``profile``, followed by its delay.

    Which packets are lost depends only on the seed, on ``to``, which names the direction, and
    on their number. Times are seconds of one clock, given as arguments.
    """

    def __init__(self, profile: NetworkProfile, to: str) -> None:
        self._profile, self._s_per_byte = profile, 8 / profile.bits_per_s
        self.path_mtu = profile.narrowest
        """The longest packet in bytes that passes from now on."""
        # Half a byte more, against rounding.
        self._max_wait_s = (profile.queue + 0.5) * self._s_per_byte
        seed = f"{profile.seed} to {to}"
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
        if self._draw_loss() < self._profile.loss:
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
        due = free_at + self._profile.delay_s
        # Drawn only if enabled, to save time.
        if self._profile.reorder and self._draw_order() < self._profile.reorder:
            stats.reordered += 1
            due += max(_SHORTEST_HOLD_S, self._draw_order() * self._profile.delay_s)
        # The number keeps packets with the same time in order.
        heapq.heappush(self._in_flight, (due, 2 * stats.packets, packet))
        if self._profile.duplicate and self._draw_order() < self._profile.duplicate:
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
