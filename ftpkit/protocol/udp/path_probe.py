"""Whether datagrams get through, how large they may be, and whose an address is."""

from collections.abc import Sequence
from typing import Final

from ftpkit.protocol.udp.packet import (
    FROM_SERVER,
    MIN_DATAGRAM,
    OVERHEAD,
    Datagram,
    Header,
    Kind,
    PacketNumbers,
    Probe,
    pack_header,
    pack_probe,
    read_probe,
)

# Each size goes twice at once, for one may be lost, and again after this.
_COPIES: Final = 2
_AGAIN_S: Final = 0.25
# How long a larger one may still come back after a smaller one did.
_GRACE_S: Final = 0.1
# A server that is silent for so long is asked whether it is still there.
_SILENCE_S: Final = 1.0
_REMEMBERED: Final = 64
_MAX_RTT_US: Final = 2**32 - 1


class PathProber:
    """The client's side of a path: finds the largest datagram that passes, and opens it.

    ``sizes`` are datagrams in bytes that are worth a try, the largest first. The
    server echoes each probe in its own size, with a proof that only who receives
    at this address learns; only then does it send anything else there. Datagrams
    are probed for and never fragmented (after RFC 8899).
    """

    def __init__(self, session: int, sizes: Sequence[int], now: float) -> None:
        self.piece = 0
        """How many bytes of a block a datagram carries; 0 until that is known."""
        self.rtt_s = 0.0
        """Seconds that the first echo took."""
        self._session, self._sizes = session, sizes
        self._numbers = PacketNumbers()
        self._sent_at: dict[int, float] = {}
        self._heard_at = self._due = now
        self._settle_at = float("inf")
        self._largest = 0
        self._proof = 0
        self._open = False

    @property
    def is_open(self) -> bool:
        """Whether the server was ever heard."""
        return self._largest > 0

    def note_received(self, now: float) -> None:
        """Note that the server sent something else than an echo: it knows our address."""
        self._heard_at, self._open = now, True

    def receive(self, header: Header, payload: bytes | memoryview, now: float) -> None:
        """Take an echo in."""
        probe = read_probe(payload)
        # Once: an echo that somebody kept must not bring an old proof back.
        sent_at = self._sent_at.pop(header.number, None)
        if sent_at is None:
            return
        self._heard_at = now
        if not self._largest:
            self.rtt_s = now - sent_at
            self._settle_at = now + max(self.rtt_s, _GRACE_S)
        self._largest = max(self._largest, len(payload) + OVERHEAD)
        if self._largest == self._sizes[0]:
            self._settle_at = now
        if probe.proof != self._proof:
            # This address is new to the server: show at once that we receive there.
            self._proof, self._open, self._due = probe.proof, False, now

    def next_event(self, now: float) -> float:
        """Return when there is something to do, if nothing arrives before."""
        if not self.piece:
            return min(self._due, self._settle_at)
        return max(self._due, self._heard_at + _SILENCE_S) if self._open else self._due

    def datagrams_to_send(self, now: float) -> list[Datagram]:
        """Return the probes that are due."""
        if not self.piece and now >= self._settle_at:
            self.piece, self._due = self._largest - OVERHEAD, now
        if now < self.next_event(now):
            return []
        if self.piece:
            self._due = now + max(2 * self.rtt_s, _GRACE_S)
            sizes: Sequence[int] = [MIN_DATAGRAM]
        else:
            self._due = now + _AGAIN_S
            sizes = self._sizes
        return [self._probe(size, now) for size in sizes for _ in range(_COPIES)]

    def _probe(self, size: int, now: float) -> Datagram:
        number = self._numbers.next()
        self._sent_at[number] = now
        while len(self._sent_at) > _REMEMBERED:
            del self._sent_at[next(iter(self._sent_at))]
        header = pack_header(self._session, number, Kind.PROBE)
        rtt_us = min(int(self.rtt_s * 1e6), _MAX_RTT_US)
        return Datagram(header, pack_probe(Probe(self._proof, self.piece, rtt_us), size))


def echo_of(header: Header, size: int, probe: Probe) -> Datagram:
    """Return the server's answer to a probe of ``size`` bytes: as long as it, and not longer.

    It repeats the probe's number, so each probe is answered once at most.
    """
    raw = pack_header(header.session, header.number, Kind.ECHO | FROM_SERVER)
    return Datagram(raw, pack_probe(probe, size))
