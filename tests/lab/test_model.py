"""One direction of an emulated network, with simulated time."""

from dataclasses import replace
from math import inf
from typing import Any

import pytest

from ftpkit.lab.model import NetworkModel, NetworkProfile, NetworkStats

SIZE = 1000


def new_model(**options: Any) -> NetworkModel:
    """A packet takes 1 ms at this rate, then 50 ms of delay; the queue holds 20 packets."""
    plain: dict[str, Any] = {"bits_per_s": 8e6, "delay_s": 0.05, "queue_bytes": 20 * SIZE}
    model = NetworkModel(NetworkProfile(**plain | options), "far")
    model.path_mtu = SIZE
    return model


def packet(number: int) -> bytes:
    return number.to_bytes(SIZE, "big")


def numbers(packets: list[bytes]) -> list[int]:
    return [int.from_bytes(packet, "big") for packet in packets]


def adds_up(count: NetworkStats) -> bool:
    gone = count.forwarded + count.lost + count.dropped + count.too_long
    gone += count.cut + count.waiting
    return count.packets + count.duplicated == gone


def test_a_packet_arrives_after_its_own_bits_and_the_delay() -> None:
    model = new_model()
    assert model.next_due == inf
    model.enqueue(packet(1), 10.0)
    assert model.next_due == pytest.approx(10.051)
    assert model.arrived(10.0509) == []
    assert numbers(model.arrived(10.0511)) == [1]
    assert model.next_due == inf


def test_a_burst_leaves_at_the_rate() -> None:
    model = new_model()
    for number in range(20):
        model.enqueue(packet(number), 0.0)
    for number in range(20):
        due = model.next_due
        assert due == pytest.approx(0.051 + number * 0.001)
        assert numbers(model.arrived(due)) == [number]
    assert model.stats.latest_s == 0.0


def test_idle_time_is_not_saved_up() -> None:
    model = new_model()
    model.enqueue(packet(1), 0.0)
    model.enqueue(packet(2), 5.0)
    assert numbers(model.arrived(5.0)) == [1]
    assert model.stats.latest_s == pytest.approx(4.949)
    assert model.next_due == pytest.approx(5.051)


def test_a_full_queue_drops_the_newest() -> None:
    model = new_model()
    for number in range(25):
        model.enqueue(packet(number), 0.0)
    assert model.stats.dropped == 5
    model.enqueue(packet(99), 0.0021)  # two have left
    model.enqueue(packet(99), 0.0021)
    model.enqueue(packet(99), 0.0021)
    assert model.stats.dropped == 6
    assert numbers(model.arrived(1.0)) == [*range(20), 99, 99]


def test_which_packets_are_lost_depends_only_on_the_seed() -> None:
    def kept(**options: Any) -> list[int]:
        model = new_model(loss=0.1, queue_bytes=10**9, **options)
        for number in range(1000):
            model.enqueue(packet(number), number / 100)
        assert model.stats.lost == 1000 - model.in_flight + model.stats.duplicated
        return sorted(set(numbers(model.arrived(inf))))

    assert kept() == kept(bits_per_s=1e9, reorder=0.5, duplicate=0.5)
    assert kept() != kept(seed=2)
    assert 850 < len(kept()) < 950


def test_only_reordered_packets_are_overtaken() -> None:
    model = new_model(reorder=0.1, queue_bytes=10**9)
    for number in range(1000):
        model.enqueue(packet(number), 0.0)
    order = numbers(model.arrived(inf))
    assert sorted(order) == list(range(1000))
    late = {number for at, number in enumerate(order) if number < max(order[: at + 1])}
    in_order = [number for number in order if number not in late]
    assert in_order == sorted(in_order)
    assert 0.8 * model.stats.reordered < len(late) <= model.stats.reordered
    assert 60 < model.stats.reordered < 140
    # By one more delay at the most: 50 packets.
    assert all(order.index(number) - number <= 51 for number in late)


def test_a_duplicate_follows_the_packet_and_takes_no_bandwidth() -> None:
    model = new_model(duplicate=0.5, queue_bytes=10**9)
    for number in range(100):
        model.enqueue(packet(number), 0.0)
    order = numbers(model.arrived(0.1501))
    assert order == sorted(order)
    assert sorted(set(order)) == list(range(100))
    assert len(order) == 100 + model.stats.duplicated
    assert 30 < model.stats.duplicated < 70


def test_a_cut_drops_packets_in_flight_and_new_ones() -> None:
    model = new_model()
    for number in range(10):
        model.enqueue(packet(number), 0.0)
    assert numbers(model.arrived(0.0515)) == [0]
    model.cut()
    model.enqueue(packet(10), 0.1)
    assert model.arrived(1.0) == []
    assert model.stats.cut == 10
    model.restore()
    model.enqueue(packet(11), 2.0)
    assert numbers(model.arrived(2.0511)) == [11]


def test_a_packet_over_the_path_mtu_takes_no_bandwidth() -> None:
    model = new_model()
    assert not model.enqueue(packet(1) + b"!", 0.0)
    assert model.enqueue(packet(2), 0.0)
    assert (model.stats.packets, model.stats.bytes, model.stats.too_long) == (
        2,
        2 * SIZE + 1,
        1,
    )
    assert numbers(model.arrived(0.0511)) == [2]


def test_a_smaller_path_mtu_keeps_packets_in_flight() -> None:
    model = new_model()
    model.enqueue(packet(1), 0.0)
    model.path_mtu = SIZE - 1
    assert not model.enqueue(packet(2), 0.0)
    assert numbers(model.arrived(1.0)) == [1]
    model.path_mtu = SIZE
    assert model.enqueue(packet(3), 2.0)
    assert numbers(model.arrived(3.0)) == [3]
    assert model.stats.too_long == 1


def test_every_packet_has_one_fate() -> None:
    model = new_model(loss=0.1, reorder=0.1, duplicate=0.1)
    forwarded = 0
    for number in range(3000):
        now = number / 1500  # 1.5 times the rate
        model.enqueue(packet(number), now)
        forwarded += len(model.arrived(now))
        if number == 1500:
            model.cut()
        elif number == 1600:
            model.restore()
            model.path_mtu = SIZE - 1
        elif number == 1700:
            model.path_mtu = SIZE
    count = replace(model.stats, forwarded=forwarded, waiting=model.in_flight)
    assert adds_up(count)
    assert count.packets == 3000
    assert count.bytes == 3000 * SIZE
    assert all((count.lost, count.dropped, count.too_long, count.cut))
    assert all((count.duplicated, count.reordered, count.waiting))
