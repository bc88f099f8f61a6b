"""Who guesses tokens waits."""

import pytest

from ftpkit.server.auth.throttle import LoginThrottle


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_each_bad_token_waits_longer_than_the_last_up_to_a_limit() -> None:
    tries = LoginThrottle(clock=Clock())
    waits = [tries.failed("10.0.0.1") for _ in range(8)]
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 4.0, 4.0])
    for _ in range(2000):
        wait = tries.failed("10.0.0.1")
    assert wait == 4.0
    assert tries.failed("10.0.0.2") == 0.1


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
def test_one_network_of_ipv6_is_one_stranger(one: str, other: str, same: bool) -> None:
    tries = LoginThrottle(clock=Clock())
    assert tries.failed(one) == 0.1
    assert tries.failed(other) == (0.2 if same else 0.1)


def test_what_was_long_ago_is_forgotten() -> None:
    clock = Clock()
    tries = LoginThrottle(clock=clock)
    tries.failed("10.0.0.1")
    clock.now = 599.0
    assert tries.failed("10.0.0.1") == 0.2
    clock.now += 600.0
    assert tries.failed("10.0.0.1") == 0.1


def test_many_strangers_fill_no_memory_and_the_latest_are_known() -> None:
    tries = LoginThrottle(clock=Clock())
    for number in range(10_000):
        tries.failed(f"10.0.{number // 250}.{number % 250}")
    assert len(tries._failed) == 4096
    assert tries.failed("10.0.39.249") == 0.2
    assert tries.failed("10.0.0.0") == 0.1
