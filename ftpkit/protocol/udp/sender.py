"""The sender of a UDP session: pacing, loss detection and retransmission of blocks."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from ftpkit.errors import ProtocolError
from ftpkit.protocol.digest import DIGEST_BYTES
from ftpkit.protocol.udp.congestion import AckSample, BbrControl
from ftpkit.protocol.udp.packet import (
    FROM_SERVER,
    OVERHEAD,
    REMEMBERED,
    Ack,
    BlockBuffers,
    Datagram,
    Header,
    Kind,
    PacketNumbers,
    ReceivedPackets,
    read_ack,
)

# A burst has the bytes of a millisecond, and at least two datagrams.
BURST_S: Final = 0.001
_MIN_BURST_DATAGRAMS: Final = 2
MAX_BURST_BYTES: Final = 512 * 1024
# How far pacing may fall behind and catch up; idle time beyond this is forfeited.
CREDIT_S: Final = 0.004
# The most by which a receiver delays an acknowledgement, with a margin for its scheduling.
_ACK_DELAY_S: Final = 0.025
_MIN_VARIATION_S: Final = 0.010
MAX_WAIT_S: Final = 1.0
_MIN_TOLERANCE_S: Final = 0.001
# Second copies of retransmitted pieces: at most this share of all pieces, but this many.
_EXTRA_SHARE: Final = 0.01
_MIN_EXTRA: Final = 4


Fill = Callable[[int, memoryview], None]
"""Called with a block's number and memory; writes its bytes and then their raw digest."""


@dataclass(slots=True)
class SentBytes:
    """Bytes of pieces sent for the first time, sent again, and declared lost."""

    first: int = 0
    resent: int = 0
    lost: int = 0


class _SentPacket(NamedTuple):
    block: int
    offset: int
    size: int
    sent_at: float
    delivered: int
    delivered_at: float
    first_sent_at: float
    quiet: bool


class Sender:
    """Sends blocks in pieces of ``piece`` bytes until all are acknowledged.

    ``sizes`` maps the numbers of the blocks to their bytes. ``fill`` is called when the next
    block is opened, at most ``max_open`` at a time; its exceptions propagate. Call
    ``datagrams_to_send`` at the time that ``next_event`` returns, and ``receive`` with
    each acknowledgement. ``rtt_s`` is a first estimate; times are seconds.

    A piece is declared lost, and sent again, when one sent later is acknowledged. The time
    threshold (RFC 9002, section 6.1.2) adapts: it doubles when a lost piece turns out to be
    late. Without acknowledgements, a probe timeout sends the oldest again (section 6.2).
    """

    def __init__(
        self,
        session: int,
        piece: int,
        sizes: Mapping[int, int],
        fill: Fill,
        congestion: BbrControl,
        *,
        max_open: int,
        direction: int,
        rtt_s: float,
        now: float,
    ) -> None:
        self.sent = SentBytes()
        self.moved = 0
        """Bytes of blocks acknowledged."""
        self._piece, self._max_open, self._congestion = piece, max_open, congestion
        self._numbers = PacketNumbers(session, Kind.DATA | direction)
        self._pending, self._fill = deque(sizes.items()), fill
        self._memory = BlockBuffers()
        self._bodies: dict[int, memoryview] = {}
        self._missing: dict[int, set[int]] = {}
        self._unsent: deque[tuple[int, int]] = deque()
        self._resend: deque[tuple[int, int]] = deque()
        self._packets: dict[int, _SentPacket] = {}
        self._lost: dict[int, _SentPacket] = {}
        self._in_flight = 0
        self._acked = ReceivedPackets()
        self._delivered, self._delivered_at, self._first_sent_at = 0, now, now
        self._newest_sent_at = now
        self._rtt_s, self._variation_s, self._min_rtt_s = rtt_s, rtt_s / 2, rtt_s
        self._tolerance_s = max(rtt_s / 8, _MIN_TOLERANCE_S)
        self._next_send_at = self._probe_at = now
        self._probe_count = self._extra_copies = 0
        self._app_limited = False

    @property
    def done(self) -> bool:
        """Whether every block is acknowledged."""
        return not self._pending and not self._missing

    def next_event(self, now: float) -> float:
        at = now + MAX_WAIT_S
        if self._packets:
            at = min(at, self._probe_at)
        if self._in_flight < self._congestion.window and (self._resend or self._has_unsent()):
            at = min(at, self._next_send_at)
        return at

    def datagrams_to_send(self, now: float) -> list[Datagram]:
        datagrams: list[Datagram] = []
        if self._packets and now >= self._probe_at:
            datagrams += self._on_probe_timeout(now)
        if now < self._next_send_at:
            return datagrams
        self._next_send_at = max(self._next_send_at, now - CREDIT_S)
        bytes_per_s, window = self._congestion.bytes_per_s, self._congestion.window
        size, paced = self._piece + OVERHEAD, (now - self._next_send_at + BURST_S) * bytes_per_s
        allowance = min(max(paced, _MIN_BURST_DATAGRAMS * size), MAX_BURST_BYTES)
        while allowance > 0 and self._in_flight < window:
            copies, piece = self._next_piece()
            datagrams += [self._datagram(piece, now) for _ in range(copies)]
            allowance -= size * copies
            if not copies:
                break
            self._next_send_at += size * copies / bytes_per_s
        # Neither pacing nor window held anything back, so this shows nothing of the bandwidth.
        self._app_limited = allowance > 0 and self._in_flight < window
        return datagrams

    def receive(self, header: Header, payload: bytes | memoryview, now: float) -> None:
        if header.kind & ~FROM_SERVER != Kind.ACK:
            return
        ack = read_ack(payload)
        if ack.largest > self._numbers.last or ack.bits & 1 != (ack.largest > 0):
            raise ProtocolError("an acknowledgement of a datagram that was never sent")
        newest, quiet_acked = self._process_ack(ack)
        if newest is None:
            return
        self._probe_count = 0
        rtt_s = now - newest.sent_at
        self._update_rtt(rtt_s)
        quiet_lost = self._detect_lost()
        self._probe_at = now + self._probe_timeout_s
        self._first_sent_at, self._delivered_at = newest.sent_at, now
        elapsed = max(newest.sent_at - newest.first_sent_at, now - newest.delivered_at)
        self._congestion.on_ack(
            AckSample(
                now=now,
                rtt_s=rtt_s,
                # Over less than a round trip, bunched acknowledgements inflate the rate.
                bytes_per_s=(self._delivered - newest.delivered) / elapsed
                if elapsed >= self._min_rtt_s > 0
                else 0.0,
                delivered=self._delivered,
                lost=self.sent.lost,
                prior_delivered=newest.delivered,
                in_flight=self._in_flight,
                quiet_acked=quiet_acked,
                quiet_lost=quiet_lost,
                app_limited=self._app_limited,
            )
        )

    def _next_piece(self) -> tuple[int, tuple[int, int]]:
        """Return the number of copies to send, 0 if there is nothing, and the next piece."""
        while self._resend:
            block, offset = piece = self._resend.popleft()
            if self._is_missing(block, offset):
                copies = self._copies()
                self.sent.resent += copies * self._size(block, offset)
                return copies, piece
        if not self._has_unsent():
            return 0, (0, 0)
        block, offset = piece = self._unsent.popleft()
        self.sent.first += self._size(block, offset)
        return 1, piece

    def _copies(self) -> int:
        """Return in how many copies to send a piece again.

        When nothing else is left to send, another loss costs a whole round trip, so two
        copies go; their number is limited to keep the overhead small.
        """
        most = max(_MIN_EXTRA, self.sent.first / self._piece * _EXTRA_SHARE)
        if self._unsent or self._pending or self._extra_copies >= most:
            return 1
        self._extra_copies += 1
        return 2

    def _has_unsent(self) -> bool:
        """Whether there is a piece to send for the first time; open the next block if allowed."""
        if self._unsent:
            return True
        if not self._pending or len(self._missing) >= self._max_open:
            return False
        block, size = self._pending[0]
        body = self._memory.borrow(size + DIGEST_BYTES)
        self._fill(block, body)
        self._pending.popleft()
        offsets = range(0, len(body), self._piece)
        self._bodies[block], self._missing[block] = body, set(offsets)
        self._unsent.extend((block, offset) for offset in offsets)
        return True

    def _datagram(self, piece: tuple[int, int], now: float) -> Datagram:
        block, offset = piece
        if not self._packets:
            self._delivered_at = self._first_sent_at = now
            self._probe_at = now + self._probe_timeout_s
        payload = self._bodies[block][offset : offset + self._piece]
        size = len(payload) + OVERHEAD
        header = self._numbers.next_header(block, offset)
        self._packets[self._numbers.last] = _SentPacket(
            block,
            offset,
            size,
            now,
            self._delivered,
            self._delivered_at,
            self._first_sent_at,
            self._congestion.quiet,
        )
        self._in_flight += size
        return Datagram(header, payload)

    def _size(self, block: int, offset: int) -> int:
        return min(self._piece, len(self._bodies[block]) - offset)

    def _process_ack(self, ack: Ack) -> tuple[_SentPacket | None, int]:
        """Return the newest packet that is newly acknowledged, and the bytes sent ``quiet``."""
        newest, quiet = None, 0
        fresh = ack.bits & ~self._acked.since(ack.largest)
        self._acked.add(ack.largest, ack.bits)
        while fresh:
            lowest = fresh & -fresh
            fresh ^= lowest
            number = ack.largest + 1 - lowest.bit_length()
            packet = self._packets.pop(number, None)
            if packet is not None:
                self._in_flight -= packet.size
            elif (packet := self._lost.pop(number, None)) is not None:
                # Late, not lost: the loss was declared too early.
                self.sent.lost -= packet.size
                self._tolerance_s = min(2 * self._tolerance_s, self._rtt_s)
            else:
                continue
            self._delivered += packet.size
            quiet += packet.size if packet.quiet else 0
            self._on_arrived(packet.block, packet.offset)
            if newest is None:
                newest = packet
        if newest is not None:
            self._newest_sent_at = max(self._newest_sent_at, newest.sent_at)
        return newest, quiet

    def _on_arrived(self, block: int, offset: int) -> None:
        if not self._is_missing(block, offset):
            return
        missing = self._missing[block]
        missing.discard(offset)
        length = len(self._bodies[block]) - DIGEST_BYTES
        self.moved += max(0, min(offset + self._piece, length) - offset)
        if not missing:
            del self._missing[block]
            self._memory.release(self._bodies.pop(block))

    def _detect_lost(self) -> int:
        """Queue lost pieces for sending again; return their bytes that were sent ``quiet``."""
        quiet, latest = 0, self._newest_sent_at - self._tolerance_s
        lost = []
        for number, packet in self._packets.items():  # in the order in which they were sent
            if packet.sent_at >= latest:
                break
            lost.append(number)
        for number in lost:
            packet = self._packets.pop(number)
            self._in_flight -= packet.size
            self.sent.lost += packet.size
            quiet += packet.size if packet.quiet else 0
            self._resend.append((packet.block, packet.offset))
            self._lost[number] = packet
        while len(self._lost) > REMEMBERED:
            del self._lost[next(iter(self._lost))]
        return quiet

    def _on_probe_timeout(self, now: float) -> list[Datagram]:
        """Return the oldest pieces to send again, regardless of pacing and window."""
        self._probe_count += 1
        self._probe_at = now + min(self._probe_timeout_s * 2**self._probe_count, MAX_WAIT_S)
        for number, packet in list(self._packets.items()):
            if not self._is_missing(packet.block, packet.offset):
                # Another copy of the piece has arrived.
                del self._packets[number]
                self._in_flight -= packet.size
        oldest = dict.fromkeys((packet.block, packet.offset) for packet in self._packets.values())
        pieces = list(oldest)[:_MIN_BURST_DATAGRAMS]
        self.sent.resent += sum(self._size(*piece) for piece in pieces)
        return [self._datagram(piece, now) for piece in pieces]

    def _is_missing(self, block: int, offset: int) -> bool:
        return offset in self._missing.get(block, ())

    @property
    def _probe_timeout_s(self) -> float:
        return self._rtt_s + max(4 * self._variation_s, _MIN_VARIATION_S) + _ACK_DELAY_S

    def _update_rtt(self, rtt_s: float) -> None:
        """Update the smoothed round-trip time and its variation (RFC 9002, section 5.3)."""
        self._min_rtt_s = min(self._min_rtt_s, rtt_s)
        self._variation_s += (abs(self._rtt_s - rtt_s) - self._variation_s) / 4
        self._rtt_s += (rtt_s - self._rtt_s) / 8
