"""A seeded network in simulated time between both sides of a session, without sockets.

Times are seconds, rates bytes a second.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from ftpkit.protocol.udp.packet import (
    OVERHEAD,
    TAG,
    Datagram,
    Header,
    Kind,
    Probe,
    read_header,
    read_probe,
)
from ftpkit.protocol.udp.path_probe import echo_of
from ftpkit.protocol.udp.session import (
    DatagramSession,
    DatagramTransfer,
    ServerDatagramSession,
)

# IP and UDP headers, which take bandwidth as well.
_HEADERS: Final = 28


@dataclass(slots=True)
class Lossy:
    """One direction of a network; the size of a packet includes its IP and UDP headers."""

    bytes_per_s: float = 12.5e6
    delay_s: float = 0.05
    loss: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    queue: float = 2.5e6
    mtu: int = 1500
    dead: Callable[[float], bool] = lambda now: False
    seed: int = 1
    passed: int = 0
    overflowed: int = 0
    _free_at: float = 0.0
    _chance: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self._chance.seed(self.seed)

    def arrivals(self, size: int, now: float) -> list[float]:
        """Return when a packet arrives: never, once, or twice."""
        if size > self.mtu or self.dead(now) or self._chance.random() < self.loss:
            return []
        if (max(self._free_at, now) - now) * self.bytes_per_s + size > self.queue:
            self.overflowed += 1
            return []
        self._free_at = max(self._free_at, now) + size / self.bytes_per_s
        at = self._free_at + self.delay_s
        if self._chance.random() < self.reorder:
            at += self._chance.uniform(0, self.delay_s)
        self.passed += size
        return [at] * (2 if self._chance.random() < self.duplicate else 1)


class Doorway:
    """The server before a session: echoes probes, and starts when the address is proven."""

    def __init__(
        self, start: Callable[[int, float, float], DatagramTransfer], proof: int = 77
    ) -> None:
        self.end: ServerDatagramSession | None = None
        self.proof = proof
        self._start = start
        self.probes: list[Probe] = []
        self._echoes: list[Datagram] = []
        self._last = 0

    def receive(self, header: Header, payload: bytes | memoryview, now: float) -> None:
        """Echo a probe, or pass a datagram to the session."""
        if header.kind != Kind.PROBE:
            if self.end is not None:
                self.end.receive(header, payload, now)
        elif header.number > self._last:
            self._last, probe = header.number, read_probe(payload)
            self.probes.append(probe)
            if self.end is None and probe.proof == self.proof and probe.piece:
                transfer = self._start(probe.piece, probe.rtt_us / 1e6, now)
                self.end = ServerDatagramSession(
                    header.session, transfer, lambda header, payload: None
                )
            size = len(payload) + OVERHEAD
            self._echoes.append(echo_of(header, size, Probe(self.proof, probe.piece, 0)))

    def datagrams_to_send(self, now: float) -> list[Datagram]:
        """Return the datagrams to send now."""
        echoes, self._echoes = self._echoes, []
        return echoes + (self.end.datagrams_to_send(now) if self.end else [])

    def next_event(self, now: float) -> float:
        """Return the time of the next call."""
        if self._echoes:
            return now
        return self.end.next_event(now) if self.end else now + 1


def converse(
    near: DatagramSession,
    far: DatagramSession,
    up: Lossy,
    down: Lossy,
    *,
    until: Callable[[float], bool],
    limit_s: float = 600.0,
) -> float:
    """Run both sides over a network until ``until(now)``; return that time.

    A side is called at its ``next_event``, and when something arrives.
    """
    now, order = 0.0, count()
    queue: list[tuple[float, int, DatagramSession, bytes, bytes]] = []
    sides = ((near, far, up), (far, near, down))
    while not until(now):
        assert now < limit_s, "timeout"
        for end, other, network in sides:
            for header, payload in end.datagrams_to_send(now):
                size = len(header) + len(payload) + TAG + _HEADERS
                for at in network.arrivals(size, now):
                    heapq.heappush(queue, (at, next(order), other, header, bytes(payload)))
        wanted = min(end.next_event(now) for end, _, _ in sides)
        # Time always advances, even if a side wants to be called at once.
        now = max(now + 1e-6, min(wanted, queue[0][0]) if queue else wanted)
        while queue and queue[0][0] <= now:
            _, _, end, raw, payload = heapq.heappop(queue)
            opened = read_header(raw + bytes(TAG))
            assert opened is not None
            end.receive(opened, payload, now)
    return now
