"""Real processes, killed at seeded moments: nothing that was acknowledged is lost."""

import contextlib
import random
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from ftpkit.errors import FtpkitError
from tests.faults.conftest import MIB, Eager, left_over, noise, settled, visible
from tests.faults.processes import Served, start
from tests.faults.relay import WAIT_S, Hold, Plan, Relay


@dataclass
class Command:
    """``ftpkit put`` or ``get`` of several files over a relay; killed, it is given again."""

    args: list[str]
    home: Path

    def __post_init__(self) -> None:
        self.process = start(*self.args, home=self.home)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=WAIT_S)
        self.process = start(*self.args, home=self.home)

    def ended(self) -> tuple[int, bytes]:
        _, output = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, output


def kill_and_restart(seed: int, direction: str, kills: int, tmp_path: Path) -> None:
    """Move files of 8 to 40 MiB; kill a side ``kills`` times, each time after some more bytes."""
    chance = random.Random(seed)
    root, here = tmp_path / "root", tmp_path / "here"
    root.mkdir()
    here.mkdir()
    names = ["a", "b", "c"]
    bodies = {
        name: noise(chance.randrange(8 * MIB, 20 * MIB), seed * 10 + at)
        for at, name in enumerate(names)
    }
    bodies["c"] += noise(20 * MIB, seed)
    origin = here if direction == "put" else root
    for name, body in bodies.items():
        settled(origin / name, body)
    total = sum(map(len, bodies.values()))
    with Served(root) as server, Relay(server.address) as relay, contextlib.ExitStack() as stack:
        options = ["--from", str(relay.address), "--retry-for", "30s", "--timeout", "5s", "--quiet"]
        where = [str(here / name) for name in names] if direction == "put" else [*names]
        command = Command([direction, *where, *options], here if direction == "get" else tmp_path)
        stack.callback(lambda: command.process.kill())
        for _ in range(kills):
            goal = relay.up + relay.down + chance.randrange(200, total // (kills + 2))
            # It must not come to its end while we are on our way to kill it.
            relay.limit(goal + total // (kills * (kills + 2)))
            relay.wait(partial(arrived, goal=goal))
            assert command.process.poll() is None, (seed, "it ended before it was killed")
            if chance.random() < 0.5:
                server.kill()
                server.start()
            else:
                command.kill()
            relay.limit(None)
        code, output = command.ended()
        assert code == 0, (seed, output)
        for name, body in bodies.items():
            assert (root / name).read_bytes() == body, (seed, name)
            assert (here / name).read_bytes() == body, (seed, name)
        assert sorted(path.name for path in here.iterdir() if path.is_file()) == names
        assert [p.name for p in here.iterdir() if p.is_dir()] in ([], ["cache"], ["config"])
        assert visible(root) == names
        server.ask_to_end()
        assert server.ended()[0] == 0
        assert left_over(root) == [], seed


def arrived(relay: Relay, goal: int) -> bool:
    return relay.up + relay.down >= goal


@pytest.mark.parametrize("direction", ["put", "get"])
@pytest.mark.parametrize("seed", [1])
def test_either_side_is_killed_while_files_move(seed: int, direction: str, tmp_path: Path) -> None:
    kill_and_restart(seed, direction, 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["put", "get"])
@pytest.mark.parametrize("seed", range(2, 7))
def test_either_side_is_killed_often_while_files_move(
    seed: int, direction: str, tmp_path: Path
) -> None:
    kill_and_restart(seed, direction, 4, tmp_path)


def test_a_server_that_is_killed_leaves_nothing_of_a_small_put(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "small").write_bytes(b"old")
    settled(tmp_path / "small", new := noise(MIB, 3))
    with Served(root) as server, Relay(server.address) as relay:
        relay.expect(Plan(up=(Hold(MIB // 2, never := threading.Event()),)))
        failures: list[FtpkitError] = []

        def restart(error: FtpkitError, delay: float) -> None:
            assert (root / "small").read_bytes() == b"old"
            if not failures:
                server.start()
            failures.append(error)

        def kill() -> None:
            relay.wait(lambda relay: relay.up >= MIB // 2)
            server.kill()
            never.set()

        killer = threading.Thread(target=kill)
        killer.start()
        with Eager(relay.address, retry_for_s=30) as client:
            client.put(tmp_path / "small", on_retry=restart)
        killer.join()
        assert failures
        assert (root / "small").read_bytes() == new
        assert left_over(root) == []
