import json
import os
import pty
import re
import subprocess
import sys
import termios
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from ftpkit.cli.output.progress import Events, summary
from ftpkit.client import TransferResult
from ftpkit.errors import Code, RefusedError
from tests.cli.conftest import WAIT_S, Run, Served, command

TRANSFER = TransferResult(
    name="big\x1b.iso",
    path="/tmp/big.iso",
    total=4_294_967_296,
    moved=4_294_967_296,
    seconds=3.9,
    version="v",
    content_digest="blake3:ab",
)


def test_the_line_after_a_transfer() -> None:
    assert summary(TRANSFER) == "big\\x1b.iso: 4.29 GB in 3.9 s, 1.10 GB/s, verified"


def test_the_line_after_a_transfer_that_was_resumed_has_the_rate_of_what_moved() -> None:
    assert summary(replace(TRANSFER, moved=390_000_000)) == (
        "big\\x1b.iso: 4.29 GB, 390 MB of it in 3.9 s, 100 MB/s, verified"
    )


def test_events_and_their_keys(run: Run, served: Served) -> None:
    Path("a").write_bytes(b"12345")
    events = [json.loads(line) for line in run("put", "a", "--json").stdout.splitlines()]
    assert events[0] == {"event": "start", "name": "a", "total": 5}
    assert events[-1].items() >= {"event": "done", "name": "a", "total": 5}.items()
    assert events[-1]["content_digest"].startswith("blake3:")
    assert events[-1]["seconds"] > 0
    result = run("get", "a", "nix", "-o", ".", "--json")
    assert result.exit_code == 3
    assert result.stderr == ""
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(event["event"], event["name"]) for event in events] == [
        ("start", "a"),
        ("done", "a"),
        ("start", "nix"),
        ("error", "nix"),
    ]
    assert events[0]["total"] is None
    assert events[-1]["code"] == "not-found"
    assert "nix" in events[-1]["message"]


def test_progress_comes_twice_a_second_at_most(capsys: pytest.CaptureFixture[str]) -> None:
    ticks = count()
    events = Events(clock=lambda: next(ticks) / 20)
    events.start("a", 1000)
    for moved in range(1000):
        events.moved("a", moved, 1000)
    events_seen = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    progress = [event for event in events_seen if event["event"] == "progress"]
    elapsed = next(ticks) / 20
    assert elapsed * 1.5 <= len(progress) <= elapsed * 2
    assert set(progress[0]) == {"event", "name", "moved", "total"}


def test_the_other_events(capsys: pytest.CaptureFixture[str]) -> None:
    events = Events()
    events.done(TRANSFER)
    events.failed("b", RefusedError(Code.NO_SPACE, "the disk is full"))
    done, error = map(json.loads, capsys.readouterr().out.splitlines())
    assert (done["name"], done["seconds"], done["path"]) == ("big\x1b.iso", 3.9, "/tmp/big.iso")
    assert error == {
        "event": "error",
        "name": "b",
        "code": "no-space",
        "message": "the disk is full",
    }


def on_a_terminal(
    args: list[str], cwd: Path, columns: int = 100, program: list[str] | None = None
) -> tuple[int, str]:
    """Run ftpkit with stderr at a terminal; return its exit code and what is on the screen."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (30, columns))
    argv = program or command(*args)
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=theirs, cwd=cwd)
    os.close(theirs)
    shown = bytearray()
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # EIO: the other side is closed
            break
        shown += piece
    os.close(ours)
    return process.wait(WAIT_S), shown.decode()


def test_bars_on_a_terminal(served: Served, tmp_path: Path) -> None:
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).write_bytes(bytes(3_000_000))
    code, shown = on_a_terminal(["put", "a.bin", "b.bin", "--rate", "10M"], tmp_path)
    assert code == 0
    for name in ("a.bin", "b.bin", "all files"):
        # How far, how many bytes of how many, time gone and time left, rate.
        assert re.search(rf"{name}: .*%.* [0-9.]+M/[36]\.00M \[\d\d:\d\d<\d\d:\d\d, .*B/s\]", shown)
    drawn = len(re.findall(r"\.bin: ", shown))
    assert drawn <= 2 * 10, "ten times a second at most"
    assert re.split(r"[\r\n]", shown)[-1] in ("", "\x1b[J"), "the prompt begins a line"
    code, shown = on_a_terminal(["get", "a.bin", "b.bin", "nix", "--rate", "20M"], tmp_path)
    assert code == 3
    assert "all files: " in shown
    assert "/6.00M" in shown
    assert "ftpkit: no such file or directory: 'nix'" in shown


def test_bars_on_a_terminal_that_does_not_know_its_width(served: Served, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(100_000))
    code, shown = on_a_terminal(["put", "a.bin"], tmp_path, columns=0)
    assert code == 0
    assert "a.bin: 100%" in shown or "a.bin:   0%" in shown


def test_a_bar_that_was_cut_short_is_erased_before_the_next_line() -> None:
    """Ctrl-C may come after tqdm has drawn a bar, and before it has noted its length."""
    code = (
        "import sys\n"
        "from ftpkit.cli.output.bars import Bars\n"
        "from ftpkit.cli.output.progress import Lines\n"
        "from ftpkit.errors import FtpkitError\n"
        "bars = Bars(Lines(quiet=False), [100], 1)\n"
        "bars.moved('f', 50, 100)\n"
        "sys.stderr.write('<cut short>')\n"
        "bars.failed('f', FtpkitError('interrupted'))\n"
        "bars.close()\n"
    )
    _, shown = on_a_terminal([], Path(), program=[sys.executable, "-c", code])
    before, after = shown.split("<cut short>")
    assert "\r\x1b[Jftpkit: f: interrupted" in after
    assert "f:  50%" in before


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_a_name_wider_than_the_terminal_leaves_room_for_percent_and_rate(
    served: Served, tmp_path: Path, columns: int
) -> None:
    name = f"{'x' * 120}.iso"
    (tmp_path / name).write_bytes(bytes(100_000))
    code, shown = on_a_terminal(["put", name], tmp_path, columns=columns)
    assert code == 0
    assert re.search(r"^\r?x*\.\.\.[x.iso]*: +\d+%", shown)
    assert "B/s" in shown


@pytest.mark.parametrize("flag", ["--quiet", "--json"])
def test_no_bars_with_quiet_or_json(served: Served, tmp_path: Path, flag: str) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(3_000_000))
    assert on_a_terminal(["put", "a.bin", flag], tmp_path) == (0, "")


def test_no_bars_when_piped(served: Served, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(3_000_000))
    result = subprocess.run(
        command("put", "a.bin"), cwd=tmp_path, capture_output=True, check=True, timeout=WAIT_S
    )
    assert result.stderr == b""
    assert result.stdout.startswith(b"a.bin: 3.00 MB in ")
