"""The rate follows the delivery rate, not random loss."""

from ftpkit.protocol.udp.congestion import AckSample, BbrControl

DATAGRAM = 1472
RTT = 0.1
BYTES_PER_S = 1e7


class Network:
    """Feeds a control with one round trip after the other."""

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
        """Pass startup on a network of ``BYTES_PER_S``."""
        for _ in range(12):
            self.round(BYTES_PER_S, loss=loss)


def test_it_starts_with_a_window_and_doubles() -> None:
    network = Network()
    first = network.rate.bytes_per_s
    assert network.rate.window >= 32 * DATAGRAM
    network.round(first)
    assert network.rate.bytes_per_s > 2 * first


def test_it_settles_at_the_delivery_rate() -> None:
    network = Network()
    network.settle()
    rates = []
    for _ in range(8):
        rates.append(network.rate.bytes_per_s / BYTES_PER_S)
        network.round(BYTES_PER_S)
    assert sorted(rates) == [0.75, 1, 1, 1, 1, 1, 1, 1.25]
    assert network.rate.window == 2 * BYTES_PER_S * (RTT + 0.003)


def test_after_startup_it_drains_the_queue() -> None:
    network = Network()
    for _ in range(4):
        network.round(BYTES_PER_S, in_flight=int(3 * BYTES_PER_S * RTT))
    assert network.rate.quiet
    assert network.rate.bytes_per_s < BYTES_PER_S / 2
    network.round(BYTES_PER_S, in_flight=int(BYTES_PER_S * RTT / 2))
    assert not network.rate.quiet


def test_an_app_limited_round_does_not_end_startup() -> None:
    network = Network()
    for _ in range(9):
        network.round(1e5, starved=True)
    network.round(BYTES_PER_S)
    assert network.rate.bytes_per_s > 2 * BYTES_PER_S, "it still looks for the top"


def test_overflow_ends_startup_at_once() -> None:
    network = Network()
    network.round(BYTES_PER_S)
    network.round(BYTES_PER_S, loss=0.6, in_flight=10**9)
    assert network.rate.quiet


def test_a_queue_ends_startup_at_once() -> None:
    network = Network()
    network.round(BYTES_PER_S)
    network.round(BYTES_PER_S)
    network.round(BYTES_PER_S, rtt_s=0.2)
    network.round(BYTES_PER_S, rtt_s=0.2, in_flight=10**9)
    assert network.rate.quiet


def test_random_loss_is_compensated() -> None:
    for loss in (0.01, 0.05, 0.2):
        network = Network()
        network.settle(loss)
        rates = []
        for _ in range(16):
            network.round(BYTES_PER_S, loss=loss)
            rates.append(network.rate.bytes_per_s)
        assert sum(rates) / 16 > BYTES_PER_S * (1 + 0.9 * loss)
        assert max(rates) < BYTES_PER_S * 1.25 / (1 - loss) * 1.01


def test_loss_above_20_percent_is_not_compensated_further() -> None:
    network = Network()
    network.settle(0.5)
    assert network.rate.bytes_per_s <= BYTES_PER_S * 1.25 / 0.8


def test_loss_in_our_own_queue_is_not_compensated() -> None:
    network = Network()
    network.settle()
    for _ in range(32):
        network.round(BYTES_PER_S, loss=0.0 if network.rate.quiet else 0.1)
    assert network.rate.bytes_per_s <= BYTES_PER_S * 1.25


def test_it_yields_to_the_queues_of_other_flows() -> None:
    network = Network()
    network.settle()
    network.round(BYTES_PER_S, rtt_s=0.2)
    rates = []
    for _ in range(8):
        network.round(BYTES_PER_S, rtt_s=0.2)
        rates.append(network.rate.bytes_per_s / BYTES_PER_S)
    assert sorted(rates)[1:-1] == [0.9] * 6


def test_a_slower_path_is_noticed_after_ten_rounds() -> None:
    network = Network()
    network.settle()
    for _ in range(12):
        network.round(BYTES_PER_S / 4)
    assert network.rate.bytes_per_s < BYTES_PER_S / 2


def test_a_longer_path_is_noticed_after_half_a_minute() -> None:
    network = Network()
    network.settle()
    while network.now < 35:
        network.round(BYTES_PER_S, rtt_s=0.3)
    assert network.rate.window > 2 * BYTES_PER_S * 0.29


def test_the_rate_is_capped() -> None:
    network = Network(max_bytes_per_s=1e6)
    network.settle()
    assert network.rate.bytes_per_s == 1e6


def test_something_is_always_sent() -> None:
    network = Network()
    for _ in range(40):
        network.round(10.0)
    assert network.rate.bytes_per_s >= 4 * DATAGRAM / RTT
    assert network.rate.window >= 16 * DATAGRAM
