import importlib.util
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import WAIT_S, Run, command, processes_with

KEYS = [
    "policy", "load", "class", "flows", "mean_s", "median_s", "p99_s", "mean_slowdown",
    "p99_slowdown", "max_wait_s", "jain", "makespan_s",
]  # fmt: skip
POLICIES = ["fcfs", "sjf", "rr", "mlfq", "fair"]
CLASSES = ["all", "small", "middle", "large"]
SHORT = ["compare", "schedules", "--simulate", "--flows", "500"]


def test_a_table_for_each_load_and_what_its_words_mean(run: Run) -> None:
    result = run(*SHORT, "--load", "0.5", "--load", "1.2")
    assert (result.exit_code, result.stderr) == (0, "")
    first, table, legend, second, _, _ = result.stdout.rstrip("\n").split("\n\n")
    assert first == "Load 0.5 (ideal processor sharing: a slowdown of 2)"
    assert second == "Load 1.2 (ideal processor sharing: unbounded flow times)"
    heading, *rows = table.splitlines()
    assert heading.split()[:5] == ["files", "number", "mean", "median", "p99"]
    assert [row.split()[:2] for row in rows] == [[p, c] for p in POLICIES for c in CLASSES]
    assert re.search(r"small: less than 100 kB; large: [0-9.]+ [kM]B or more\.$", legend)
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_as_json_an_object_for_each_class(run: Run) -> None:
    result = run(*SHORT, "--json", "--load", "0.8", "--policy", "rr", "--policy", "sjf")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [list(row) for row in rows] == [KEYS] * 8
    expected = [[policy, name] for policy in ("rr", "sjf") for name in CLASSES]
    assert [[row["policy"], row["class"]] for row in rows] == expected
    assert {row["load"] for row in rows} == {0.8}
    assert [row["flows"] for row in rows[:1]] == [500]
    assert result.stdout == run(*SHORT, "--json", "--load", "0.8", "--policy", "rr",
                                "--policy", "sjf").stdout  # fmt: skip


def test_a_server_serves_them_in_the_order_of_each_policy(run: Run) -> None:
    # One that is long under way, and eleven of another user that come meanwhile.
    arrivals = ["0,2000000,ann", *(f"0.{at:02},20000,bob" for at in range(5, 16))]
    Path("trace.csv").write_text("\n".join(arrivals))
    result = run("compare", "schedules", "--json", "--trace", "trace.csv", "--rate", "4M",
                 "--policy", "fcfs", "--policy", "fair")  # fmt: skip
    assert (result.exit_code, result.stderr) == (0, "")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [list(row) for row in rows] == [KEYS] * 6
    assert [row["flows"] for row in rows] == [12, 11, 1] * 2
    assert min(row["makespan_s"] for row in rows if row["class"] == "large") > 0.4
    under_fcfs, under_fair = [row["median_s"] for row in rows if row["class"] == "small"]
    assert under_fcfs > 2 * under_fair


@pytest.fixture
def under_way(run: Run, tmp_path: Path, interruptible: None) -> Iterator["subprocess.Popen[str]"]:
    """A comparison in which an upload has begun that takes long; its processes are marked."""
    Path("trace.csv").write_text("0,100000000,ann\n1000,1,bob\n")
    (tmp_path / "tmp").mkdir()
    with subprocess.Popen(
        command("compare", "schedules", "--trace", "trace.csv", "--rate", "100k"),
        env={**os.environ, "COMPARISON": str(tmp_path), "TMPDIR": str(tmp_path / "tmp")},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            deadline, pause = time.monotonic() + WAIT_S, threading.Event()
            while not list((tmp_path / "tmp").glob("*/.ftpkit/uploads/*")):
                assert time.monotonic() < deadline
                pause.wait(0.01)
            yield process
        finally:
            process.kill()


def test_after_ctrl_c_nothing_is_left(under_way: "subprocess.Popen[str]", tmp_path: Path) -> None:
    os.killpg(under_way.pid, signal.SIGINT)
    _, printed = under_way.communicate(timeout=WAIT_S)
    assert (under_way.returncode, printed) == (130, "ftpkit: interrupted\n")
    assert not processes_with(f"COMPARISON={tmp_path}")
    assert not list((tmp_path / "tmp").iterdir())


def test_a_server_that_dies_ends_it(under_way: "subprocess.Popen[str]", tmp_path: Path) -> None:
    found = processes_with(f"COMPARISON={tmp_path}")
    [server] = [number for number, line in found.items() if "server_process" in line]
    os.kill(server, signal.SIGKILL)
    _, printed = under_way.communicate(timeout=WAIT_S)
    assert under_way.returncode == 1
    # Unread data in the server's socket makes its end a reset.
    assert re.fullmatch(r"ftpkit: (connection lost.*|the peer closed the connection)\n", printed)
    assert not processes_with(f"COMPARISON={tmp_path}")


def test_a_trace_of_ones_own(run: Run) -> None:
    Path("trace.csv").write_text("0,1000000,ann\n1,2000000,bob\n")
    result = run("compare", "schedules", "--simulate", "--json", "--trace", "trace.csv",
                 "--rate", "4M", "--policy", "fcfs")  # fmt: skip
    assert (result.exit_code, result.stderr) == (0, "")
    row = json.loads(result.stdout.splitlines()[0])
    assert (row["flows"], row["load"]) == (2, pytest.approx(0.5))
    assert row["mean_s"] == pytest.approx(0.375, abs=0.04)


@pytest.mark.parametrize(
    "args",
    [
        ["--flows", "0"],
        ["--trace", "a", "--flows", "5"],
        ["--simulate", "--load", "0"],
        ["--simulate", "--load", "2"],
        ["--simulate", "--load", "much"],
        ["--simulate", "--policy", "lottery"],
        ["--simulate", "--flows", "0"],
        ["--simulate", "--rate", "1"],
        ["--simulate", "--rate", "0"],
        ["--simulate", "--seed", "-1"],
        ["--simulate", "--trace", "a", "--load", "0.5"],
        ["--simulate", "--trace", "a", "--seed", "1"],
    ],
)
def test_usage(run: Run, args: list[str]) -> None:
    result = run("compare", "schedules", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("ftpkit: ")


def test_an_upload_larger_than_the_disk_is_a_one_line_error(run: Run) -> None:
    Path("trace").write_text(f"0,{2**50},ann\n")
    result = run("compare", "schedules", "--trace", "trace", "--policy", "rr")
    assert (result.exit_code, result.stdout) != (0, "")
    assert result.stderr.startswith("ftpkit: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


def test_an_invalid_trace_is_a_one_line_error(run: Run) -> None:
    Path("trace").write_text("0,5,ann\nnonsense\n")
    result = run("compare", "schedules", "--simulate", "--trace", "trace")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "ftpkit: 'trace' is not a trace: line 2 needs seconds, bytes and user\n"
    )


@pytest.mark.skipif(not importlib.util.find_spec("matplotlib"), reason="there is no matplotlib")
def test_a_plot_is_drawn(run: Run) -> None:
    # Not in this process, whose threads and descriptors are counted.
    argv = command(*SHORT, "--plot", "a.svg")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "<svg" in Path("a.svg").read_text()
