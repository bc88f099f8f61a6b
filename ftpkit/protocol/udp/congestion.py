"""How fast datagrams leave: strategies that are told what arrived, and say how fast to go on."""

from collections import deque
from dataclasses import dataclass
from typing import Final, Protocol

# BBR's startup gain, 2 / ln 2: it doubles the rate with every round trip.
_STARTUP_GAIN: Final = 2.885
# One round trip asks for more, the next one drains what that has queued, six hold.
_CYCLE: Final = (1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
_YIELD_GAIN: Final = 0.9
_RATE_ROUNDS: Final = 10
_FULL_ROUNDS: Final = 3
_FULL_GROWTH: Final = 1.25
_MIN_RTT_S: Final = 30.0
# A peer may claim to have measured none.
_LEAST_RTT_S: Final = 0.001
# A path that others have filled is told from the noise of two schedulers by this much.
_QUEUE_RATIO: Final = 1.25
_QUEUE_S: Final = 0.005
_WINDOW_RTTS: Final = 2.0
# A receiver is busy with a block for about so long; more overflows the queue before it.
_KEPT_BACK_S: Final = 0.003
_MIN_WINDOW: Final = 16
_MIN_RATE: Final = 4
# What leaves before anything is known: so many datagrams, but of large ones fewer.
_FIRST_WINDOW: Final = 32
_FIRST_BYTES: Final = 256 * 1024
# Loss up to here is taken for the path's own, and made up for.
_TOLERATED_LOSS: Final = 0.2
_LOSS_MEMORY: Final = 0.6


@dataclass(frozen=True, slots=True)
class AckSample:
    """What one acknowledgement told: bytes, bytes a second, seconds.

    ``delivered`` counts all bytes that have arrived and ``lost`` those that were given
    up; ``delivered_before`` is what had arrived when the newest acknowledged
    datagram left; ``quiet_acked`` and
    ``quiet_lost`` are bytes of datagrams that left while the rate was ``quiet``.
    ``starved`` says that there was too little to send to use the rate.
    """

    now: float
    rtt_s: float
    bytes_per_s: float
    delivered: int
    lost: int
    delivered_before: int
    in_flight: int
    quiet_acked: int = 0
    quiet_lost: int = 0
    starved: bool = False


class CongestionControl(Protocol):
    """Decides how fast datagrams leave and how many bytes may be under way."""

    @property
    def bytes_per_s(self) -> float:
        """Bytes a second."""

    @property
    def window(self) -> float:
        """Bytes that may be under way at once."""

    @property
    def quiet(self) -> bool:
        """Whether what leaves now finds no queue of our own making."""

    def on_ack(self, sample: AckSample) -> None:
        """Take in what an acknowledgement told."""


class FixedRateControl:
    """Sends at one rate, whatever becomes of it: for comparison only."""

    quiet = False

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.window = float("inf")

    def on_ack(self, sample: AckSample) -> None:
        """Learn nothing."""


class BbrControl:
    """Follows the highest rate at which bytes have arrived of late, and not the losses.

    After BBR (Cardwell et al., ACM Queue 2016): the rate is the highest delivery
    rate of the last ten round trips; one round trip in eight asks for a quarter
    more and the next one drains; the window is two bandwidth-delay products.
    Unlike BBR it makes up for losses of up to 20 %, but only for those that occur
    while our own queue is empty, so that overflow is never taken for a bad line;
    and it sends a tenth less than the path gives while the delay says that others
    are queueing. There is no phase that sends nothing to measure the delay: every
    drained round trip does.
    """

    def __init__(
        self, datagram: int, rtt_s: float, now: float, max_bytes_per_s: float | None = None
    ) -> None:
        self._datagram, self._cap_bps = datagram, max_bytes_per_s
        self._rates: deque[tuple[int, float]] = deque()
        self._rtts: deque[tuple[float, float]] = deque([(now, rtt_s)])
        self._first_window = min(_FIRST_WINDOW * datagram, max(_FIRST_BYTES, 4 * datagram))
        self._first_bps = self._first_window / (rtt_s + _KEPT_BACK_S)
        self._round = 0
        self._round_ends = 0
        self._round_rtt_s = self._last_rtt_s = rtt_s
        self._full_bps, self._full_rounds = 0.0, 0
        self._starting, self._draining = True, False
        self._delivered_then = self._lost_then = 0
        self._cycle = 2
        self._lost = self._acked = 0.0

    @property
    def bytes_per_s(self) -> float:
        """Bytes a second."""
        rate = self._gain * self._highest / (1 - self._loss)
        # However bad a line is, something is sent, or it would never be found to be better.
        rate = max(rate, _MIN_RATE * self._datagram / max(self._rtt_s, _LEAST_RTT_S))
        return rate if self._cap_bps is None else min(rate, self._cap_bps)

    @property
    def window(self) -> float:
        """Bytes that may be under way: two bandwidth-delay products, and what is kept back."""
        gain = _STARTUP_GAIN if self._starting else _WINDOW_RTTS
        floor = self._first_window if self._starting else _MIN_WINDOW * self._datagram
        longest_s = self._rtt_s + _KEPT_BACK_S
        return max(gain * self._highest * longest_s, floor)

    @property
    def quiet(self) -> bool:
        """Whether our own queue is drained now."""
        return self._gain < 1

    def on_ack(self, sample: AckSample) -> None:
        """Take in what an acknowledgement told."""
        self._learn_rtt(sample)
        self._learn_loss(sample)
        if sample.bytes_per_s > 0 and (not sample.starved or sample.bytes_per_s > self._highest):
            while self._rates and self._rates[-1][1] <= sample.bytes_per_s:
                self._rates.pop()
            self._rates.append((self._round, sample.bytes_per_s))
        if sample.delivered_before >= self._round_ends:
            self._round_ends = sample.delivered
            self._next_round(sample)
        if self._draining and sample.in_flight <= self._highest * self._rtt_s:
            self._draining = False

    @property
    def _highest(self) -> float:
        return self._rates[0][1] if self._rates else self._first_bps

    @property
    def _rtt_s(self) -> float:
        return self._rtts[0][1]

    @property
    def _gain(self) -> float:
        if self._starting:
            return _STARTUP_GAIN
        if self._draining:
            return 1 / _STARTUP_GAIN
        gain = _CYCLE[self._cycle]
        return _YIELD_GAIN if gain == 1 and self._queueing else gain

    @property
    def _queueing(self) -> bool:
        return self._last_rtt_s > self._rtt_s * _QUEUE_RATIO + _QUEUE_S

    @property
    def _loss(self) -> float:
        return min(self._lost / max(self._acked + self._lost, 1.0), _TOLERATED_LOSS)

    def _next_round(self, sample: AckSample) -> None:
        self._round += 1
        while len(self._rates) > 1 and self._rates[0][0] < self._round - _RATE_ROUNDS:
            self._rates.popleft()
        self._last_rtt_s, self._round_rtt_s = self._round_rtt_s, sample.rtt_s
        lost, delivered = sample.lost - self._lost_then, sample.delivered - self._delivered_then
        self._lost_then, self._delivered_then = sample.lost, sample.delivered
        if self._starting and not sample.starved:
            self._detect_full_pipe(overflow=lost > _TOLERATED_LOSS * (lost + delivered))
        elif not self._draining:
            self._cycle = (self._cycle + 1) % len(_CYCLE)

    def _detect_full_pipe(self, *, overflow: bool) -> None:
        """End the start when the rate grows no more: at once if a queue shows it, too."""
        if self._highest >= self._full_bps * _FULL_GROWTH:
            self._full_bps, self._full_rounds = self._highest, 0
            return
        self._full_rounds += 1
        if overflow or self._queueing or self._full_rounds >= _FULL_ROUNDS:
            self._starting, self._draining = False, True

    def _learn_rtt(self, sample: AckSample) -> None:
        self._round_rtt_s = min(self._round_rtt_s, sample.rtt_s)
        while self._rtts and self._rtts[-1][1] >= sample.rtt_s:
            self._rtts.pop()
        self._rtts.append((sample.now, sample.rtt_s))
        while self._rtts[0][0] < sample.now - _MIN_RTT_S:
            self._rtts.popleft()

    def _learn_loss(self, sample: AckSample) -> None:
        if sample.quiet_acked or sample.quiet_lost:
            share = (sample.quiet_acked + sample.quiet_lost) / max(self._highest * self._rtt_s, 1)
            kept = _LOSS_MEMORY ** min(share, 1.0)
            self._lost = self._lost * kept + sample.quiet_lost
            self._acked = self._acked * kept + sample.quiet_acked
