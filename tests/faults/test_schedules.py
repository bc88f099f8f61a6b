"""Small uploads beside eight bulk ones, on a server whose rate is shaped."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from ftpkit import Client
from tests.faults.processes import Served, start

MIB: Final = 1024 * 1024
BULK: Final = 8
SMALL: Final = 64 * 1024
EVERY_S: Final = 0.05

pytestmark = pytest.mark.slow


@contextmanager
def bulk(served: Served, client: Client, tmp_path: Path) -> Iterator[None]:
    """Let eight uploads go on that are far from their end."""
    with (tmp_path / "big").open("wb") as file:
        file.truncate(256 * MIB)
    puts = []
    with ExitStack() as stack:
        for number in range(BULK):
            put = start(
                "put", "big", "--as", f"bulk{number}", "--to", str(served.address), home=tmp_path
            )
            stack.enter_context(put)
            stack.callback(put.kill)
            puts.append(put)
        # Not until all move: under some policies that is when the first has ended.
        while len(client.status()["transfers"]) < BULK:
            assert all(put.poll() is None for put in puts)
        yield


def times(client: Client, path: Path, count: int) -> list[float]:
    """Return how long each of ``count`` uploads took, of which one starts every 50 ms."""
    taken = []
    for _ in range(count):
        begun = time.monotonic()
        client.put(path, "small")
        taken.append(time.monotonic() - begun)
        time.sleep(max(0.0, EVERY_S - taken[-1]))
    return sorted(taken)


@pytest.mark.parametrize("policy", ["sjf", "mlfq", "fair", "fcfs"])
def test_a_small_upload_beside_bulk(tmp_path: Path, policy: str) -> None:
    small = tmp_path / "small"
    small.write_bytes(bytes(SMALL))
    options = ("--rate", "64Mi", "--schedule", policy, "--no-fsync")
    with Served(tmp_path / "root", options) as served, Client(served.address) as client:
        alone = times(client, small, 100)[98]
        with bulk(served, client, tmp_path):
            if policy == "fcfs":
                assert times(client, small, 3)[0] > 10 * alone
            else:
                beside = times(client, small, 100)
                assert beside[98] <= 3 * alone, (alone, beside[50], beside[98])
