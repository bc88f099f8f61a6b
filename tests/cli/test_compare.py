import json
import re
import subprocess
import sys

import pytest

from tests.cli.conftest import WAIT_S, Run

COUNTS = ["messages", "reads", "whole", "glued", "split", "lost"]


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
    assert "framing  Count sticky packets and lost datagrams." in result.stdout
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
    code = "import sys, ftpkit.cli; sys.exit(any('ftpkit.compare' in m for m in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=WAIT_S)
