"""Path probing: whether datagrams pass, how large they may be, and proof of the address."""

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

# Each size is sent in two copies, as one may be lost, and again after this time.
_COPIES: Final = 2
_RETRY_S: Final = 0.25
# How long to wait for the echo of a larger probe after that of a smaller one.
_GRACE_S: Final = 0.1
# A server that was silent for this long is probed again.
_SILENCE_S: Final = 1.0
_REMEMBERED: Final = 64
_MAX_RTT_US: Final = 2**32 - 1


class PathProber:
    """The client's side: finds the largest datagram that passes, and proves its address.

    ``sizes`` are the datagram sizes to try in bytes, the largest first. The server echoes
    each probe in the same size, with a proof (as a QUIC path validation, RFC 9000 section
    8.2) that the client must return before the server sends anything else to its address.
    Datagrams are never fragmented; the sizes are probed as in RFC 8899. Times are seconds.
    """

    def __init__(self, session: int, sizes: Sequence[int], now: float) -> None:
        self.piece = 0
        """The bytes of a block in one datagram; 0 until the probing is done."""
        self.rtt_s = 0.0
        """The round-trip time of the first probe in seconds."""
        self._sizes = sizes
        self._numbers = PacketNumbers(session, Kind.PROBE)
        self._sent_at: dict[int, float] = {}
        self._last_received_at = self._next_probe_at = now
        self._decide_at = float("inf")
        self._largest = 0
        self._proof = 0
        self._open = False

    @property
    def is_open(self) -> bool:
        """Whether an echo has arrived."""
        return self._largest > 0

    def note_received(self, now: float) -> None:
        """Note a datagram other than an echo: the server has accepted our address."""
        self._last_received_at, self._open = now, True

    def receive(self, header: Header, payload: bytes | memoryview, now: float) -> None:
        """Process an echo; ProtocolError if it is malformed."""
        probe = read_probe(payload)
        # Each probe has one echo: a replayed one must not restore an old proof.
        sent_at = self._sent_at.pop(header.number, None)
        if sent_at is None:
            return
        self._last_received_at = now
        if not self._largest:
            self.rtt_s = now - sent_at
            self._decide_at = now + max(self.rtt_s, _GRACE_S)
        self._largest = max(self._largest, len(payload) + OVERHEAD)
        if self._largest == self._sizes[0]:
            self._decide_at = now
        if probe.proof != self._proof:
            # Our address is new to the server: return the proof at once.
            self._proof, self._open, self._next_probe_at = probe.proof, False, now

    def next_event(self, now: float) -> float:
        """Return the time of the next call, if nothing arrives before."""
        if not self.piece:
            return min(self._next_probe_at, self._decide_at)
        silent_at = self._last_received_at + _SILENCE_S
        return max(self._next_probe_at, silent_at) if self._open else self._next_probe_at

    def datagrams_to_send(self, now: float) -> list[Datagram]:
        if not self.piece and now >= self._decide_at:
            self.piece, self._next_probe_at = self._largest - OVERHEAD, now
        if now < self.next_event(now):
            return []
        self._next_probe_at = now + (max(2 * self.rtt_s, _GRACE_S) if self.piece else _RETRY_S)
        sizes = [MIN_DATAGRAM] if self.piece else self._sizes
        return [self._probe(size, now) for size in sizes for _ in range(_COPIES)]

    def _probe(self, size: int, now: float) -> Datagram:
        header = self._numbers.next_header()
        self._sent_at[self._numbers.last] = now
        while len(self._sent_at) > _REMEMBERED:
            del self._sent_at[next(iter(self._sent_at))]
        rtt_us = min(int(self.rtt_s * 1e6), _MAX_RTT_US)
        return Datagram(header, pack_probe(Probe(self._proof, self.piece, rtt_us), size))


def echo_of(header: Header, size: int, probe: Probe) -> Datagram:
    """Return the echo of a probe of ``size`` bytes: not longer, so it amplifies nothing.

    It repeats the probe's number, so each probe has at most one echo.
    """
    raw = pack_header(header.session, header.number, Kind.ECHO | FROM_SERVER)
    return Datagram(raw, pack_probe(probe, size))
