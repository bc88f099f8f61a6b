"""The state directory: created once by concurrent processes, and intact after a crash."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ftpkit import private_files
from ftpkit.cli.serve.state_dir import StateDirectory
from ftpkit.errors import LocalFileError
from ftpkit.net.address import Address, Url
from ftpkit.net.tls_identity import Identity
from ftpkit.osapi import files as os_files
from ftpkit.tokens import EVERYTHING, Grant

WAIT_S = 20
needs_owners = pytest.mark.skipif(not os_files.HAS_OWNERS, reason="files have no owners here")
needs_locks = pytest.mark.skipif(not os_files.HAS_LOCKS, reason="files cannot be locked here")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the state directory."""
    return tmp_path / "deep" / "state"


@pytest.fixture
def state(path: Path) -> StateDirectory:
    """A state directory without files."""
    return StateDirectory(str(path))


def test_the_identity_is_made_once(state: StateDirectory, path: Path) -> None:
    made = state.identity()
    assert state.identity() == StateDirectory(str(path)).identity() == made
    assert (path / "key.pem").read_bytes() == made.key
    assert (path / "certificate.pem").read_bytes() == made.certificate


def test_the_first_token_is_for_everything(state: StateDirectory, path: Path) -> None:
    tokens = state.tokens()
    token = state.first_token()
    assert token is not None
    grant = tokens.find(token)
    assert grant is not None
    assert (grant.user, grant.can, grant.under) == ("owner", EVERYTHING, "")
    assert StateDirectory(str(path)).first_token() == token
    assert StateDirectory(str(path)).tokens().find(token) == grant


def test_a_first_token_that_was_removed_stays_away(state: StateDirectory) -> None:
    tokens = state.tokens()
    assert tokens.remove("owner")
    assert state.first_token() is None
    assert state.tokens().grants() == []
    tokens.add(Grant(user="owner"))
    assert state.first_token() is None


def test_asking_for_the_first_token_makes_it(state: StateDirectory) -> None:
    assert state.first_token() is not None


@needs_owners
def test_all_of_it_is_for_its_owner_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        state = StateDirectory(str(path))
        state.identity()
        state.first_token()
        state.set_url(Url(Address("192.0.2.7", 9021)))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o700
    modes = {found.name: found.stat().st_mode & 0o777 for found in path.iterdir()}
    assert {"key.pem", "certificate.pem", "tokens.json", "first-token", "url"} <= set(modes)
    assert set(modes.values()) == {0o600}


@needs_owners
@pytest.mark.parametrize("name", ["key.pem", "first-token", "tokens.json"])
def test_a_secret_that_others_can_read_is_refused(
    state: StateDirectory, path: Path, name: str
) -> None:
    state.identity()
    state.tokens()
    (path / name).chmod(0o640)
    with pytest.raises(LocalFileError, match=f"other users have access to .*{name}: chmod 600"):
        state.identity() if name == "key.pem" else state.first_token()


@needs_owners
def test_a_directory_that_others_can_change_is_refused(path: Path) -> None:
    path.mkdir(parents=True)
    path.chmod(0o777)
    with pytest.raises(
        LocalFileError, match=f"other users can write to the directory {path}: chmod 700"
    ):
        StateDirectory(str(path))
    assert os.listdir(path) == []


@pytest.mark.parametrize("name", ["key.pem", "certificate.pem"])
@pytest.mark.parametrize("content", [b"", b"nonsense", Identity.make().key])
def test_a_damaged_identity_is_an_error_and_not_replaced(
    state: StateDirectory, path: Path, name: str, content: bytes
) -> None:
    state.identity()
    private_files.replace(str(path / name), content)
    with pytest.raises(LocalFileError, match=f"invalid key or certificate in {path}: .*{name}"):
        state.identity()
    assert (path / name).read_bytes() == content


def test_a_damaged_token_file_is_an_error_and_not_replaced(
    state: StateDirectory, path: Path
) -> None:
    state.tokens()
    private_files.replace(str(path / "tokens.json"), b"{}")
    for ask in (state.tokens, state.first_token):
        with pytest.raises(LocalFileError, match="is damaged"):
            ask()
    assert (path / "tokens.json").read_bytes() == b"{}"


def test_a_key_is_not_thrown_away_for_a_missing_certificate(
    state: StateDirectory, path: Path
) -> None:
    key = state.identity().key
    (path / "certificate.pem").unlink()
    missing = r"^cannot read .*certificate\.pem: No such file or directory$"
    with pytest.raises(LocalFileError, match=missing):
        state.identity()
    assert (path / "key.pem").read_bytes() == key


USE = """
import sys
from ftpkit.cli.serve.state_dir import StateDirectory
state = StateDirectory(sys.argv[1])
print(state.identity().pin, state.first_token())
"""


def use(path: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", USE, str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@needs_locks
def test_servers_that_start_at_once_agree(path: Path) -> None:
    answers = {process.communicate(timeout=WAIT_S)[0] for process in [use(path) for _ in range(4)]}
    assert len(answers) == 1
    assert "None" not in answers.pop()


def dies_at(path: Path, step: int) -> bool:
    """Use a state in a process that is killed in front of one step that changes the disk."""

    def count(event: str, args: tuple[Any, ...]) -> None:
        nonlocal step
        makes = event == "open" and args[2] & os.O_CREAT
        if makes or event in ("os.mkdir", "os.rename", "os.remove", "os.chmod", "os.utime"):
            if not step:
                os.kill(os.getpid(), signal.SIGKILL)
            step -= 1

    process = os.fork()
    if not process:
        try:
            sys.addaudithook(count)
            state = StateDirectory(str(path))
            state.identity()
            state.tokens()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_start_that_is_killed_anywhere_is_made_up_for(tmp_path: Path) -> None:
    for step in range(100):
        path = tmp_path / str(step)
        died = dies_at(path, step)
        state = StateDirectory(str(path))
        assert state.identity() == state.identity()
        assert state.first_token() is not None
        if not died:
            break
    assert 20 < step < 100


def test_where_the_server_is(state: StateDirectory, path: Path) -> None:
    assert state.url() is None
    url = Url(Address("2001:db8::1", 7), pin="p" * 43, token="secret")
    state.set_url(url)
    found = StateDirectory(str(path)).url()
    assert found is not None
    assert (found.address, found.pin, found.token, found.plain) == (
        url.address,
        url.pin,
        None,
        False,
    )
    assert all(b"secret" not in each.read_bytes() for each in path.iterdir())
    for damage in (b"", b"\xff", b"nonsense nonsense"):
        private_files.replace(str(path / "url"), damage)
        assert state.url() is None
