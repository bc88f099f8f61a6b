"""Fixtures: servers in this process and in separate processes, and the command in this process."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from ftpkit import Server
from ftpkit.cli import main

WAIT_S = 20
# A server that requires no login, reachable from this machine only.
HERE = ("--host", "127.0.0.1", "--plain", "--open")


@dataclass(frozen=True)
class Served:
    """A server: its URL and its root directory."""

    url: str
    root: Path


@dataclass(frozen=True)
class ServeProcess:
    """A running ``ftpkit serve``: its process, first line of output, URL and root directory."""

    process: "subprocess.Popen[str]"
    line: str
    url: str
    root: Path

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; return the exit code and what was printed to stderr."""
        self.process.send_signal(number)
        _, log = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, log


def commands() -> dict[str, click.Command]:
    """Return all commands by name."""
    context = click.Context(main)
    found = {name: main.get_command(context, name) for name in main.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


Serve = Callable[..., ServeProcess]
Run = Callable[..., Result]


def command(*args: str) -> list[str]:
    """Return the command line of ``ftpkit`` in a new process."""
    return [sys.executable, "-m", "ftpkit", *args]


def processes_with(mark: str) -> dict[int, str]:
    """Return the command lines of processes whose environment contains ``mark``, by their pids."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it has just ended
            continue
    return found


@pytest.fixture(autouse=True)
def _clean_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove the settings of the user who runs the tests."""
    for name in list(os.environ):
        if name.startswith("FTPKIT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    # A test of retries sets it.
    monkeypatch.setenv("FTPKIT_RETRY_FOR", "0")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start servers that end with the test; those without ``default`` are plain, open and local."""
    started: list[ServeProcess] = []

    def start(*args: str, root: Path = tmp_path / "inbox", default: bool = False) -> ServeProcess:
        process = subprocess.Popen(
            command("serve", str(root), "--port", "0", *(() if default else HERE), *args),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.search(r"(?:--to|login) (ftpk(?:\+plain)?://\S+)$", line)
        assert match is not None, (line, process.communicate())
        started.append(ServeProcess(process, line, match[1], root))
        return started[-1]

    yield start
    for served in started:
        if served.process.poll() is None:
            served.end()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A server in this process that every command finds."""
    root = tmp_path / "inbox"
    root.mkdir()
    with Server(root, port=0) as server:
        monkeypatch.setenv("FTPKIT_URL", str(server.address))
        yield Served(str(server.address), root)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one command line in a directory of its own."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def run(*args: str) -> Result:
        return CliRunner().invoke(main, list(args), prog_name="ftpkit")

    return run
