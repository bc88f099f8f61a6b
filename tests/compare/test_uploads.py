"""Small traces uploaded to real servers."""

import socket
import threading

import pytest

from ftpkit.compare.trace import Arrival
from ftpkit.compare.uploads import upload_trace
from ftpkit.errors import LocalFileError
from ftpkit.lab.child import ChildError

RATE = 4e6


def has_more_loopback_addresses() -> bool:
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.2", 0))
        except OSError:
            return False
    return True


@pytest.mark.parametrize("policy", ["fcfs", "mlfq"])
def test_every_file_completes_within_the_rate(policy: str) -> None:
    # As one request and as blocks, at once and later, and one user more than once.
    sizes = [1, 300_000, 5_000_000, 20_000, 20_000]
    trace = [Arrival(at / 50, size, f"user{at % 3}") for at, size in enumerate(sizes)]
    through_s = upload_trace(trace, policy, RATE)
    assert all(each.at_s < end for each, end in zip(trace, through_s, strict=True))
    # What was saved up, and the last turn, need no time; a slow machine needs more.
    assert max(through_s) > 0.9 * sum(sizes) / RATE
    assert threading.active_count() == 1


@pytest.mark.skipif(not has_more_loopback_addresses(), reason="loopback has one address here")
def test_fair_protects_users_from_each_other() -> None:
    trace = [*(Arrival(0.0, 300_000, "ann") for _ in range(8)), Arrival(0.05, 300_000, "bob")]
    assert upload_trace(trace, "fair", RATE)[-1] < 0.7 * upload_trace(trace, "rr", RATE)[-1]


def test_a_size_over_the_file_system_limit() -> None:
    with pytest.raises(LocalFileError, match=r"cannot make a file of 1,152,921,504,606,846,976"):
        upload_trace([Arrival(0.0, 2**60, "ann")], "rr", RATE)


def test_a_server_that_does_not_start() -> None:
    with pytest.raises(ChildError, match=r"compare\.server_process exited with status 1"):
        upload_trace([Arrival(0.0, 1, "ann")], "lottery", RATE)
