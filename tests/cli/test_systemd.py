"""Sockets passed by a service manager, its notifications, and the unit files."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

import ftpkit
from ftpkit import Client
from ftpkit.cli.serve.systemd import inherited_sockets, stdout_is_journal
from ftpkit.net.address import Address
from ftpkit.osapi import sockets as os_sockets
from tests.cli.conftest import HERE, WAIT_S, command, processes_with
from tests.support.raw import Raw

CONF = Path(ftpkit.__file__).parent.parent / "conf"

pytestmark = pytest.mark.skipif(
    os.name != "posix", reason="service managers like this one are Unix'"
)
needs_handing_over = pytest.mark.skipif(
    not os_sockets.HAS_FD_PASSING, reason="connections cannot be handed to another process"
)

# What systemd does between fork and exec.
HAND_OVER = """
import os, sys
given = [int(fd) for fd in sys.argv[1].split(",")]
for at, fd in enumerate(given):
    os.dup2(fd, 100 + at)
for at in range(len(given)):
    os.dup2(100 + at, 3 + at)
os.closerange(3 + len(given), 200)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(given)), LISTEN_FDNAMES="x")
os.execv(sys.argv[2], sys.argv[2:])
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start servers as a service manager does; they end with the test."""
    with ExitStack() as stack:

        def start(
            *options: str, sockets: Sequence[socket.socket] = (), notify: str = ""
        ) -> "subprocess.Popen[str]":
            fds = [sock.fileno() for sock in sockets]
            argv = command("serve", str(tmp_path / "inbox"), "--plain", "--open", *options)
            if fds:
                argv = [sys.executable, "-c", HAND_OVER, ",".join(map(str, fds)), *argv]
            process = subprocess.Popen(
                argv,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=fds,
                env=os.environ | ({"NOTIFY_SOCKET": notify} if notify else {}),
            )
            stack.callback(kill, process)
            return process

        yield start


def end(process: "subprocess.Popen[str]", number: int = signal.SIGTERM) -> tuple[int, str]:
    """Send a signal, unless a server has ended; return its exit code and its log."""
    process.send_signal(number)
    return ended(process)


def kill(process: "subprocess.Popen[str]") -> None:
    if process.returncode is None:
        process.kill()
        process.communicate(timeout=WAIT_S)


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Wait for the end of a server; return its exit code and its log."""
    _, log = process.communicate(timeout=WAIT_S)
    return process.returncode, log


def first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()
    return line


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """A socket as systemd opens it: it stays open when the server ends, and does not block."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        yield sock


# Sockets


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=needs_handing_over)])
def test_a_socket_that_was_opened_for_it_is_served_and_stays_open(
    start: Start, listening: socket.socket, workers: str
) -> None:
    address = Address(*listening.getsockname())
    for _ in range(2):
        with Raw(address) as early:
            server = start("--workers", workers, "--port", "1", sockets=[listening])
            early.granted("ping")
            assert f" at {address}; " in first_line(server)
        code, log = end(server)
        assert (code, "Traceback" in log) == (0, False)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_one_of_each_family(start: Start, listening: socket.socket) -> None:
    port = listening.getsockname()[1]
    with socket.create_server(("::1", port), family=socket.AF_INET6) as six:
        server = start(sockets=[listening, six])
        for host in ("127.0.0.1", "::1"):
            with Client(Address(host, port)) as client:
                client.ping()
        end(server)


def test_sockets_of_another_process_are_left_alone(
    start: Start, listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "1")
    line = first_line(start("--host", "127.0.0.1", "--port", "0"))
    assert f":{listening.getsockname()[1]} " not in line
    assert inherited_sockets() == []
    assert "LISTEN_FDS" not in os.environ


def test_a_unix_socket_is_refused_in_one_line(start: Start, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
        sock.listen()
        _, log = (server := start(sockets=[sock])).communicate(timeout=WAIT_S)
    assert server.returncode == 1
    assert log == (
        "ftpkit: cannot use the sockets of the service manager: "
        "descriptor 3 is not a listening TCP socket\n"
    )


@pytest.mark.parametrize("count", ["many", "-1", "1"])
def test_what_is_no_socket_is_refused(
    count: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Descriptor 3 of a process that was started with none beyond stderr is not open."""
    code = (
        "import os, sys; from ftpkit.cli.serve.systemd import inherited_sockets\n"
        f"os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS={count!r})\n"
        "try: inherited_sockets()\nexcept ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("LISTEN_FDS: ")


# Notifications


class NotifySocket:
    """The socket at which a service manager receives notifications."""

    def __init__(self, stack: ExitStack, address: str) -> None:
        self.address = address
        self._sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self._sock.bind("\0" + address[1:] if address.startswith("@") else address)
        self._sock.settimeout(WAIT_S)

    def next(self) -> dict[str, str]:
        """Return the next message."""
        lines = self._sock.recv(4096).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    @property
    def silent(self) -> bool:
        """Whether nothing has arrived."""
        self._sock.setblocking(False)
        try:
            self._sock.recv(4096)
        except BlockingIOError:
            return True
        return False


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NotifySocket]:
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("no abstract addresses here")
    name = str(tmp_path / "n") if request.param == "path" else f"@ftpkit-{secrets.token_hex(8)}"
    with ExitStack() as stack:
        yield NotifySocket(stack, name)


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=needs_handing_over)])
def test_start_reload_and_stop_are_notified(
    start: Start, manager: NotifySocket, workers: str, tmp_path: Path
) -> None:
    options = ("--host", "127.0.0.1", "--port", "0", "--workers", workers, "--grace", "1h")
    server = start(*options, notify=manager.address)
    ready = manager.next()
    assert ready["READY"] == "1"
    url = first_line(server).split()[-1]
    assert ready["STATUS"] == f"serves {tmp_path / 'inbox'} at {url}"
    with Client(url) as client:
        client.ping()
        server.send_signal(signal.SIGHUP)
        reloading = manager.next()
        assert reloading["RELOADING"] == "1"
        assert int(reloading["MONOTONIC_USEC"]) > 0
        assert manager.next() == ready
        client.ping()
    server.send_signal(signal.SIGTERM)
    assert manager.next() == {"STOPPING": "1", "EXTEND_TIMEOUT_USEC": "3615000000"}
    assert ended(server)[0] == 0
    assert manager.silent


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="there is no /proc")
@needs_handing_over
def test_workers_do_not_hear_of_the_manager(
    start: Start, manager: NotifySocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = f"MARK={secrets.token_hex(8)}"
    monkeypatch.setenv(*mark.split("="))
    server = start(*HERE, "--port", "0", "--workers", "2", notify=manager.address)
    manager.next()
    children = {pid for pid in processes_with(mark) if pid != server.pid}
    assert len(children) >= 2
    for pid in children:
        assert b"NOTIFY_SOCKET" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_a_manager_that_does_not_listen_is_a_line_in_the_log(start: Start, tmp_path: Path) -> None:
    server = start(*HERE, "--port", "0", notify=str(tmp_path / "nobody"))
    first_line(server)
    code, log = end(server)
    assert code == 0
    assert "cannot notify the service manager of READY=1: " in log


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_token_is_not_stdout_is_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    journal = tmp_path / "journal"
    state = ["--state", str(tmp_path / "elsewhere")] if elsewhere else []
    with ExitStack() as stack:
        manager = NotifySocket(stack, str(tmp_path / "n"))
        file = stack.enter_context(journal.open("w"))
        status = os.fstat(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
        argv = command("serve", str(tmp_path / "inbox"), "--host", "127.0.0.1", "--port", "0")
        server = subprocess.Popen([*argv, *state], stdout=file, stderr=subprocess.PIPE, text=True)
        stack.callback(kill, server)
        manager.next()
    line = journal.read_text()
    adding = " ".join(["ftpkit token add NAME", *state])
    assert line.endswith(f"; to create a login URL, run: {adding}\n")
    assert "@" not in line


def test_what_is_not_the_journal() -> None:
    assert not stdout_is_journal()


# The unit files


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
@pytest.mark.parametrize("name", ["ftpkit.service", "ftpkit.socket"])
def test_the_units_are_what_systemd_takes(name: str, tmp_path: Path) -> None:
    # It looks for the command where it would be installed.
    shutil.copytree(CONF, tmp_path / "conf")
    service = tmp_path / "conf" / "ftpkit.service"
    service.write_text(service.read_text().replace("/usr/local/bin/ftpkit", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "conf" / name)],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
