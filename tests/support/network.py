"""Emulated networks for one test, and programs in their namespaces."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from ftpkit.lab.child import NamespaceEnd
from ftpkit.lab.model import NetworkProfile, NetworkStats
from ftpkit.lab.network import EmulatedNetwork, NetworkCounts, NetworkUnavailableError

PATIENCE_S = 30.0
_PROGRAMS = Path(__file__).parent / "network_programs.py"


class Program:
    """A program of network_programs.py, running in a namespace."""

    def __init__(self, end: NamespaceEnd, name: str, *args: object) -> None:
        self.process = subprocess.Popen(
            end.command([sys.executable, str(_PROGRAMS), name, *map(str, args)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def receive(self) -> dict[str, Any]:
        """Return the next object that it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the program has ended: {self.process.wait()}"
        said: dict[str, Any] = json.loads(line)
        return said

    def send(self, number: int) -> None:
        """Send the number that it waits for."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.communicate()


class Run(Protocol):
    """Starts a program in a namespace; it ends with the test."""

    def __call__(self, end: NamespaceEnd, name: str, *args: object) -> Program: ...


class MakeNetwork(Protocol):
    """Makes a network that ends with the test."""

    def __call__(self, bits_per_s: float, delay_s: float, **options: Any) -> EmulatedNetwork: ...


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Contexts that end with the test, the last first."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="session")
def network_unavailable() -> str | None:
    """Why this machine has no emulated networks, or None."""
    try:
        EmulatedNetwork(NetworkProfile(1e9, 0.0)).close()
    except NetworkUnavailableError as error:
        return str(error)
    return None


@pytest.fixture
def make_network(stack: ExitStack, network_unavailable: str | None) -> MakeNetwork:
    """Make networks; skips the test where this is not possible."""
    if network_unavailable is not None:
        pytest.skip(network_unavailable)

    def make(bits_per_s: float, delay_s: float, **options: Any) -> EmulatedNetwork:
        return stack.enter_context(EmulatedNetwork(NetworkProfile(bits_per_s, delay_s, **options)))

    return make


@pytest.fixture
def run(stack: ExitStack) -> Run:
    """Start programs in namespaces."""
    return lambda end, name, *args: stack.enter_context(Program(end, name, *args))


def settled(network: EmulatedNetwork, packets: int) -> NetworkCounts:
    """Wait until ``packets`` packets have gone to the far end, and none is in flight."""
    deadline, pause = time.monotonic() + PATIENCE_S, threading.Event()
    while True:
        counts = network.counts()
        sent = counts.to_far.packets + counts.to_far.overrun
        if sent >= packets and not counts.to_far.waiting and not counts.to_near.waiting:
            return counts
        assert time.monotonic() < deadline, counts
        pause.wait(0.01)


def assert_adds_up(count: NetworkStats) -> None:
    """Each packet is counted once."""
    gone = count.forwarded + count.lost + count.dropped + count.too_long
    gone += count.cut + count.waiting
    assert count.packets + count.duplicated == gone, count
    assert count.overrun == 0, count


def assert_likely(count: int, trials: int, chance: float) -> None:
    """``count`` of ``trials`` is what happens by ``chance``, but for one test run in a million."""
    spread: float = (trials * chance * (1 - chance)) ** 0.5
    assert abs(count - trials * chance) <= 5 * spread, (count, trials, chance)
