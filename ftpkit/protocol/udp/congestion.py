"""Congestion control for the UDP mode: sending rate and window from acknowledgements.

Times are seconds, sizes bytes and rates bytes per second. Each datagram counts with its
header and tag, without IP and UDP headers.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

# BBR's startup gain, 2 / ln 2: doubles the rate with every round trip.
_STARTUP_GAIN: Final = 2.885
# BBR's ProbeBW cycle of pacing gains: one round trip probes for more, the next drains the
# queue of the probe, six cruise.
_CYCLE: Final = (1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
# Instead of 1 while the delay shows a queue that is not ours.
_YIELD_GAIN: Final = 0.9
_BANDWIDTH_ROUNDS: Final = 10
_FULL_ROUNDS: Final = 3
_FULL_GROWTH: Final = 1.25
_MIN_RTT_WINDOW_S: Final = 30.0
# A peer may report a round-trip time of 0.
_RTT_FLOOR_S: Final = 0.001
# A queue is assumed where the round-trip time exceeds its minimum by this factor and this
# time, which is more than the jitter of two process schedulers.
_QUEUE_RATIO: Final = 1.25
_QUEUE_S: Final = 0.005
_WINDOW_RTTS: Final = 2.0
# How long a receiver takes to verify and store a block, during which it acknowledges nothing.
_BLOCK_DELAY_S: Final = 0.003
_MIN_WINDOW_DATAGRAMS: Final = 16
_MIN_DATAGRAMS_PER_RTT: Final = 4
# The window before the first acknowledgement: this many datagrams, fewer if they are large.
_INITIAL_DATAGRAMS: Final = 32
_INITIAL_BYTES: Final = 256 * 1024
# Loss up to this share is taken for random and compensated with a higher rate.
_TOLERATED_LOSS: Final = 0.2
_LOSS_DECAY: Final = 0.6


@dataclass(frozen=True, slots=True)
class AckSample:
    """What one acknowledgement shows: a rate sample as in the BBR draft, section 4.1.

    ``bytes_per_s`` is the delivery rate, 0 if it was not measurable. ``delivered`` counts
    all bytes acknowledged and ``lost`` all declared lost so far; ``prior_delivered`` is
    ``delivered`` when the newest acknowledged datagram was sent. ``quiet_acked`` and
    ``quiet_lost`` are the bytes of this acknowledgement that were sent while ``quiet``.
    ``app_limited``: there was too little to send to use the rate.
    """

    now: float
    rtt_s: float
    bytes_per_s: float
    delivered: int
    lost: int
    prior_delivered: int
    in_flight: int
    quiet_acked: int = 0
    quiet_lost: int = 0
    app_limited: bool = False


class BbrControl:
    """Paces by the measured bandwidth and minimum round-trip time, as BBR does.

    Source: Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 2016, and
    draft-cardwell-iccrg-bbr-congestion-control. The bandwidth is the highest delivery rate of
    the last ten round trips; one round trip in eight probes for 25 % more and the next
    drains; the window is two bandwidth-delay products. Differences from BBR:

    - Random loss of up to 20 % is compensated. It is measured only while ``quiet``, when
      our own queue is empty, so that overflow does not count as random loss.
    - The rate is 10 % below the bandwidth while the delay shows the queue of other flows.
    - There is no ProbeRTT phase: each drained round trip measures the minimum.

    ``datagram`` is the size of a full datagram in bytes; ``max_bytes_per_s`` caps the rate.
    """

    def __init__(
        self, datagram: int, rtt_s: float, now: float, max_bytes_per_s: float | None = None
    ) -> None:
        self._datagram, self._max_bytes_per_s = datagram, max_bytes_per_s
        self._rates: deque[tuple[int, float]] = deque()
        self._rtts: deque[tuple[float, float]] = deque([(now, rtt_s)])
        self._initial_window = min(_INITIAL_DATAGRAMS * datagram, max(_INITIAL_BYTES, 4 * datagram))
        self._initial_bytes_per_s = self._initial_window / (rtt_s + _BLOCK_DELAY_S)
        self._round = 0
        self._next_round_delivered = 0
        self._round_rtt_s = self._last_rtt_s = rtt_s
        self._full_bytes_per_s, self._full_rounds = 0.0, 0
        self._starting, self._draining = True, False
        self._round_delivered = self._round_lost = 0
        self._cycle = 2
        self._lost = self._acked = 0.0

    @property
    def bytes_per_s(self) -> float:
        """The pacing rate."""
        rate = self._gain * self._bandwidth / (1 - self._loss)
        # Some datagrams must leave on the worst path, or a recovery would go unnoticed.
        rate = max(rate, _MIN_DATAGRAMS_PER_RTT * self._datagram / max(self._rtt_s, _RTT_FLOOR_S))
        return rate if self._max_bytes_per_s is None else min(rate, self._max_bytes_per_s)

    @property
    def window(self) -> float:
        """The most bytes in flight: two bandwidth-delay products; the receiver's delay counts."""
        gain = _STARTUP_GAIN if self._starting else _WINDOW_RTTS
        floor = self._initial_window if self._starting else _MIN_WINDOW_DATAGRAMS * self._datagram
        longest_s = self._rtt_s + _BLOCK_DELAY_S
        return max(gain * self._bandwidth * longest_s, floor)

    @property
    def quiet(self) -> bool:
        """Whether the rate is below the bandwidth, so that the sender builds no queue."""
        return self._gain < 1

    def on_ack(self, sample: AckSample) -> None:
        """Update rate and window from an acknowledgement."""
        self._update_rtt(sample)
        self._update_loss(sample)
        if sample.bytes_per_s > 0 and (
            not sample.app_limited or sample.bytes_per_s > self._bandwidth
        ):
            while self._rates and self._rates[-1][1] <= sample.bytes_per_s:
                self._rates.pop()
            self._rates.append((self._round, sample.bytes_per_s))
        if sample.prior_delivered >= self._next_round_delivered:
            self._next_round_delivered = sample.delivered
            self._next_round(sample)
        if self._draining and sample.in_flight <= self._bandwidth * self._rtt_s:
            self._draining = False

    @property
    def _bandwidth(self) -> float:
        return self._rates[0][1] if self._rates else self._initial_bytes_per_s

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
        while len(self._rates) > 1 and self._rates[0][0] < self._round - _BANDWIDTH_ROUNDS:
            self._rates.popleft()
        self._last_rtt_s, self._round_rtt_s = self._round_rtt_s, sample.rtt_s
        lost, delivered = sample.lost - self._round_lost, sample.delivered - self._round_delivered
        self._round_lost, self._round_delivered = sample.lost, sample.delivered
        if self._starting and not sample.app_limited:
            self._detect_full_pipe(overflow=lost > _TOLERATED_LOSS * (lost + delivered))
        elif not self._draining:
            self._cycle = (self._cycle + 1) % len(_CYCLE)

    def _detect_full_pipe(self, *, overflow: bool) -> None:
        """End startup when the bandwidth stops growing: at once if there is a queue as well."""
        if self._bandwidth >= self._full_bytes_per_s * _FULL_GROWTH:
            self._full_bytes_per_s, self._full_rounds = self._bandwidth, 0
            return
        self._full_rounds += 1
        if overflow or self._queueing or self._full_rounds >= _FULL_ROUNDS:
            self._starting, self._draining = False, True

    def _update_rtt(self, sample: AckSample) -> None:
        self._round_rtt_s = min(self._round_rtt_s, sample.rtt_s)
        while self._rtts and self._rtts[-1][1] >= sample.rtt_s:
            self._rtts.pop()
        self._rtts.append((sample.now, sample.rtt_s))
        while self._rtts[0][0] < sample.now - _MIN_RTT_WINDOW_S:
            self._rtts.popleft()

    def _update_loss(self, sample: AckSample) -> None:
        if sample.quiet_acked or sample.quiet_lost:
            share = (sample.quiet_acked + sample.quiet_lost) / max(self._bandwidth * self._rtt_s, 1)
            kept = _LOSS_DECAY ** min(share, 1.0)
            self._lost = self._lost * kept + sample.quiet_lost
            self._acked = self._acked * kept + sample.quiet_acked
