"""``ftpkit help``: the pages in the terminal, and the help of each command."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

import ftpkit
from ftpkit.cli.commands.help import _for_terminal
from tests.cli.conftest import WAIT_S, Run, command, commands

DOCS = Path(ftpkit.__file__).parent / "docs"
TOPICS = sorted(page.stem for page in DOCS.iterdir())


def test_it_lists_every_topic_with_a_summary(run: Run) -> None:
    result = run("help")
    assert result.exit_code == 0
    for topic in TOPICS:
        title = (DOCS / f"{topic}.md").read_text("utf-8").splitlines()[0]
        assert title.lower().startswith(f"# {topic.replace('-', ' ')}: ")
        assert f"  {topic:12}  {title.partition(': ')[2]}\n" in result.stdout


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_prints_its_page_without_markers(run: Run, topic: str) -> None:
    result = run("help", topic)
    assert result.exit_code == 0
    page = (DOCS / f"{topic}.md").read_text("utf-8")
    shown = [line for line in page.splitlines() if not line.startswith("<!--")]
    assert result.stdout.splitlines() == "\n".join(shown).rstrip().splitlines()


@pytest.mark.parametrize("name", sorted(commands()))
def test_a_command_prints_its_help(run: Run, name: str) -> None:
    assert name not in TOPICS
    result = run("help", name)
    assert result.exit_code == 0
    assert result.stdout == run(name, "--help").stdout


def test_a_subcommand_prints_its_help(run: Run) -> None:
    assert run("help", "token", "add").stdout == run("token", "add", "--help").stdout


@pytest.mark.parametrize("words", [["nonsense"], ["put", "nonsense"], ["using", "serving"]])
def test_an_unknown_topic_is_a_usage_error_that_lists_the_topics(
    run: Run, words: list[str]
) -> None:
    result = run("help", *words)
    assert result.exit_code == 2
    assert f"no topic or command {' '.join(words)!r}" in result.stderr
    assert ", ".join(TOPICS) in result.stderr


@pytest.mark.parametrize("topic", TOPICS)
def test_the_installed_command_shows_a_page(tmp_path: Path, topic: str) -> None:
    script = Path(sys.executable).with_name("ftpkit")
    if not script.exists():
        pytest.skip("the command is not installed beside this Python")
    done = subprocess.run(
        [script, "help", topic], cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_S
    )
    assert (done.returncode, done.stderr) == (0, "")
    title = (DOCS / f"{topic}.md").read_text("utf-8").partition("\n")[0]
    assert done.stdout.startswith(f"{title}\n")


def test_a_terminal_shows_table_rows_as_paragraphs_and_links_as_commands() -> None:
    page = (
        "see [udp](udp.md#loss), [WIRE.md](../protocol/WIRE.md)\n\n"
        "| fault | what happens | test |\n|---|---|---|\n"
        "| it breaks | it is `a\\|b` mended at once | `tests/x.py` |\n\nend"
    )
    assert _for_terminal(page, 20).splitlines() == [
        "see udp (ftpkit help udp), WIRE.md",
        "",
        "it breaks",
        "    it is `a|b`",
        "    mended at once",
        "",
        "end",
    ]


def test_a_terminal_gets_a_pager(tmp_path: Path) -> None:
    pager = tmp_path / "pager"
    pager.write_text("#!/bin/sh\necho paged\ncat\n")
    pager.chmod(0o700)
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        process = subprocess.Popen(
            command("help", "changelog"),
            env={**os.environ, "PAGER": str(pager), "TERM": "xterm"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        shown = b""
        try:
            while chunk := terminal.read(65536):
                shown += chunk
        except OSError:  # the other end of the terminal is closed
            pass
        assert process.wait(WAIT_S) == 0
    assert shown.startswith(b"paged\r\n# Changelog: ")
