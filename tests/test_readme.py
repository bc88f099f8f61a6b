"""The examples of README.md, run as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ftpkit
from ftpkit import Server
from ftpkit.cli import main

README = Path(__file__).parent.parent / "README.md"


def example(marker: str) -> str:
    """Return the code block behind a comment in README.md."""
    match = re.search(
        rf"<!-- {re.escape(marker)} -->\n```\w*\n(.*?)```", README.read_text(), re.DOTALL
    )
    assert match is not None, f"README.md has no {marker}"
    return match[1]


def output_behind(marker: str) -> str:
    """Return the text block that follows a marked code block: what it prints."""
    code = re.escape(example(marker))
    match = re.search(rf"{code}```\n+```text\n(.*?)```", README.read_text(), re.DOTALL)
    assert match is not None, f"README.md shows no output of {marker}"
    return match[1]


def run(code: str, directory: Path) -> str:
    """Run ``code`` in a process of its own, in ``directory``; return what it prints."""
    package = str(Path(ftpkit.__file__).parent.parent)
    path = os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", code],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def at(code: str, port: int) -> str:
    """Return ``code`` with another port."""
    assert "9021" in code
    return code.replace("9021", str(port))


def test_embedding_example_prints_what_is_shown(tmp_path: Path) -> None:
    with Server(tmp_path / "root", port=0) as server:
        printed = run(at(example("embedding example"), server.address.port), tmp_path)
    assert printed == output_behind("embedding example")


def test_library_example_brings_the_file_back(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "bigfile.iso").write_bytes(content)
    printed = run(example("library example"), tmp_path)
    assert printed.startswith("3000000 bytes, blake3:")
    assert (tmp_path / "copy.iso").read_bytes() == content


def test_secure_example_is_served_and_shows_no_secret(tmp_path: Path) -> None:
    (tmp_path / "bigfile.iso").write_bytes(os.urandom(3_000))
    printed = run(example("secure example"), tmp_path)
    assert re.fullmatch(r"3000 bytes at ftpk://127\.0\.0\.1:\d+\n", printed)


def test_future_example_tells_of_each(tmp_path: Path) -> None:
    (tmp_path / "bigfile.iso").write_bytes(os.urandom(3_000_000))
    told = run(example("future example"), tmp_path).splitlines()
    there = [f"copy-{number}.iso is there, verified" for number in range(4)]
    # The last one waits behind the others, unless these were very quick.
    assert sorted(told) in (["cancelled", *there], [*there, "copy-4.iso is there, verified"])


def test_ten_line_client_just_works(tmp_path: Path) -> None:
    (tmp_path / "bigfile.iso").write_bytes(b"x" * 5000)
    with Server(tmp_path / "root", port=0) as server:
        printed = run(at(example("ten-line client"), server.address.port), tmp_path)
    assert "'ok': True" in printed
    assert (tmp_path / "root" / "bigfile.iso").read_bytes() == b"x" * 4096


def test_every_command_is_told_of() -> None:
    for command in main.commands:
        assert f"`ftpkit {command}" in README.read_text() or f"`{command} " in README.read_text()


@pytest.mark.parametrize("row", re.findall(r"\| `(tests/[^`]+)` \|$", README.read_text(), re.M))
def test_every_test_that_a_table_names_exists(row: str) -> None:
    path, _, name = row.partition("::")
    assert f"def {name}(" in (README.parent / path).read_text()
