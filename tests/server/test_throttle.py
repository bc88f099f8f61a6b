"""Delays for failed logins."""

import pytest

from ftpkit.server.auth.throttle import LoginThrottle


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_each_failure_doubles_the_delay_up_to_a_maximum() -> None:
    throttle = LoginThrottle(clock=Clock())
    delays = [throttle.failed("10.0.0.1") for _ in range(8)]
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 4.0, 4.0])
    for _ in range(2000):
        delay = throttle.failed("10.0.0.1")
    assert delay == 4.0
    assert throttle.failed("10.0.0.2") == 0.1


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("::1", "::2", True),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("no address", "another", False),
    ],
)
def test_an_ipv6_network_counts_as_one_client(one: str, other: str, same: bool) -> None:
    throttle = LoginThrottle(clock=Clock())
    assert throttle.failed(one) == 0.1
    assert throttle.failed(other) == (0.2 if same else 0.1)


def test_failures_are_forgotten_after_ten_minutes() -> None:
    clock = Clock()
    throttle = LoginThrottle(clock=clock)
    throttle.failed("10.0.0.1")
    clock.now = 599.0
    assert throttle.failed("10.0.0.1") == 0.2
    clock.now += 600.0
    assert throttle.failed("10.0.0.1") == 0.1


def test_only_the_latest_clients_are_remembered() -> None:
    throttle = LoginThrottle(clock=Clock())
    for number in range(10_000):
        throttle.failed(f"10.0.{number // 250}.{number % 250}")
    assert len(throttle._failures) == 4096
    assert throttle.failed("10.0.39.249") == 0.2
    assert throttle.failed("10.0.0.0") == 0.1
