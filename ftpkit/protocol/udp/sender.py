"""The sending half of a row of blocks in datagrams: what leaves when, and what leaves again."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from ftpkit.errors import ProtocolError
from ftpkit.protocol.digest import DIGEST_BYTES
from ftpkit.protocol.udp.congestion import AckSample, CongestionControl
from ftpkit.protocol.udp.packet import (
    OVERHEAD,
    REMEMBERED,
    Ack,
    BlockBuffers,
    Datagram,
    Kind,
    PacketNumbers,
    ReceivedPackets,
    pack_header,
    read_ack,
)

# What leaves at once: the pace of a millisecond, and no less than two datagrams.
_BURST_S: Final = 0.001
_MIN_BURST: Final = 2
_MAX_BURST: Final = 512 * 1024
# Time that was not used is not saved up beyond this.
_CREDIT_S: Final = 0.004
# Longer than a receiver ever keeps an acknowledgement back.
_ACK_DELAY_S: Final = 0.025
_LEAST_VARIATION_S: Final = 0.010
_LONGEST_WAIT_S: Final = 1.0
_LEAST_TOLERANCE_S: Final = 0.001
# Copies that may turn out not to be needed, as a share of all pieces, and at least.
_SPARE: Final = 0.01
_LEAST_SPARE: Final = 4


Fill = Callable[[int, memoryview], None]
"""Given the number of a block, puts its bytes into memory, and their raw digest behind them."""


@dataclass(slots=True)
class Sent:
    """What has become of pieces, in bytes: left for the first time, left again, given up."""

    once: int = 0
    again: int = 0
    lost: int = 0


class _Flight(NamedTuple):
    block: int
    offset: int
    size: int
    sent_at: float
    delivered: int
    delivered_at: float
    first_sent_at: float
    quiet: bool


class Sender:
    """Sends blocks in pieces of ``piece`` bytes until each has arrived.

    ``sizes`` tells the blocks and their bytes; ``fill`` is called when there is room
    for the next, and what it raises passes. Call ``datagrams_to_send`` at the time that
    ``next_event`` tells, and ``receive_ack`` with each acknowledgement.

    A piece is given up when one that left later has arrived, with a tolerance that
    grows where that proves wrong (after RFC 9002, section 6.1.2); it leaves again. If
    nothing is acknowledged for long, the oldest leave again (section 6.2).
    """

    def __init__(
        self,
        session: int,
        piece: int,
        sizes: Mapping[int, int],
        fill: Fill,
        rate: CongestionControl,
        *,
        most_open: int,
        direction: int,
        rtt_s: float,
        now: float,
    ) -> None:
        self.sent = Sent()
        self.moved = 0
        """Bytes of blocks that have arrived."""
        self._session, self._piece, self._most_open = session, piece, most_open
        self._numbers = PacketNumbers()
        self._waiting, self._fill = deque(sizes.items()), fill
        self._congestion, self._kind = rate, Kind.DATA | direction
        self._memory = BlockBuffers()
        self._bodies: dict[int, memoryview] = {}
        self._missing: dict[int, set[int]] = {}
        self._fresh: deque[tuple[int, int]] = deque()
        self._again: deque[tuple[int, int]] = deque()
        self._flights: dict[int, _Flight] = {}
        self._given_up: dict[int, _Flight] = {}
        self._in_flight = 0
        self._arrivals = ReceivedPackets()
        self._delivered, self._delivered_at, self._first_sent_at = 0, now, now
        self._newest_sent_at = now
        self._rtt_s, self._variation_s, self._least_rtt_s = rtt_s, rtt_s / 2, rtt_s
        self._tolerance_s = max(rtt_s / 8, _LEAST_TOLERANCE_S)
        self._due = self._alarm_at = now
        self._alarms = self._spare_copies = 0
        self._starved = False

    @property
    def done(self) -> bool:
        """Whether every block has arrived."""
        return not self._waiting and not self._missing

    def next_event(self, now: float) -> float:
        """Return when there is something to do, if nothing arrives before."""
        at = now + _LONGEST_WAIT_S
        if self._flights:
            at = min(at, self._alarm_at)
        if self._in_flight < self._congestion.window and self._has_more():
            at = min(at, self._due)
        return at

    def datagrams_to_send(self, now: float) -> list[Datagram]:
        """Return what is to leave now."""
        datagrams: list[Datagram] = []
        if self._flights and now >= self._alarm_at:
            datagrams += self._ring(now)
        if now < self._due:
            return datagrams
        self._due = max(self._due, now - _CREDIT_S)
        bytes_per_s, window = self._congestion.bytes_per_s, self._congestion.window
        size, room = self._piece + OVERHEAD, self._burst(now)
        while room > 0 and self._in_flight < window:
            copies, piece = self._next_piece()
            datagrams += [self._datagram(piece, now) for _ in range(copies)]
            room -= size * copies
            if not copies:
                break
            self._due += size * copies / bytes_per_s
        # What is held back by neither pace nor window tells nothing of what they could be.
        self._starved = room > 0 and self._in_flight < window
        return datagrams

    def receive_ack(self, payload: bytes | memoryview, now: float) -> None:
        """Take an acknowledgement in; ProtocolError if it is none."""
        ack = read_ack(payload)
        if ack.largest > self._numbers.last or ack.bits & 1 != (ack.largest > 0):
            raise ProtocolError("an acknowledgement of what was never sent")
        newest, quiet_acked = self._take(ack)
        if newest is None:
            return
        self._alarms = 0
        rtt_s = now - newest.sent_at
        self._learn_rtt(rtt_s)
        quiet_lost = self._give_up()
        self._alarm_at = now + self._patience_s
        self._first_sent_at, self._delivered_at = newest.sent_at, now
        elapsed = max(newest.sent_at - newest.first_sent_at, now - newest.delivered_at)
        self._congestion.on_ack(
            AckSample(
                now=now,
                rtt_s=rtt_s,
                # Over less than a round trip, acknowledgements that bunch look like speed.
                bytes_per_s=(self._delivered - newest.delivered) / elapsed
                if elapsed >= self._least_rtt_s > 0
                else 0.0,
                delivered=self._delivered,
                lost=self.sent.lost,
                delivered_before=newest.delivered,
                in_flight=self._in_flight,
                quiet_acked=quiet_acked,
                quiet_lost=quiet_lost,
                starved=self._starved,
            )
        )

    # What leaves

    def _burst(self, now: float) -> float:
        """Return how many bytes may leave at once, by the pace."""
        paced = (now - self._due + _BURST_S) * self._congestion.bytes_per_s
        return min(max(paced, _MIN_BURST * (self._piece + OVERHEAD)), _MAX_BURST)

    def _next_piece(self) -> tuple[int, tuple[int, int]]:
        """Return what is to leave next and in how many copies, 0 if there is nothing."""
        while self._again:
            block, offset = piece = self._again.popleft()
            if self._is_missing(block, offset):
                copies = self._copies()
                self.sent.again += copies * self._size(block, offset)
                return copies, piece
        if not self._has_fresh():
            return 0, (0, 0)
        block, offset = piece = self._fresh.popleft()
        self.sent.once += self._size(block, offset)
        return 1, piece

    def _copies(self) -> int:
        """Return in how many copies a repair leaves.

        Behind the last piece a loss costs a round trip of its own, and two are likelier to
        arrive than one; but what is not needed must stay little beside the blocks.
        """
        most = max(_LEAST_SPARE, self.sent.once / self._piece * _SPARE)
        if self._fresh or self._waiting or self._spare_copies >= most:
            return 1
        self._spare_copies += 1
        return 2

    def _has_more(self) -> bool:
        return bool(self._again) or self._has_fresh()

    def _has_fresh(self) -> bool:
        """Whether there is a piece that never left; the next block is opened if there is room."""
        if self._fresh:
            return True
        if not self._waiting or len(self._missing) >= self._most_open:
            return False
        block, size = self._waiting[0]
        body = self._memory.borrow(size + DIGEST_BYTES)
        self._fill(block, body)
        self._waiting.popleft()
        offsets = range(0, len(body), self._piece)
        self._bodies[block], self._missing[block] = body, set(offsets)
        self._fresh.extend((block, offset) for offset in offsets)
        return True

    def _datagram(self, piece: tuple[int, int], now: float) -> Datagram:
        block, offset = piece
        if not self._flights:
            self._delivered_at = self._first_sent_at = now
            self._alarm_at = now + self._patience_s
        payload = self._bodies[block][offset : offset + self._piece]
        size = len(payload) + OVERHEAD
        number = self._numbers.next()
        self._flights[number] = _Flight(
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
        return Datagram(pack_header(self._session, number, self._kind, block, offset), payload)

    def _size(self, block: int, offset: int) -> int:
        return min(self._piece, len(self._bodies[block]) - offset)

    # What is known to have arrived, and what not

    def _take(self, ack: Ack) -> tuple[_Flight | None, int]:
        """Note what an acknowledgement adds; return the newest of it, and what left quietly."""
        newest, quiet = None, 0
        fresh = ack.bits & ~self._arrivals.since(ack.largest)
        self._arrivals.merge(ack.largest, ack.bits)
        while fresh:
            lowest = fresh & -fresh
            fresh ^= lowest
            number = ack.largest + 1 - lowest.bit_length()
            flight = self._flights.pop(number, None)
            if flight is not None:
                self._in_flight -= flight.size
            elif (flight := self._given_up.pop(number, None)) is not None:
                # It was late and not lost.
                self.sent.lost -= flight.size
                self._tolerance_s = min(2 * self._tolerance_s, self._rtt_s)
            else:
                continue
            self._delivered += flight.size
            quiet += flight.size if flight.quiet else 0
            self._arrive(flight.block, flight.offset)
            if newest is None:
                newest = flight
        if newest is not None:
            self._newest_sent_at = max(self._newest_sent_at, newest.sent_at)
        return newest, quiet

    def _arrive(self, block: int, offset: int) -> None:
        if not self._is_missing(block, offset):
            return
        missing = self._missing[block]
        missing.discard(offset)
        length = len(self._bodies[block]) - DIGEST_BYTES
        self.moved += max(0, min(offset + self._piece, length) - offset)
        if not missing:
            del self._missing[block]
            self._memory.release(self._bodies.pop(block))

    def _give_up(self) -> int:
        """Let pieces leave again that are surely lost; return how many of their bytes were quiet.

        In the order in which they left, so the first one that is not old enough ends it.
        """
        quiet, latest = 0, self._newest_sent_at - self._tolerance_s
        lost = []
        for number, flight in self._flights.items():
            if flight.sent_at >= latest:
                break
            lost.append(number)
        for number in lost:
            flight = self._flights.pop(number)
            self._in_flight -= flight.size
            self.sent.lost += flight.size
            quiet += flight.size if flight.quiet else 0
            self._again.append((flight.block, flight.offset))
            self._given_up[number] = flight
        while len(self._given_up) > REMEMBERED:
            del self._given_up[next(iter(self._given_up))]
        return quiet

    def _ring(self, now: float) -> list[Datagram]:
        """Nothing was heard for long: let the oldest leave again, whatever pace and window say."""
        self._alarms += 1
        self._alarm_at = now + min(self._patience_s * 2**self._alarms, _LONGEST_WAIT_S)
        for number, flight in list(self._flights.items()):
            if not self._is_missing(flight.block, flight.offset):
                # Another copy arrived: what became of this one no longer matters.
                del self._flights[number]
                self._in_flight -= flight.size
        oldest = dict.fromkeys((flight.block, flight.offset) for flight in self._flights.values())
        pieces = list(oldest)[:_MIN_BURST]
        self.sent.again += sum(self._size(*piece) for piece in pieces)
        return [self._datagram(piece, now) for piece in pieces]

    def _is_missing(self, block: int, offset: int) -> bool:
        return offset in self._missing.get(block, ())

    @property
    def _patience_s(self) -> float:
        return self._rtt_s + max(4 * self._variation_s, _LEAST_VARIATION_S) + _ACK_DELAY_S

    def _learn_rtt(self, rtt_s: float) -> None:
        """Smooth the round-trip time as RFC 9002, section 5.3 does."""
        self._least_rtt_s = min(self._least_rtt_s, rtt_s)
        self._variation_s += (abs(self._rtt_s - rtt_s) - self._variation_s) / 4
        self._rtt_s += (rtt_s - self._rtt_s) / 8
