"""One direction of a link, at moments that the test chooses."""

from dataclasses import replace
from math import inf
from typing import Any

import pytest

from ftpkit.lab.model import NetworkModel, NetworkStats

SIZE = 1000


def line(**options: Any) -> NetworkModel:
    """1,000 bytes take a millisecond, and 50 more to arrive; 20 of them fit into the queue."""
    plain: dict[str, Any] = {
        "bits_per_s": 8e6,
        "delay_s": 0.05,
        "loss": 0.0,
        "reorder": 0.0,
        "duplicate": 0.0,
        "path_mtu": SIZE,
        "queue_bytes": 20 * SIZE,
        "seed": "1",
    }
    return NetworkModel(**plain | options)


def packet(number: int) -> bytes:
    return number.to_bytes(SIZE, "big")


def numbers(packets: list[bytes]) -> list[int]:
    return [int.from_bytes(packet, "big") for packet in packets]


def adds_up(count: NetworkStats) -> bool:
    gone = count.forwarded + count.lost + count.dropped + count.too_long
    gone += count.cut + count.waiting
    return count.packets + count.duplicated == gone


def test_a_packet_arrives_after_its_own_bits_and_the_delay() -> None:
    strategy = line()
    assert strategy.next_due == inf
    strategy.take(packet(1), 10.0)
    assert strategy.next_due == pytest.approx(10.051)
    assert strategy.arrived(10.0509) == []
    assert numbers(strategy.arrived(10.0511)) == [1]
    assert strategy.next_due == inf


def test_packets_that_come_at_once_leave_at_the_rate() -> None:
    strategy = line()
    for number in range(20):
        strategy.take(packet(number), 0.0)
    for number in range(20):
        due = strategy.next_due
        assert due == pytest.approx(0.051 + number * 0.001)
        assert numbers(strategy.arrived(due)) == [number]
    assert strategy.count.latest_s == 0.0


def test_a_line_that_was_idle_saves_nothing_up() -> None:
    strategy = line()
    strategy.take(packet(1), 0.0)
    strategy.take(packet(2), 5.0)
    assert numbers(strategy.arrived(5.0)) == [1]
    assert strategy.count.latest_s == pytest.approx(4.949)
    assert strategy.next_due == pytest.approx(5.051)


def test_a_full_queue_drops_what_comes_last() -> None:
    strategy = line()
    for number in range(25):
        strategy.take(packet(number), 0.0)
    assert strategy.count.dropped == 5
    strategy.take(packet(99), 0.0021)  # two have left
    strategy.take(packet(99), 0.0021)
    strategy.take(packet(99), 0.0021)
    assert strategy.count.dropped == 6
    assert numbers(strategy.arrived(1.0)) == [*range(20), 99, 99]


def test_which_packets_are_lost_depends_on_the_seed_and_on_nothing_else() -> None:
    def kept(**options: Any) -> list[int]:
        strategy = line(loss=0.1, queue_bytes=10**9, **options)
        for number in range(1000):
            strategy.take(packet(number), number / 100)
        assert strategy.count.lost == 1000 - strategy.under_way + strategy.count.duplicated
        return sorted(set(numbers(strategy.arrived(inf))))

    assert kept() == kept(bits_per_s=1e9, reorder=0.5, duplicate=0.5)
    assert kept() != kept(seed="2")
    assert 850 < len(kept()) < 950


def test_a_packet_that_is_held_back_is_overtaken_and_only_that() -> None:
    strategy = line(reorder=0.1, queue_bytes=10**9)
    for number in range(1000):
        strategy.take(packet(number), 0.0)
    order = numbers(strategy.arrived(inf))
    assert sorted(order) == list(range(1000))
    late = {number for at, number in enumerate(order) if number < max(order[: at + 1])}
    in_order = [number for number in order if number not in late]
    assert in_order == sorted(in_order)
    assert 0.8 * strategy.count.reordered < len(late) <= strategy.count.reordered
    assert 60 < strategy.count.reordered < 140
    # By one more delay at the most: 50 packets.
    assert all(order.index(number) - number <= 51 for number in late)


def test_a_duplicate_follows_the_packet_and_takes_no_time_of_the_line() -> None:
    strategy = line(duplicate=0.5, queue_bytes=10**9)
    for number in range(100):
        strategy.take(packet(number), 0.0)
    order = numbers(strategy.arrived(0.1501))
    assert order == sorted(order)
    assert sorted(set(order)) == list(range(100))
    assert len(order) == 100 + strategy.count.duplicated
    assert 30 < strategy.count.duplicated < 70


def test_a_cut_drops_what_is_under_way_and_what_comes() -> None:
    strategy = line()
    for number in range(10):
        strategy.take(packet(number), 0.0)
    assert numbers(strategy.arrived(0.0515)) == [0]
    strategy.cut()
    strategy.take(packet(10), 0.1)
    assert strategy.arrived(1.0) == []
    assert strategy.count.cut == 10
    strategy.mend()
    strategy.take(packet(11), 2.0)
    assert numbers(strategy.arrived(2.0511)) == [11]


def test_what_is_longer_than_the_path_takes_never_leaves_and_takes_no_time() -> None:
    strategy = line()
    assert not strategy.take(packet(1) + b"!", 0.0)
    assert strategy.take(packet(2), 0.0)
    assert (strategy.count.packets, strategy.count.bytes, strategy.count.too_long) == (
        2,
        2 * SIZE + 1,
        1,
    )
    assert numbers(strategy.arrived(0.0511)) == [2]


def test_a_path_that_becomes_narrower_keeps_what_is_under_way() -> None:
    strategy = line()
    strategy.take(packet(1), 0.0)
    strategy.path_mtu = SIZE - 1
    assert not strategy.take(packet(2), 0.0)
    assert numbers(strategy.arrived(1.0)) == [1]
    strategy.path_mtu = SIZE
    assert strategy.take(packet(3), 2.0)
    assert numbers(strategy.arrived(3.0)) == [3]
    assert strategy.count.too_long == 1


def test_every_packet_has_one_fate() -> None:
    strategy = line(loss=0.1, reorder=0.1, duplicate=0.1)
    forwarded = 0
    for number in range(3000):
        now = number / 1500  # half as fast again as the line
        strategy.take(packet(number), now)
        forwarded += len(strategy.arrived(now))
        if number == 1500:
            strategy.cut()
        elif number == 1600:
            strategy.mend()
            strategy.path_mtu = SIZE - 1
        elif number == 1700:
            strategy.path_mtu = SIZE
    count = replace(strategy.count, forwarded=forwarded, waiting=strategy.under_way)
    assert adds_up(count)
    assert count.packets == 3000
    assert count.bytes == 3000 * SIZE
    assert all((count.lost, count.dropped, count.too_long, count.cut))
    assert all((count.duplicated, count.reordered, count.waiting))
