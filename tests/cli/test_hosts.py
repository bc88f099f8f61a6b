"""Known servers: by a login, by a confirmed pin, or because they run on this machine."""

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
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ftpkit import Server
from ftpkit.cli.paths import hosts_file, local_servers_directory
from ftpkit.cli.server_option import find_server, known_hosts
from ftpkit.client.known_hosts import LocalServers
from ftpkit.net.address import Address, Url
from ftpkit.net.tls_identity import Identity
from ftpkit.osapi import files as os_files
from tests.cli.conftest import WAIT_S, Run, Serve, command
from tests.support.scripted_server import Guard, guarded
from tests.support.trees import published

TOKEN = "token-that-nobody-may-see"
OTHER_PIN = "A" * 43


@pytest.fixture(scope="module")
def identity() -> Identity:
    return Identity.make()


@pytest.fixture
def guard(identity: Identity) -> Iterator[Guard]:
    """A server that requires a token."""
    with guarded(Guard(identity, TOKEN)) as guard:
        yield guard


@pytest.fixture
def unknown(identity: Identity, tmp_path: Path) -> Iterator[Url]:
    """The address of a server that is not saved anywhere and does not register."""
    with Server(tmp_path / "unknown", port=0, identity=identity) as server:
        yield Url(server.address)


class Terminal:
    """A terminal at which a command runs; what the command prints to stdout goes elsewhere."""

    def __init__(self, *args: str) -> None:
        self._ours, self._theirs = pty.openpty()
        self.shown = ""
        self._process = subprocess.Popen(
            command(*args),
            stdin=self._theirs,
            stdout=subprocess.PIPE,
            stderr=self._theirs,
            text=True,
            # Else it would ask for what is not to be shown at the terminal of who runs the tests.
            start_new_session=True,
        )

    def answer(self, question: str, answer: str, *, hidden: bool = False) -> None:
        """Wait for a question, and type the answer."""
        deadline = time.monotonic() + WAIT_S
        while not re.search(question, self.shown) or self._echoes is hidden:
            assert self._read(deadline - time.monotonic()), self.shown
        os.write(self._ours, f"{answer}\n".encode())

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code, and what was printed to stdout."""
        printed, _ = self._process.communicate(timeout=WAIT_S)
        while self._read(0.0):
            pass
        return self._process.returncode, printed

    def close(self) -> None:
        """End the command, if it still runs."""
        self._process.kill()
        self._process.communicate()
        os.close(self._ours)
        os.close(self._theirs)

    @property
    def _echoes(self) -> bool:
        return bool(termios.tcgetattr(self._theirs)[3] & termios.ECHO)

    def _read(self, seconds: float) -> bool:
        if not select.select([self._ours], [], [], max(0.0, seconds))[0]:
            return False
        self.shown += os.read(self._ours, 65536).decode()
        return True


@contextmanager
def terminal(*args: str) -> Iterator[Terminal]:
    with closing(Terminal(*args)) as opened:
        yield opened


def here() -> LocalServers:
    return LocalServers(local_servers_directory())


def test_a_login_is_kept_and_used_from_then_on(run: Run, guard: Guard, tmp_path: Path) -> None:
    result = run("login", guard.url.login_url())
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"logged in to {guard.address} as ada: read, write\n"
    assert Path(hosts_file()).stat().st_mode & 0o777 == 0o600
    for target in ([], ["--to", str(guard.address)], ["--to", str(guard.address)[7:]]):
        assert run("ping", *target).exit_code == 0
    assert guard.heard == ["hello", "auth"] + ["hello", "auth", "ping"] * 3


def test_login_reads_the_url_from_standard_input(guard: Guard) -> None:
    done = subprocess.run(
        command("login"),
        input=guard.url.login_url() + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("logged in to ")
    assert find_server(None) == guard.url


def test_an_invalid_url_on_standard_input_is_an_error(run: Run) -> None:
    result = run("login")
    assert result.exit_code == 2
    assert result.stderr == (
        "ftpkit: expected a login URL or ftpk://HOST:PORT, with a port from 1 to 65535 "
        "(see 'ftpkit login --help')\n"
    )


def test_hosts_without_servers_names_login_on_a_terminal() -> None:
    with terminal("hosts") as screen:
        assert screen.end() == (0, "")
    assert screen.shown == "no saved servers; log in with: ftpkit login URL\r\n"


def test_a_typed_login_url_is_not_echoed(guard: Guard) -> None:
    with terminal("login") as screen:
        screen.answer("Login URL: ", guard.url.login_url(), hidden=True)
        code, printed = screen.end()
    assert (code, printed[:13]) == (0, "logged in to ")
    assert TOKEN not in screen.shown
    assert find_server(None) == guard.url


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"token": "wrong-token"}, 3, "rejected the token"),
        ({"token": None}, 3, "requires a token: log in with the URL"),
        ({"pin": OTHER_PIN}, 4, "does not match the pinned key"),
        ({"pin": None}, 4, "Log in with the URL that the server printed"),
        ({"address": Address("127.0.0.1", 1)}, 4, "Connection refused"),
    ],
)
def test_a_login_that_fails_keeps_nothing(
    run: Run, guard: Guard, tmp_path: Path, change: dict[str, object], code: int, said: str
) -> None:
    link = replace(guard.url, **change).login_url()  # type: ignore[arg-type]  # each of its own
    result = run("login", link)
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert "token-" not in result.stderr.replace(str(tmp_path), "")
    assert not Path(hosts_file()).exists()


def test_a_login_that_fails_leaves_the_one_before(run: Run, guard: Guard) -> None:
    run("login", guard.url.login_url())
    assert run("login", replace(guard.url, token="other").login_url()).exit_code == 3
    assert find_server(None) == guard.url


@pytest.mark.parametrize("debug", ["", "1"])
@pytest.mark.parametrize("where", ["argument", "option", "variable", "file"])
def test_an_invalid_login_url_is_not_repeated(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, debug: str
) -> None:
    monkeypatch.setenv("FTPKIT_DEBUG", debug)
    wrong = f"ftpk://{TOKEN}:too-short@host"
    args = {"argument": ["login", wrong], "option": ["ping", "--to", wrong]}.get(where, ["ping"])
    if where == "variable":
        monkeypatch.setenv("FTPKIT_URL", wrong)
    if where == "file":
        Path(hosts_file()).parent.mkdir(parents=True)
        Path(hosts_file()).with_name("client.toml").write_text(f'url = "{wrong}"')
    result = run(*args)
    assert result.exit_code == 2
    assert "the pin in the URL is not 43 characters: copy the whole URL" in result.stderr
    assert "[URL]" not in result.stderr
    assert TOKEN not in result.output


@pytest.mark.parametrize("plain", [True, False])
def test_a_server_that_asks_for_no_token(run: Run, tmp_path: Path, plain: bool) -> None:
    with guarded(Guard(None if plain else Identity.make())) as guard:
        result = run("login", guard.url.login_url())
        assert result.stdout == f"saved {guard.url}, which requires no token\n"
        assert run("ping").exit_code == 0


def test_hosts_are_listed_without_their_secrets(run: Run, guard: Guard, unknown: Url) -> None:
    assert run("hosts").output == ""
    pin = guard.url.pin
    assert pin is not None
    run("login", guard.url.login_url())
    run("login", replace(unknown, pin=pin).login_url())
    lines = run("hosts").stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["host", "default", "pin", "token"],
        [str(guard.address), "no", f"{pin[:12]}...", "yes"],
        [str(unknown), "yes", f"{pin[:12]}...", "no"],
    ]
    rows = [json.loads(line) for line in run("hosts", "--json").stdout.splitlines()]
    assert rows == [
        {"url": str(guard.address), "default": False, "pin": pin, "token": True},
        {"url": str(unknown), "default": True, "pin": pin, "token": False},
    ]


def test_a_host_is_forgotten(run: Run, guard: Guard, unknown: Url) -> None:
    run("login", guard.url.login_url())
    result = run("hosts", "--forget", str(unknown), str(guard.address))
    assert result.exit_code == 1
    assert result.stderr == f"ftpkit: {unknown} is not a saved host; 'ftpkit hosts' lists them\n"
    assert run("hosts").output == ""
    assert run("ping", "--to", str(guard.address)).exit_code == 4
    for args in (["--forget"], [str(unknown)]):
        assert run("hosts", *args).exit_code == 2


def test_a_login_url_used_without_login_is_not_saved(
    run: Run, guard: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("ping", "--to", guard.url.login_url()).exit_code == 0
    monkeypatch.setenv("FTPKIT_URL", guard.url.login_url())
    result = run("ping")
    assert result.exit_code == 0
    assert TOKEN not in result.output
    assert not Path(hosts_file()).exists()


def test_a_token_without_a_key_goes_to_the_key_that_is_known(run: Run, guard: Guard) -> None:
    url = replace(guard.url, pin=None)
    assert run("ping", "--to", url.login_url()).exit_code == 4
    run("login", guard.url.login_url())
    guard.token = "another"
    assert run("ping", "--to", replace(url, token="another").login_url()).exit_code == 0
    assert run("ping").exit_code == 3


def test_what_was_kept_for_tls_is_not_shown_in_plaintext(guard: Guard) -> None:
    plain = Url(guard.address, plain=True)
    known_hosts().save(guard.url, default=True)
    assert find_server(plain) == plain
    token = replace(plain, token=TOKEN)
    known_hosts().save(token, default=True)
    assert find_server(plain) == find_server(Url(guard.address)) == token


def test_after_a_pin_is_confirmed_a_missing_token_is_an_error(guard: Guard) -> None:
    with terminal("ping", "--to", str(guard.address)) as screen:
        screen.answer(r"\[y/N\]: $", "y")
        assert screen.end() == (3, "")
    assert "requires a token" in screen.shown
    assert "vouches" not in screen.shown


def test_a_key_that_changed_is_refused_until_it_is_forgotten(run: Run, unknown: Url) -> None:
    known_hosts().save(replace(unknown, pin=OTHER_PIN), default=True)
    for args in (["ping"], ["login", str(unknown)]):
        result = run(*args)
        assert result.exit_code == 4
        assert "does not match the pinned key" in result.stderr
    with terminal("ping") as screen:
        assert screen.end() == (4, "")
    assert "[y/N]" not in screen.shown, "nobody is asked"
    assert run("hosts", "--forget", str(unknown)).exit_code == 0
    with terminal("login", str(unknown)) as screen:
        screen.answer(r"\[y/N\]: $", "y")
        assert screen.end()[0] == 0
    assert run("ping").exit_code == 0


def test_a_new_login_url_replaces_the_saved_one(run: Run, guard: Guard) -> None:
    known_hosts().save(Url(guard.address, OTHER_PIN, "old"), default=False)
    assert run("login", guard.url.login_url()).exit_code == 0
    assert find_server(None) == guard.url


def test_a_person_is_asked_once_about_an_unknown_key(
    run: Run, unknown: Url, identity: Identity, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"data")
    put = ("put", str(tmp_path / "f"), "--to", str(unknown), "--jobs", "2")
    with terminal(*put) as screen:
        screen.answer(r"\[y/N\]: $", "y")
        assert screen.end()[0] == 0
    assert identity.pin in screen.shown
    with terminal(*put) as screen:
        assert screen.end()[0] == 0
    assert "[y/N]" not in screen.shown
    assert run(*put).exit_code == 0
    assert published(tmp_path / "unknown") == {"f": b"data"}
    assert known_hosts().load().default is None, "it was no login"


@pytest.mark.parametrize("args", [["ping", "--to"], ["login"]])
def test_a_key_that_a_person_does_not_accept(unknown: Url, tmp_path: Path, args: list[str]) -> None:
    with terminal(*args, str(unknown)) as screen:
        screen.answer(r"\[y/N\]: $", "n")
        assert screen.end() == (4, "")
    assert "was not accepted" in screen.shown
    assert not Path(hosts_file()).exists()


def test_without_a_terminal_an_unknown_key_is_refused_with_what_to_do(
    run: Run, unknown: Url, tmp_path: Path
) -> None:
    result = run("ping", "--to", str(unknown))
    assert result.exit_code == 4
    assert "Log in with the URL that the server printed" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not Path(hosts_file()).exists()


def test_a_damaged_hosts_file_is_an_error_but_login_urls_work(
    run: Run, guard: Guard, tmp_path: Path
) -> None:
    run("login", guard.url.login_url())
    Path(hosts_file()).write_text(f'"{TOKEN}')
    for args in (["ping"], ["hosts"], ["login", guard.url.login_url()]):
        result = run(*args)
        assert result.exit_code == 1
        assert "is damaged" in result.stderr
        assert TOKEN not in result.output
    assert run("ping", "--to", guard.url.login_url()).exit_code == 0


@pytest.mark.skipif(not os_files.HAS_LOCKS, reason="there are no locks on files")
def test_concurrent_logins_are_all_saved(tmp_path: Path) -> None:
    with ExitStack() as stack:
        guards = [stack.enter_context(guarded(Guard(token=TOKEN))) for _ in range(4)]
        logins = [
            subprocess.Popen(command("login", guard.url.login_url()), stdout=subprocess.DEVNULL)
            for guard in guards
        ]
        assert [login.wait(WAIT_S) for login in logins] == [0] * 4
    assert set(known_hosts().load().urls) == {guard.url for guard in guards}


def test_the_server_that_runs_here_is_found(run: Run, guard: Guard) -> None:
    hosts = ("127.0.0.1", "localhost")
    for target in ([], *(["--to", f"{host}:{guard.address.port}"] for host in hosts)):
        assert run("ping", *target).exit_code == 4
        with here().announce(guard.url, root="/srv"):
            assert run("ping", *target).exit_code == 0
        assert run("ping", *target).exit_code == 4


def test_the_secrets_of_the_server_that_runs_here_are_for_this_machine(guard: Guard) -> None:
    with here().announce(guard.url, root="/srv"):
        port = guard.address.port
        for elsewhere in (Address("192.0.2.1", port), Address("127.0.0.1", port + 1)):
            assert find_server(Url(elsewhere)) == Url(elsewhere)
        nowhere = Url(Address("no-such-host.invalid", port))
        assert find_server(nowhere) == nowhere


def test_what_a_login_kept_comes_before_what_runs_here(run: Run, guard: Guard) -> None:
    run("login", guard.url.login_url())
    with here().announce(Url(guard.address, OTHER_PIN, "other"), root="/srv"):
        assert find_server(None) == find_server(Url(guard.address)) == guard.url


def test_of_several_servers_here_one_has_to_be_named(run: Run, guard: Guard) -> None:
    other = Url(Address("127.0.0.1", 1))
    with here().announce(guard.url, root="/a"), here().announce(other, root="/b"):
        result = run("ping")
        assert result.exit_code == 4
        assert result.stderr == (
            "ftpkit: several servers run on this machine; choose one with --to: "
            f"{other} (/b), {guard.address} (/a)\n"
        )
        assert run("ping", "--to", str(guard.address)).exit_code == 0
        usual = Url(Address("127.0.0.1"))
        with here().announce(usual, root="/c"):
            assert find_server(None) == usual


# With servers as people start them


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_client_on_the_server_machine_needs_no_login(
    run: Run, serve: Serve, workers: str
) -> None:
    served = serve("--workers", workers, default=True)
    Path("f").write_bytes(b"data")
    assert run("put", "f").exit_code == 0
    assert run("put", "f", "--as", "g", "--udp-only").exit_code == 0
    assert published(served.root) == {"f": b"data", "g": b"data"}
    assert run("status").exit_code == 0
    served.end(signal.SIGKILL)
    assert find_server(None) == Url(Address("127.0.0.1"))


def test_elsewhere_one_login_is_enough_until_the_token_is_removed(
    run: Run, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(default=True)
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("XDG_STATE_HOME", str(tmp_path / "elsewhere"))
        assert run("ls", "--to", str(Url.parse(served.url))).exit_code == 4
        result = run("login", served.url)
        assert result.exit_code == 0
        assert result.stdout.endswith(" as owner: read, write, delete, admin\n")
        Path("f").write_bytes(b"data")
        assert run("put", "f").exit_code == 0
    assert run("token", "rm", "owner").exit_code == 0
    result = run("ls")
    assert result.exit_code == 3
    assert "rejected the token" in result.stderr


def test_a_put_may_begin_before_the_first_start_of_a_server(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"data")
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = str(nobody.getsockname()[1])
    put = command("put", str(tmp_path / "f"), "--to", f"127.0.0.1:{port}", "--retry-for", "1m")
    with subprocess.Popen(put, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert "retrying in" in process.stderr.readline()
            served = serve("--port", port, default=True)
            assert process.wait(WAIT_S) == 0
        finally:
            process.kill()
    assert published(served.root) == {"f": b"data"}
