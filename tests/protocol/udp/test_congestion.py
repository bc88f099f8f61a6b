"""The rate follows what arrives, and not what is lost."""

from ftpkit.protocol.udp.congestion import AckSample, BbrControl, FixedRateControl

DATAGRAM = 1472
RTT = 0.1
LINK = 1e7


class Line:
    """Feeds a strategy one round trip after the other."""

    def __init__(self, max_bytes_per_s: float | None = None) -> None:
        self.rate = BbrControl(DATAGRAM, RTT, 0.0, max_bytes_per_s)
        self.now = 0.0
        self.delivered = self.lost = 0

    def round(
        self,
        bytes_per_s: float,
        rtt_s: float = RTT,
        loss: float = 0.0,
        in_flight: int = 0,
        *,
        starved: bool = False,
    ) -> None:
        """Let one round trip pass in which ``bytes_per_s`` arrives and a share is lost."""
        before, quiet = self.delivered, self.rate.quiet
        arrived = int(bytes_per_s * rtt_s)
        lost = int(arrived * loss / (1 - loss))
        self.now += rtt_s
        self.delivered += arrived
        self.lost += lost
        self.rate.on_ack(
            AckSample(
                now=self.now,
                rtt_s=rtt_s,
                bytes_per_s=bytes_per_s,
                delivered=self.delivered,
                lost=self.lost,
                prior_delivered=before,
                in_flight=in_flight,
                quiet_acked=arrived if quiet else 0,
                quiet_lost=lost if quiet else 0,
                app_limited=starved,
            )
        )

    def settle(self, loss: float = 0.0) -> None:
        """Get past the start, on a link of ``LINK`` bytes a second."""
        for _ in range(12):
            self.round(LINK, loss=loss)


def test_it_starts_with_a_window_and_doubles() -> None:
    line = Line()
    first = line.rate.bytes_per_s
    assert line.rate.window >= 32 * DATAGRAM
    line.round(first)
    assert line.rate.bytes_per_s > 2 * first


def test_it_settles_at_what_arrives() -> None:
    line = Line()
    line.settle()
    rates = []
    for _ in range(8):
        rates.append(line.rate.bytes_per_s / LINK)
        line.round(LINK)
    assert sorted(rates) == [0.75, 1, 1, 1, 1, 1, 1, 1.25]
    assert line.rate.window == 2 * LINK * (RTT + 0.003)


def test_after_the_start_it_drains_what_the_start_has_queued() -> None:
    line = Line()
    for _ in range(4):
        line.round(LINK, in_flight=int(3 * LINK * RTT))
    assert line.rate.quiet
    assert line.rate.bytes_per_s < LINK / 2
    line.round(LINK, in_flight=int(LINK * RTT / 2))
    assert not line.rate.quiet


def test_a_round_that_had_too_little_to_send_ends_no_start() -> None:
    line = Line()
    for _ in range(9):
        line.round(1e5, starved=True)
    line.round(LINK)
    assert line.rate.bytes_per_s > 2 * LINK, "it still looks for the top"


def test_overflow_ends_the_start_at_once() -> None:
    line = Line()
    line.round(LINK)
    line.round(LINK, loss=0.6, in_flight=10**9)
    assert line.rate.quiet


def test_a_queue_ends_the_start_at_once() -> None:
    line = Line()
    line.round(LINK)
    line.round(LINK)
    line.round(LINK, rtt_s=0.2)
    line.round(LINK, rtt_s=0.2, in_flight=10**9)
    assert line.rate.quiet


def test_loss_alone_slows_nothing_down_and_is_made_up_for() -> None:
    for loss in (0.01, 0.05, 0.2):
        line = Line()
        line.settle(loss)
        rates = []
        for _ in range(16):
            line.round(LINK, loss=loss)
            rates.append(line.rate.bytes_per_s)
        assert sum(rates) / 16 > LINK * (1 + 0.9 * loss)
        assert max(rates) < LINK * 1.25 / (1 - loss) * 1.01


def test_loss_above_a_fifth_is_not_made_up_for_further() -> None:
    line = Line()
    line.settle(0.5)
    assert line.rate.bytes_per_s <= LINK * 1.25 / 0.8


def test_loss_in_our_own_queue_is_not_made_up_for() -> None:
    line = Line()
    line.settle()
    for _ in range(32):
        line.round(LINK, loss=0.0 if line.rate.quiet else 0.1)
    assert line.rate.bytes_per_s <= LINK * 1.25


def test_it_yields_while_others_are_queueing() -> None:
    line = Line()
    line.settle()
    line.round(LINK, rtt_s=0.2)
    rates = []
    for _ in range(8):
        line.round(LINK, rtt_s=0.2)
        rates.append(line.rate.bytes_per_s / LINK)
    assert sorted(rates)[1:-1] == [0.9] * 6


def test_a_slower_path_is_noticed_after_ten_rounds() -> None:
    line = Line()
    line.settle()
    for _ in range(12):
        line.round(LINK / 4)
    assert line.rate.bytes_per_s < LINK / 2


def test_a_longer_path_is_noticed_after_half_a_minute() -> None:
    line = Line()
    line.settle()
    while line.now < 35:
        line.round(LINK, rtt_s=0.3)
    assert line.rate.window > 2 * LINK * 0.29


def test_a_cap_is_a_cap() -> None:
    line = Line(max_bytes_per_s=1e6)
    line.settle()
    assert line.rate.bytes_per_s == 1e6


def test_something_is_always_sent() -> None:
    line = Line()
    for _ in range(40):
        line.round(10.0)
    assert line.rate.bytes_per_s >= 4 * DATAGRAM / RTT
    assert line.rate.window >= 16 * DATAGRAM


def test_a_fixed_rate_learns_nothing() -> None:
    rate = FixedRateControl(5.0)
    rate.on_ack(AckSample(1.0, 1.0, 9.0, 9, 9, 0, 0))
    assert (rate.bytes_per_s, rate.window, rate.quiet) == (5.0, float("inf"), False)
