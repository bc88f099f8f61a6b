import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ftpkit.lab.model import NetworkProfile
from ftpkit.lab.network import EmulatedNetwork, NetworkUnavailableError
from tests.cli.conftest import WAIT_S, Run, Serve, command, processes_with
from tests.support.trees import published, staged

COUNTS = ["messages", "reads", "whole", "glued", "split", "lost"]
KEYS = [
    "transport", "bytes", "seconds", "first_byte_s", "goodput_bps", "sent_bytes", "resent_bytes",
    "lost_bytes", "verified", "client_cpu_s", "server_cpu_s", "congestion", "stopped", "error",
]  # fmt: skip


def test_framing_prints_a_table_and_what_each_row_is(run: Run) -> None:
    result = run("compare", "framing", "--messages", "2000")
    assert result.exit_code == 0
    assert result.stderr == ""
    table, told, sentence = result.stdout.split("\n\n")
    heading, *rows = table.splitlines()
    assert heading.split() == COUNTS
    names = ["TCP, plain recv", "TCP, length prefix", "UDP datagrams"]
    for name, row, line in zip(names, rows, told.splitlines(), strict=True):
        assert len(row) == len(heading)
        assert line.startswith(f"{name}: ")
        numbers = re.fullmatch(rf"{name} +([0-9, ]+)", row)
        assert numbers is not None
        messages, reads, *fates = (int(word.replace(",", "")) for word in numbers[1].split())
        assert messages == sum(fates) == 2000
        assert reads > 0
    assert sentence.startswith("Sticky packets: ")
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_framing_as_json(run: Run) -> None:
    result = run("compare", "framing", "--messages", "2000", "--size", "16", "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [list(row) for row in rows] == [["transport", *COUNTS]] * 3
    assert [row["transport"] for row in rows] == ["tcp", "tcp-framed", "udp"]
    assert {row["whole"] + row["glued"] + row["split"] + row["lost"] for row in rows} == {2000}
    tcp, framed, _ = rows
    assert tcp["glued"] > 0
    assert framed["whole"] == 2000


def test_compare_alone_shows_what_there_is(run: Run) -> None:
    result = run("compare")
    assert result.exit_code == 0
    assert result.stdout == run("compare", "--help").stdout
    assert "framing     Count sticky packets and lost datagrams." in result.stdout
    assert "schedules   Compare the scheduling policies on the same uploads." in result.stdout
    assert (
        "transports  Send FILE over TCP and over UDP, one transport after the other."
        in result.stdout
    )
    assert "Example:  ftpkit compare framing" in run("compare", "framing", "--help").stdout


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["framing", "--messages", "0"],
        ["framing", "--messages", "100001"],
        ["framing", "--messages", "many"],
        ["framing", "--size", "3"],
        ["framing", "--size", "1025"],
        ["transports"],
        ["transports", "file", "--link", "fast"],
        ["transports", "file", "--link", "100M"],
        ["transports", "file", "--seconds", "0"],
        ["transports", "file", "--to", "http://somewhere"],
        ["transports", "file", "--to", "ftpk://somewhere", "--link", "100M,50ms"],
    ],
)
def test_usage(run: Run, args: list[str]) -> None:
    result = run("compare", *args)
    assert result.exit_code == 2
    assert result.stderr.startswith("ftpkit: ")
    assert "--help')" in result.stderr
    assert result.stdout == ""


def test_the_limits_are_those_of_the_comparison(run: Run) -> None:
    for size in ("4", "1024"):
        assert run("compare", "framing", "--messages", "1", "--size", size).exit_code == 0


def test_other_commands_start_without_it() -> None:
    code = (
        "import sys, ftpkit.cli; "
        "sys.exit(any(part in name for name in sys.modules for part in ('ftpkit.compare', 'plot')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=WAIT_S)


@pytest.fixture
def file(run: Run) -> str:
    """Three megabytes in the directory of the test."""
    Path("file.bin").write_bytes(os.urandom(3_000_000))
    return "file.bin"


def test_transports_prints_a_table_and_what_is_seen(run: Run, file: str) -> None:
    result = run("compare", "transports", file)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    table, legend, seen = result.stdout.split("\n\n")
    heading, *rows = table.splitlines()
    assert heading.split()[:6] == ["goodput", "first", "last", "sent", "resent", "lost"]
    assert heading.split()[6:] == ["client", "CPU", "server", "CPU", "verified"]
    assert {len(row.rstrip()) for row in rows} <= {heading.index("verified") + n for n in (2, 3)}
    assert re.match(r"TCP( \(\w+\))? +[0-9.]+ [kMG]bit/s ", rows[0])
    assert re.match(r"TCP x4", rows[1])
    assert re.match(r"UDP raw .* no$", rows[-2])
    assert re.match(r"UDP repaired .* yes$", rows[-1])
    assert legend.startswith("first, last: when the first and the last byte")
    lost, *faster = seen.splitlines()
    assert re.match(r"Plain UDP lost ([0-9.]+% of what it sent|nothing this time)", lost)
    assert len(faster) == 2
    assert all(
        re.fullmatch(r".* was ([0-9.]+ times|about) as fast as .*\.", line) for line in faster
    )
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_transports_as_json_to_a_server(run: Run, file: str, serve: Serve) -> None:
    served = serve()
    result = run("compare", "transports", file, "--to", served.url, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert all(sorted(row) == sorted(KEYS) for row in rows)
    names = [row["transport"] for row in rows]
    assert names[:2] == ["tcp", "tcp-4"]
    assert names[-2:] == ["udp-raw", "udp"]
    assert [row["verified"] for row in rows] == [name != "udp-raw" for name in names]
    assert {row["server_cpu_s"] for row in rows} == {None}
    assert published(served.root) == {}
    assert staged(served.root) == []


def test_failed_transports_are_reported_after_the_table(run: Run, file: str, serve: Serve) -> None:
    served = serve("--no-udp")
    result = run("compare", "transports", file, "--to", served.url)
    assert result.exit_code == 1
    assert len(result.stdout.split("\n\n")) == 3
    assert [line.split(":")[:2] for line in result.stderr.splitlines()] == [
        ["ftpkit", " UDP raw"],
        ["ftpkit", " UDP repaired"],
    ]


def test_transports_needs_a_file_and_a_server(run: Run, file: str, serve: Serve) -> None:
    result = run("compare", "transports", "nothing")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "ftpkit: cannot read 'nothing': No such file or directory\n"
    served = serve()
    served.end()
    result = run("compare", "transports", file, "--to", served.url)
    assert (result.exit_code, result.stdout) == (4, "")


def test_a_plot_without_matplotlib_says_what_to_install(file: str) -> None:
    code = "import sys; sys.modules['matplotlib'] = None; from ftpkit.__main__ import run; run()"
    done = subprocess.run(
        [sys.executable, "-c", code, "compare", "transports", file, "--plot", "a.png"],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == "ftpkit: --plot requires matplotlib; install it with: pip install 'ftpkit[plot]'\n"
    )


@pytest.mark.skipif(not importlib.util.find_spec("matplotlib"), reason="there is no matplotlib")
def test_a_plot_is_drawn(run: Run, file: str) -> None:
    def drawn(path: str) -> "subprocess.CompletedProcess[str]":
        # Not in this process, whose threads and descriptors are counted.
        argv = command("compare", "transports", file, "--plot", path)
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)

    done = drawn("a.svg")
    assert (done.returncode, done.stderr) == (0, "")
    assert "<svg" in Path("a.svg").read_text()
    done = drawn("a.txt")
    assert (done.returncode, done.stdout) == (2, "")
    assert "the file name must end in one of " in done.stderr
    done = drawn("nowhere/a.png")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "ftpkit: cannot write 'nowhere/a.png': no such directory\n"


@pytest.mark.parametrize("where", ["loopback", pytest.param("link", marks=pytest.mark.net)])
@pytest.mark.usefixtures("interruptible")
def test_after_ctrl_c_nothing_is_left(run: Run, tmp_path: Path, where: str) -> None:
    shape = ["--link", "2M,5ms"] if where == "link" else []
    if shape:
        try:
            EmulatedNetwork(NetworkProfile(1e6, 0.0)).close()
        except NetworkUnavailableError as error:
            pytest.skip(str(error))
    with open("huge.bin", "wb") as file:
        file.truncate(2**30)
    (tmp_path / "tmp").mkdir()
    mark = f"COMPARISON={tmp_path}"
    with subprocess.Popen(
        command("compare", "transports", "huge.bin", "--seconds", "1", "--json", *shape),
        env={**os.environ, "COMPARISON": str(tmp_path), "TMPDIR": str(tmp_path / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["transport"] == "tcp"
        # One transport is over and the next under way; a terminal tells the whole group.
        assert len(processes_with(mark)) >= 2 + bool(shape)
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=WAIT_S)
    assert (process.returncode, told) == (130, "ftpkit: interrupted\n")
    assert not processes_with(mark)
    assert not list((tmp_path / "tmp").iterdir())
