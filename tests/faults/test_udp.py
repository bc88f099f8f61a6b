"""Files as datagrams over a real link that loses, reorders, repeats, dies and is narrow."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from ftpkit.lab.network import EmulatedNetwork
from tests.faults.conftest import MIB, left_over, noise, visible
from tests.support.network import MakeNetwork, make_network, network_unavailable, stack

__all__ = ["make_network", "network_unavailable", "stack"]

pytestmark = pytest.mark.net

WAIT_S = 60.0
RATE, DELAY = 50e6, 0.01
PORT = 9021
DIRECTIONS = ["up", "down"]


class Ends(Protocol):
    """Makes a link with a server at its far end."""

    def __call__(self, **shape: float) -> "Far": ...


class Far:
    """A server at the far end of a link, and commands at the near one."""

    def __init__(self, link: EmulatedNetwork, root: Path, here: Path, stack: ExitStack) -> None:
        self.link, self.root, self.here, self._stack = link, root, here, stack
        server = self._start(link.far.command, "serve", str(root), "--plain", "--open", "-q")
        assert server.stdout is not None
        assert server.stdout.readline(), server.communicate()
        self.host = link.far.v4

    def start(self, *args: str, udp: str = "--udp-only") -> "subprocess.Popen[str]":
        """Start a command at the near end that uses UDP only, by default."""
        url = f"ftpk+plain://{self.host}:{PORT}"
        place = "--to" if args[0] == "put" else "--from"
        options = (place, url, udp, "--retry-for", "0")
        return self._start(self.link.near.command, *args, *options)

    def move(self, direction: str, data: bytes) -> None:
        """Move a file, and look whether it arrived."""
        self.end(self.begin(direction, data))
        self.check(direction, data)

    def begin(
        self, direction: str, data: bytes, udp: str = "--udp-only"
    ) -> "subprocess.Popen[str]":
        """Begin to move a file."""
        if direction == "up":
            (self.here / "f").write_bytes(data)
            return self.start("put", "f", udp=udp)
        (self.root / "f").write_bytes(data)
        return self.start("get", "f", udp=udp)

    def in_the_middle(self, command: "subprocess.Popen[str]") -> None:
        """Wait until 3,000 packets have entered the link."""
        pause = threading.Event()
        while sum(way.packets for way in self.link.counts()) < 3000:
            assert command.poll() is None, command.communicate()
            pause.wait(0.01)

    def check(self, direction: str, data: bytes) -> None:
        """Look whether it arrived."""
        assert ((self.root if direction == "up" else self.here) / "f").read_bytes() == data
        assert visible(self.root) == ["f"]
        assert left_over(self.root) == []

    def end(self, command: "subprocess.Popen[str]") -> None:
        """Wait for a command, which must succeed without a word of trouble."""
        _, errors = command.communicate(timeout=WAIT_S)
        assert (command.returncode, errors) == (0, "")

    def _start(self, within: "Within", *args: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            within([sys.executable, "-m", "ftpkit", *args]),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.here,
        )
        self._stack.callback(_end, process)
        return process


class Within(Protocol):
    """Makes a command one that runs at an end."""

    def __call__(self, argv: list[str]) -> list[str]: ...


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


@pytest.fixture
def ends(make_network: MakeNetwork, stack: ExitStack, tmp_path: Path, here: Path) -> Iterator[Ends]:
    with ExitStack() as running:

        def make(**shape: float) -> Far:
            root = tmp_path / "root"
            root.mkdir()
            return Far(make_network(RATE, DELAY, **shape), root, here, running)

        yield make


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_fifth_of_the_packets_is_lost(ends: Ends, direction: str) -> None:
    far = ends(loss=0.2)
    far.move(direction, noise(3 * MIB, 1))
    counts = far.link.counts()
    assert counts.to_far.lost > 0
    assert counts.to_near.lost > 0


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_packets_are_late_and_come_twice(ends: Ends, direction: str) -> None:
    far = ends(reorder=0.02, duplicate=0.02)
    far.move(direction, noise(6 * MIB, 2))
    assert far.link.counts().to_far.duplicated > 0


@pytest.mark.parametrize("direction", ["up", pytest.param("down", marks=pytest.mark.slow)])
def test_a_path_that_dies_for_five_seconds(ends: Ends, direction: str) -> None:
    far = ends()
    data = noise(12 * MIB, 3)
    command = far.begin(direction, data)
    far.in_the_middle(command)
    far.link.cut()
    threading.Event().wait(5.0)
    far.link.restore()
    far.end(command)
    far.check(direction, data)


def test_a_queue_that_overflows(ends: Ends) -> None:
    far = ends(queue_bytes=20_000)
    far.move("up", noise(5 * MIB, 6))
    assert far.link.counts().to_far.dropped > 0


@pytest.mark.parametrize(("direction", "size"), [("up", 1), ("down", 4096)])
def test_a_small_file(ends: Ends, direction: str, size: int) -> None:
    ends(loss=0.02).move(direction, noise(size, 7))


@pytest.mark.parametrize(("direction", "version"), [("up", 4), ("down", 6)])
def test_a_narrow_path(ends: Ends, direction: str, version: int) -> None:
    far = ends(mtu=1280)
    if version == 6:
        far.host = _v6(far)
    far.move(direction, noise(5 * MIB, 4))


@pytest.mark.parametrize("black_hole", [False, True])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_path_that_is_narrower_than_the_devices(
    ends: Ends, direction: str, version: int, *, black_hole: bool
) -> None:
    far = ends(path_mtu=1280, black_hole=black_hole)
    if version == 6:
        far.host = _v6(far)
    far.move(direction, noise(2 * MIB, 8))
    counts = far.link.counts()
    # Some have tried whether they fit, and the file came in those that do.
    assert 0 < counts.to_far.too_long < 50
    assert counts.to_near.too_long == 0


@pytest.mark.slow
def test_a_path_that_becomes_narrower_falls_back_to_tcp(ends: Ends) -> None:
    far = ends()
    data = noise(12 * MIB, 9)
    command = far.begin("up", data, "--udp")
    far.in_the_middle(command)
    far.link.set_path_mtu(1280)
    _, errors = command.communicate(timeout=WAIT_S)
    assert command.returncode == 0, errors
    assert "no longer gets through" in errors
    assert "continuing over TCP" in errors
    far.check("up", data)


def test_ipv6(ends: Ends) -> None:
    far = ends(loss=0.01)
    far.host = _v6(far)
    far.move("up", noise(5 * MIB, 5))


def test_two_uploads_and_a_download_share_a_network(ends: Ends) -> None:
    far = ends()
    data = {name: noise(4 * MIB, seed) for seed, name in enumerate("abc")}
    for name in "ab":
        (far.here / name).write_bytes(data[name])
    (far.root / "c").write_bytes(data["c"])
    commands = [far.start("put", "a"), far.start("put", "b"), far.start("get", "c")]
    for command in commands:
        far.end(command)
    for name in "ab":
        assert (far.root / name).read_bytes() == data[name]
    assert (far.here / "c").read_bytes() == data["c"]
    assert left_over(far.root) == []


def _v6(far: Far) -> str:
    if far.link.far.v6 is None:
        pytest.skip("this kernel has no IPv6")
    return f"[{far.link.far.v6}]"
