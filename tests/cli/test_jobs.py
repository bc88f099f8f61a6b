"""--jobs: several files at once, reported as they end, stopped by one Ctrl-C."""

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest

from ftpkit import Address
from ftpkit.cli.transfers import reject_duplicates
from tests.cli.conftest import WAIT_S, Run, Served, command
from tests.cli.test_progress import on_a_terminal
from tests.faults.relay import Hold, Plan, Relay

MIB = 1024 * 1024
NAMES = ["a", "b", "c", "d", "e"]


@pytest.fixture
def relay(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """A relay that every command goes through."""
    with Relay(Address.parse(served.url)) as relay:
        monkeypatch.setenv("FTPKIT_URL", str(relay.address))
        yield relay


def made(directory: Path, size: int, names: list[str] = NAMES) -> None:
    for number, name in enumerate(names):
        (directory / name).write_bytes(bytes([number]) * size)


@pytest.mark.parametrize("jobs", ["1", "2", "9"])
def test_up_and_down(run: Run, served: Served, jobs: str) -> None:
    made(Path(), 2 * MIB)
    up = run("put", *NAMES, "--jobs", jobs)
    assert (up.exit_code, up.stderr) == (0, "")
    assert sorted(line.split(":")[0] for line in up.stdout.splitlines()) == NAMES
    Path("down").mkdir()
    down = run("get", *NAMES, "--jobs", jobs, "-o", "down")
    assert (down.exit_code, down.stderr) == (0, "")
    assert sorted(line.split(":")[0] for line in down.stdout.splitlines()) == NAMES
    for name in NAMES:
        assert (Path("down") / name).read_bytes() == Path(name).read_bytes()


def test_it_is_a_setting(run: Run, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    made(Path(), 3)
    for bad in ("0", "-1", "many"):
        assert run("put", "a", "--jobs", bad).exit_code == 2
    monkeypatch.setenv("FTPKIT_JOBS", "0")
    assert "FTPKIT_JOBS: expected an integer of at least 1" in run("put", "a").stderr
    monkeypatch.setenv("FTPKIT_JOBS", "2")
    assert run("put", "a").exit_code == 0


def test_so_many_connections_carry_them(run: Run, relay: Relay) -> None:
    made(Path(), 2 * MIB)
    relay.expect()
    assert run("put", *NAMES, "--jobs", "1").exit_code == 0
    assert relay.accepted == 1
    relay.expect()
    assert run("put", *NAMES, "--jobs", "3", "--rate", "20M").exit_code == 0
    assert relay.accepted == 3


def test_each_event_has_the_name_of_its_file(run: Run, served: Served) -> None:
    made(Path(), MIB + 1)
    result = run("put", *NAMES, "nix", "--jobs", "3", "--rate", "4M", "--json")
    assert result.exit_code == 1
    events = [json.loads(line) for line in result.stdout.splitlines()]
    for name in NAMES:
        mine = [event for event in events if event["name"] == name]
        assert mine[0] == {"event": "start", "name": name, "total": MIB + 1}
        assert mine[-1]["event"] == "done"
        assert {event["event"] for event in mine[1:-1]} <= {"progress"}
    assert [event["event"] for event in events if event["name"] == "nix"] == ["start", "error"]
    assert any(event["event"] == "progress" for event in events)
    first_end = next(i for i, event in enumerate(events) if event["event"] == "done")
    assert [event["event"] for event in events[:first_end]].count("start") == 3


def test_a_file_that_fails_fails_alone(run: Run, served: Served) -> None:
    made(Path(), 3)
    result = run("put", "none", *NAMES, "--jobs", "2")
    assert result.exit_code == 1
    assert result.stderr == "ftpkit: cannot read 'none': No such file or directory\n"
    assert len(result.stdout.splitlines()) == 5
    result = run("get", "nix", *NAMES, "none", "--jobs", "2")
    assert result.exit_code == 3
    assert sorted(result.stderr.splitlines()) == [
        "ftpkit: no such file or directory: 'nix'",
        "ftpkit: no such file or directory: 'none'",
    ]
    assert len(result.stdout.splitlines()) == 5


def test_without_a_server_the_other_files_are_not_tried(run: Run) -> None:
    made(Path(), 3)
    result = run("put", *NAMES, "--jobs", "2", "--to", "127.0.0.1:1")
    assert result.exit_code == 4
    assert 1 <= result.stderr.count("\n") <= 2


def test_the_rate_is_that_of_all(run: Run, served: Served) -> None:
    made(Path(), MIB + 1)
    started = time.monotonic()
    assert run("put", *NAMES, "--jobs", "5", "--rate", "5M").exit_code == 0
    assert time.monotonic() - started >= 0.9 * 5 * MIB / 5e6


def test_as_datagrams(run: Run, served: Served) -> None:
    made(Path(), 3 * MIB)
    result = run("put", *NAMES, "--jobs", "3", "--udp-only")
    assert (result.exit_code, result.stderr) == (0, "")
    Path("down").mkdir()
    result = run("get", *NAMES, "--jobs", "3", "--udp-only", "-o", "down")
    assert (result.exit_code, result.stderr) == (0, "")
    for name in NAMES:
        assert (Path("down") / name).read_bytes() == (served.root / name).read_bytes()


def test_a_bar_for_each_on_a_terminal(served: Served, tmp_path: Path) -> None:
    made(tmp_path, 3_000_000)
    code, shown = on_a_terminal(["put", *NAMES, "nix", "--jobs", "2", "--rate", "10M"], tmp_path)
    assert code == 1
    for name in (*NAMES, "all files"):
        assert re.search(rf"{name}: .*%", shown), name
    assert "/15.0M" in shown
    assert "ftpkit: cannot read 'nix'" in shown
    screen = Screen(shown)
    assert screen.most_at_once == 3, "two files and the whole"
    assert [line.rstrip() for line in screen.lines if line.strip()] == [
        "ftpkit: cannot read 'nix': No such file or directory"
    ]


class Screen:
    """What a terminal shows in the end, and how many bars it showed at once."""

    def __init__(self, shown: str) -> None:
        self.lines, self.most_at_once = [""], 0
        row = column = 0
        for word in re.findall(r"\x1b\[[AJ]|[\r\n]|[^\r\n\x1b]+", shown):
            if word == "\x1b[A":
                row -= 1
            elif word == "\x1b[J":
                self.lines[row] = self.lines[row][:column]
                self.lines[row + 1 :] = [""] * len(self.lines[row + 1 :])
            elif word == "\r":
                column = 0
            elif word == "\n":
                row, column = row + 1, 0
                self.lines += [""] * (row + 1 - len(self.lines))
            else:
                line = self.lines[row].ljust(column)
                self.lines[row] = line[:column] + word + line[column + len(word) :]
                column += len(word)
            bars = sum("%|" in line for line in self.lines)
            self.most_at_once = max(self.most_at_once, bars)


# Ctrl-C


@contextmanager
def running(relay: Relay, cwd: Path, jobs: int, *args: str) -> "Iterator[subprocess.Popen[str]]":
    """Run the command until ``jobs`` files are in the middle, behind their first block."""
    released = threading.Event()
    hold = (Hold(6 * MIB, released),)
    relay.expect(*[Plan(up=hold, down=hold)] * jobs)
    with subprocess.Popen(
        command(*args, "--jobs", str(jobs)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        relay.wait(lambda relay: relay.up + relay.down >= jobs * 6 * MIB)
        yield process
    released.set()


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("way", ["put", "get"])
def test_one_ctrl_c_stops_all_and_says_what_goes_on(
    relay: Relay, served: Served, tmp_path: Path, way: str, jobs: int
) -> None:
    made(tmp_path if way == "put" else served.root, 10 * MIB)
    with running(relay, tmp_path, jobs, way, *NAMES) as process:
        process.send_signal(signal.SIGINT)
        out, told = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    *each, last = told.splitlines()
    assert last == "ftpkit: interrupted"
    at = "interrupted at [0-9.]+ MB of 10.5 MB; repeat the command to resume"
    for name, line in zip("ab"[:jobs], sorted(each), strict=True):
        assert re.fullmatch(f"ftpkit: {name}: {at}", line)
    assert out == ""
    relay.expect()
    again = subprocess.run(
        command(way, *NAMES, "--jobs", "2"), cwd=tmp_path, capture_output=True, timeout=WAIT_S,
        check=False, text=True,
    )  # fmt: skip
    assert (again.returncode, again.stderr) == (0, "")
    assert relay.up + relay.down < 50 * MIB, "what had arrived was not moved again"
    for name in NAMES:
        assert (tmp_path / name).read_bytes() == (served.root / name).read_bytes()
    assert not list(tmp_path.glob(".*.part"))


def test_ctrl_c_as_events(relay: Relay, tmp_path: Path) -> None:
    made(tmp_path, 10 * MIB)
    with running(relay, tmp_path, 2, "put", *NAMES, "--json") as process:
        process.send_signal(signal.SIGINT)
        out, told = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert told == "ftpkit: interrupted\n"
    events = [json.loads(line) for line in out.splitlines()]
    ended = [event for event in events if event["event"] == "error"]
    assert {event["code"] for event in ended} == {"interrupted"}
    assert {event["name"] for event in ended} == {"a", "b"}


class Compared(str):
    """A name that counts how often two names are compared."""

    comparisons = 0

    def __eq__(self, other: object) -> bool:
        Compared.comparisons += 1
        return super().__eq__(other)

    __hash__ = str.__hash__


def test_names_are_compared_for_equality_only_if_they_may_be_equal() -> None:
    names: list[str] = [Compared(number) for number in range(10_000)]
    reject_duplicates(names)
    with pytest.raises(click.UsageError, match=r"would be named 7: "):
        reject_duplicates([*names, Compared(7)])
    assert Compared.comparisons < len(names)
