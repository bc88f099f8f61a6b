import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import pytest

from ftpkit import Server
from ftpkit.protocol.status import TransferStatus
from ftpkit.server.limits import Limits
from tests.cli.conftest import WAIT_S, Run, command
from tests.support.hostile import Peer, hostile
from tests.support.inside import handler_of
from tests.support.status import transfer

ENTER: Final = "\x1b[?1049h"
LEAVE: Final = "\x1b[?1049l"
CODES: Final = re.compile(r"\x1b\[[?0-9]*[a-zA-Z]")


@pytest.fixture(autouse=True)
def _of_the_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command finds the server, on which two transfers go on."""
    monkeypatch.setenv("FTPKIT_URL", str(server.address))
    monkeypatch.setenv("TERM", "xterm")
    transfers = [
        transfer(name="slow", user="ada", rate_bps=1.0, position=1),
        transfer(name="quick\x1b[31m", user="bob", rate_bps=5e6, position=2),
    ]
    let_go_on(server, transfers, monkeypatch)


def let_go_on(
    server: Server, transfers: list[TransferStatus], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Make the server report these."""
    tell = handler_of(server).status
    monkeypatch.setattr(handler_of(server), "status", lambda: {**tell(), "transfers": transfers})


def names(printed: str) -> list[str]:
    return re.findall(r"(slow|quick\\x1b\[31m)$", printed, re.MULTILINE)


def test_a_table(run: Run, server: Server) -> None:
    result = run("status")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"ftpkit 0.1.0 at {server.address}, up ")
    assert names(result.stdout) == ["quick\\x1b[31m", "slow"]
    assert "\x1b" not in result.stdout
    assert names(run("status", "--sort", "position").stdout) == ["slow", "quick\\x1b[31m"]


def test_json_is_what_the_server_said(run: Run, server: Server) -> None:
    result = run("status", "--json")
    assert result.stdout.count("\n") == 1
    printed = json.loads(result.stdout)
    assert printed.keys() == server.status().keys()
    assert printed["transfers"] == server.status()["transfers"]


def test_an_order_that_there_is_not(run: Run) -> None:
    result = run("status", "--sort", "mood")
    assert result.exit_code == 2
    assert "--sort" in result.stderr


def test_no_server_is_an_error(run: Run) -> None:
    for args in ([], ["--watch"], ["--watch", "--json"]):
        result = run("status", "--to", "127.0.0.1:1", *args)
        assert result.exit_code == 4
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1


def test_a_server_that_talks_nonsense(run: Run) -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        peer.request()
        peer.reply({"ok": True, "size": 2}, b"{}")

    with hostile(script) as address:
        result = run("status", "--to", f"{address[0]}:{address[1]}")
    assert result.exit_code == 1
    assert result.stderr == "ftpkit: bad status: 'version' is missing or invalid\n"


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("args", [[], ["--json"]])
def test_watching_without_a_terminal(args: list[str]) -> None:
    begins = re.compile(r'\{"version": "0\.1\.0", .*\}$' if args else r"ftpkit 0\.1\.0 at ")
    with piped(*args) as (process, out, err):
        seen = 0
        while seen < 2:
            line = out.readline()
            assert line
            assert "\x1b" not in line
            seen += begins.match(line) is not None
        process.send_signal(signal.SIGINT)
        assert (process.wait(WAIT_S), err.read()) == (130, "")


@pytest.mark.parametrize("args", [[], ["--json"]])
def test_a_server_that_comes_back_is_watched_on(
    server: Server, root: Path, args: list[str]
) -> None:
    with piped("--retry-for", "1m", *args) as (_, out, err):
        assert out.readline()
        port = server.address.port
        server.stop(grace_s=0.0)
        assert "retrying in" in err.readline()
        with Server(root, port=port, limits=Limits(max_connections=77)):
            while "77" not in out.readline():
                pass


@contextmanager
def piped(*args: str) -> Iterator[tuple["subprocess.Popen[str]", IO[str], IO[str]]]:
    """Watch without a terminal; yield the process and what it prints."""
    with subprocess.Popen(
        command("status", "--watch", *args),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            yield process, process.stdout, process.stderr
        finally:
            process.kill()


class Terminal:
    """A terminal at which ``ftpkit status --watch`` runs."""

    def __init__(self, *args: str, rows: int = 24, columns: int = 80) -> None:
        self._ours, self._theirs = pty.openpty()
        self.resize(rows, columns)
        self._before = termios.tcgetattr(self._theirs)
        self.shown = ""
        self.process = subprocess.Popen(
            command("status", "--watch", *args),
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=subprocess.PIPE,
            text=True,
        )

    def resize(self, rows: int, columns: int) -> None:
        """Take another size."""
        termios.tcsetwinsize(self._ours, (rows, columns))

    def press(self, key: str) -> None:
        """Type a key."""
        os.write(self._ours, key.encode())

    def wait(self, pattern: str) -> str:
        """Wait until the screen, or what was written since the last wait, has ``pattern``."""
        deadline = time.monotonic() + WAIT_S
        while (match := re.search(pattern, self.shown)) is None:
            assert self._read(deadline - time.monotonic()), (pattern, self.shown)
        self.shown, seen = self.shown[match.end() :], self.shown[: match.end()]
        return seen

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code, and what was said on stderr."""
        self.wait(re.escape(LEAVE))
        _, printed = self.process.communicate(timeout=WAIT_S)
        assert self.in_order
        return self.process.returncode, printed

    @property
    def in_order(self) -> bool:
        """Whether keys are heard and shown as before."""
        return termios.tcgetattr(self._theirs) == self._before

    def hang_up(self) -> tuple[int, str]:
        """Close it on the command; return as ``end`` does."""
        os.close(self._ours)
        self._ours = os.open(os.devnull, os.O_RDWR)
        _, printed = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, printed

    def close(self) -> None:
        """End the command, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        os.close(self._ours)
        os.close(self._theirs)

    def _read(self, seconds: float) -> bool:
        if not select.select([self._ours], [], [], max(0.0, seconds))[0]:
            return False
        self.shown += os.read(self._ours, 65536).decode(errors="replace")
        return True


@contextmanager
def terminal(*args: str, rows: int = 24, columns: int = 80) -> Iterator[Terminal]:
    opened = Terminal(*args, rows=rows, columns=columns)
    try:
        opened.wait(re.escape(ENTER))
        yield opened
    finally:
        opened.close()


def test_a_terminal_is_drawn_anew_and_q_quits() -> None:
    with terminal() as screen:
        screen.wait("quick.*\r\n.*slow")
        assert not screen.in_order
        for _ in range(2):
            screen.wait("ftpkit 0.1.0")
        screen.press("q")
        assert screen.end() == (0, "")


def test_keys_sort() -> None:
    with terminal("--sort", "user") as screen:
        screen.wait(r"slow.*\r\n.*quick(.*\r\n)+.*\[u user\]")
        screen.press("r")
        screen.wait(r"quick.*\r\n.*slow(.*\r\n)+.*\[r rate\]")
        screen.press("x")
        screen.press("p")
        screen.wait(r"slow.*\r\n.*quick(.*\r\n)+.*\[p position\]")
        screen.press("q")
        assert screen.end()[0] == 0


def test_a_new_size_is_followed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [transfer(name=f"f{number}-" + "n" * 100) for number in range(50)]
    let_go_on(server, many, monkeypatch)
    with terminal(rows=30, columns=120) as screen:
        screen.wait("and 29 more\r\n\r\nq quit")
        screen.resize(10, 50)
        drawn = screen.wait("and 49 more\r\n\r\nq quit.*").rpartition("\x1b[J")[2]
        lines = CODES.sub("", drawn).split("\r\n")
        assert len(lines) == 10
        assert max(map(len, lines)) <= 50
        screen.resize(1, 5)
        screen.wait(r"\x1b\[Jftpki$")
        screen.resize(0, 0)
        screen.wait("and 35 more\r\n\r\nq quit")


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signals_leave_the_terminal_in_order(number: int, code: int) -> None:
    with terminal() as screen:
        screen.wait("slow")
        screen.process.send_signal(number)
        assert screen.end() == (code, "")


def test_while_it_is_stopped_the_terminal_is_in_order() -> None:
    with terminal() as screen:
        screen.wait("slow")
        screen.process.send_signal(signal.SIGTSTP)
        screen.wait(re.escape(LEAVE))
        os.waitpid(screen.process.pid, os.WUNTRACED)
        assert screen.in_order
        screen.process.send_signal(signal.SIGCONT)
        screen.wait(re.escape(ENTER))
        screen.wait("slow")
        screen.press("q")
        assert screen.end()[0] == 0


def test_a_lost_connection_is_reported_on_the_screen(server: Server) -> None:
    with terminal("--retry-for", "2s") as screen:
        screen.wait("slow")
        server.stop(grace_s=0.0)
        screen.wait(r"slow.*(\r\n.*)*: .*; retrying in ")
        screen.press("n")
        screen.wait(r"retrying in .*\r\n.*\[n name\]")
        code, printed = screen.end()
        assert code == 4
        assert printed.startswith("ftpkit: cannot connect to ")
        assert printed.count("\n") == 1


def test_keys_are_heard_while_a_server_is_silent() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        terminal("--to", f"127.0.0.1:{silent.getsockname()[1]}") as screen,
    ):
        screen.wait("connecting to ftpk://127.0.0.1")
        screen.press("q")
        assert screen.end() == (0, "")


def test_a_terminal_that_cannot_be_drawn_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    opened = Terminal()
    try:
        assert ENTER not in opened.wait("slow(.*\r\n)*ftpkit 0.1.0")
    finally:
        opened.close()


def test_a_terminal_that_is_gone_ends_it() -> None:
    with terminal() as screen:
        screen.wait("slow")
        assert screen.hang_up() == (0, "")
