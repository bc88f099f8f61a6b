import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ftpkit import private_files
from ftpkit.cli.paths import default_state
from ftpkit.cli.serve.state_dir import StateDirectory
from ftpkit.net.address import Address, Url
from ftpkit.osapi import files as os_files
from ftpkit.tokens import EVERYTHING, Grant, Permission, Tokens
from tests.cli.conftest import WAIT_S, Run, Serve, command

WHERE = Address("files.example.org", 7)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory that every command finds."""
    path = tmp_path / "state"
    monkeypatch.setenv("FTPKIT_STATE", str(path))
    return path


@pytest.fixture
def state(path: Path) -> StateDirectory:
    """The state of a server that has run."""
    state = StateDirectory(str(path))
    state.set_url(Url(WHERE, pin=state.identity().pin))
    return state


def add(run: Run, *args: str) -> Url:
    result = run("token", "add", *args)
    assert result.exit_code == 0, result.stderr
    return Url.parse(result.stdout.strip())


def granted(state: StateDirectory, url: Url) -> Grant:
    assert url.token is not None
    grant = state.tokens().find(url.token)
    assert grant is not None
    return grant


def test_a_login_url_is_all_that_a_client_needs(run: Run, state: StateDirectory) -> None:
    result = run("token", "add", "alice")
    url = Url.parse(result.stdout.removesuffix("\n"))
    assert (url.address, url.pin, url.plain) == (WHERE, state.identity().pin, False)
    assert re.fullmatch("[A-Za-z0-9._:/@+-]+\n", result.stdout)
    assert (
        result.stderr
        == "On the client of alice, run: ftpkit login URL (the URL above is not shown again)\n"
    )
    grant = granted(state, url)
    assert grant.user == "alice"
    assert grant.can == {Permission.READ, Permission.WRITE}


def test_without_options_nothing_is_limited(run: Run, state: StateDirectory) -> None:
    grant = granted(state, add(run, "alice"))
    assert grant == Grant(user="alice", can=grant.can, key=grant.key)


def test_a_login_url_has_the_last_address_of_the_server(run: Run, state: StateDirectory) -> None:
    state.set_url(Url(WHERE, plain=True))
    assert add(run, "alice").login_url().startswith("ftpk+plain://")
    state.set_url(Url(Address("2001:db8::1"), pin="p" * 43))
    link = run("token", "add", "bob").stdout.strip()
    assert link.endswith(f":{'p' * 43}@2001-db8--1.ipv6-literal.net:9021")


def test_the_server_that_runs_is_meant_wherever_its_state_is(
    run: Run, serve: Serve, tmp_path: Path
) -> None:
    served = serve("--state", str(tmp_path / "elsewhere"), default=True)
    other = StateDirectory(str(tmp_path / "elsewhere"))
    add(run, "alice")
    assert [grant.user for grant in other.tokens().grants()] == ["owner", "alice"]
    assert served.end()[0] == 0
    add(run, "bob")
    usual = StateDirectory(default_state()).tokens()
    assert [grant.user for grant in usual.grants()] == ["owner", "bob"]


def test_before_the_first_start_a_login_url_has_the_host_name(run: Run, path: Path) -> None:
    result = run("token", "add", "alice")
    url = Url.parse(result.stdout.strip())
    assert url.address.port == 9021
    assert url.pin == StateDirectory(str(path)).identity().pin
    assert result.stderr.endswith(
        f"No server has used {path} yet; the address {url} may be wrong\n"
    )
    assert [grant.user for grant in StateDirectory(str(path)).tokens().grants()] == [
        "owner",
        "alice",
    ]


def test_every_option_says_what_it_is_for(run: Run, state: StateDirectory) -> None:
    before = time.time()
    url = add(
        run,
        *("alice", "--can", "read,delete", "--under", "people/alice/", "--quota", "10G"),
        *("--rate", "50M", "--weight", "0.5", "--connections", "4", "--expires", "7d"),
    )
    grant = granted(state, url)
    assert grant.can == {Permission.READ, Permission.DELETE}
    assert (grant.under, grant.quota, grant.bytes_per_s) == ("people/alice", 10**10, 5e7)
    assert (grant.weight, grant.connections) == (0.5, 4)
    assert grant.expires_at is not None
    assert before + 7 * 86400 <= grant.expires_at <= time.time() + 7 * 86400
    assert granted(state, add(run, "root", "--can", "admin,delete,write,read")).can == EVERYTHING


def test_ls_is_a_table(run: Run, state: StateDirectory) -> None:
    add(run, "alice", "--under", "people/alice", "--quota", "10G", "--rate", "50M", "--weight", "2")
    state.tokens().add(
        Grant(user="bob", can=frozenset({Permission.READ}), connections=3, expires_at=1.0)
    )
    lines = [re.split("  +", line.strip()) for line in run("token", "ls").stdout.splitlines()]
    ended = f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(1))} (expired)"
    assert lines == [
        ["name", "can", "under", "quota", "rate", "weight", "connections", "expires"],
        ["owner", "read,write,delete,admin", "-", "-", "-", "1", "-", "-"],
        ["alice", "read,write", "people/alice", "10.0 GB", "50.0 MB/s", "2", "-", "-"],
        ["bob", "read", "-", "-", "-", "1", "3", ended],
    ]


def test_ls_is_json_with_the_words_of_a_grant(run: Run, state: StateDirectory) -> None:
    add(run, "alice", "--under", "a", "--quota", "1k", "--rate", "2k", "--connections", "3")
    lines = run("token", "ls", "--json").stdout.splitlines()
    assert [json.loads(line)["user"] for line in lines] == ["owner", "alice"]
    assert json.loads(lines[1]) == {
        "user": "alice",
        "can": ["read", "write"],
        "under": "a",
        "quota": 1000,
        "rate_bps": 2000,
        "weight": 1.0,
        "connections": 3,
        "expires_at": None,
    }


def test_nothing_but_add_shows_a_token_or_its_hash(
    run: Run, state: StateDirectory, path: Path
) -> None:
    url = add(run, "alice")
    grant = granted(state, url)
    shown = [run("token", *args) for args in (["ls"], ["ls", "--json"], ["add", "alice"])]
    shown.append(run("token", "rm", "bob"))
    text = "".join(result.stdout + result.stderr for result in shown)
    assert "alice" in text
    for secret in (str(url.token), grant.key):
        assert secret not in text
    assert all(str(url.token).encode() not in each.read_bytes() for each in path.iterdir())


def test_rm_counts_at_once_and_goes_on_after_an_unknown_name(
    run: Run, state: StateDirectory
) -> None:
    running = state.tokens()
    grants = [granted(state, add(run, user)) for user in ("alice", "bob", "carol")]
    assert all(running.is_valid(grant) for grant in grants)
    result = run("token", "rm", "alice", "dave", "bob")
    assert result.exit_code == 1
    assert result.output == "ftpkit: no such user: dave; 'ftpkit token ls' lists them\n"
    assert [running.is_valid(grant) for grant in grants] == [False, False, True]
    assert run("token", "rm", "carol", "owner").output == ""
    assert running.grants() == []
    assert run("token", "ls").stdout.splitlines()[1:] == []


def test_a_name_is_taken_once(run: Run, state: StateDirectory) -> None:
    grant = granted(state, add(run, "alice"))
    result = run("token", "add", "alice", "--can", "read")
    assert result.exit_code == 1
    assert result.output == (
        "ftpkit: alice already has a token; remove it with: ftpkit token rm alice\n"
    )
    assert state.tokens().is_valid(grant)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["al ice"], "NAME: expected at most 64 letters, digits and . _ -"),
        (["\u0430lice"], "NAME: expected at most 64 letters, digits and . _ -"),
        ([".."], "NAME: expected at most 64 letters, digits and . _ -"),
        (["a" * 65], "NAME: expected at most 64 letters, digits and . _ -"),
        (["a", "--can", "all"], "--can: expected a list of read,write,delete,admin, got 'all'"),
        (["a", "--can", ""], "--can: expected a list of read,write,delete,admin, got ''"),
        (["a", "--under", ".."], "--under: expected a directory below the server's root"),
        (["a", "--under", "/srv"], "--under: expected a directory below the server's root"),
        (["a", "--under", "a//b"], "--under: expected a directory below the server's root"),
        (["a", "--quota", "0"], "--quota: expected bytes like 10G or 10Gi, more than 0, got '0'"),
        (["a", "--quota", "much"], "--quota: expected bytes like 10G or 10Gi, more than 0"),
        (["a", "--rate", "fast"], "--rate: expected bytes per second like 20M"),
        (["a", "--weight", "0.0"], "--weight: expected a number more than 0, like 2 or 0.5"),
        (["a", "--weight", "nan"], "--weight: expected a number more than 0, like 2 or 0.5"),
        (["a", "--connections", "0"], "--connections: expected an integer of at least 1"),
        (["a", "--expires", "0s"], "--expires: expected a time like 12h, 7d or 365d"),
        (["a", "--expires", "2026-12-24"], "--expires: expected a time like 12h, 7d or 365d"),
        (["a", "--expires", "3651d"], "--expires: expected a time like 12h, 7d or 365d"),
    ],
)
def test_a_bad_word_is_one_line(run: Run, path: Path, args: list[str], expected: str) -> None:
    result = run("token", "add", *args)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"ftpkit: {expected}")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert not path.exists()


def test_the_longest_words_are_fine(run: Run, state: StateDirectory) -> None:
    url = add(run, "A0" * 32, "--expires", "3650d", "--weight", "9999.999", "--rate", "0")
    assert granted(state, url).bytes_per_s is None


@pytest.mark.parametrize("args", [["ls"], ["rm", "alice"]])
def test_nothing_is_made_where_no_server_was(run: Run, path: Path, args: list[str]) -> None:
    result = run("token", *args)
    assert result.exit_code == 1
    assert result.output.startswith(f"ftpkit: no server state in {path}: start ")
    assert not path.exists()


def make_a_link(path: Path) -> None:
    (path / "tokens.json").rename(path / "old")
    (path / "tokens.json").symlink_to(path / "old")


FAULTS: dict[str, Callable[[Path], object]] = {
    "is damaged": lambda path: private_files.replace(str(path / "tokens.json"), b"{"),
    "is not a regular file": make_a_link,
}
if os_files.HAS_OWNERS:
    FAULTS["other users have access to"] = lambda path: os.chmod(path / "tokens.json", 0o604)
    FAULTS["other users can write to the directory"] = lambda path: os.chmod(path, 0o720)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("args", [["ls"], ["add", "bob"], ["rm", "alice"]])
def test_a_state_with_a_fault_is_one_line(
    run: Run, state: StateDirectory, path: Path, fault: str, args: list[str]
) -> None:
    add(run, "alice")
    FAULTS[fault](path)
    result = run("token", *args)
    assert result.exit_code == 1
    assert re.fullmatch(f"ftpkit: .*{fault}.*\n", result.stderr)
    assert result.stdout == ""


def test_help_shows_how(run: Run) -> None:
    assert run("token").stdout == run("token", "--help").stdout
    for args in ([], ["add"], ["ls"], ["rm"]):
        assert "Example:  ftpkit token " in run("token", *args, "--help").stdout


def test_only_the_login_url_is_on_stdout(tmp_path: Path) -> None:
    state = tmp_path / "named"
    environment = {**os.environ, "FTPKIT_STATE": str(tmp_path / "elsewhere")}
    done = subprocess.run(
        command("token", "add", "alice", "--state", str(state)),
        capture_output=True,
        env=environment,
        text=True,
        timeout=WAIT_S,
        check=True,
    )
    token = Url.parse(done.stdout.removesuffix("\n")).token
    assert token is not None
    assert Tokens(state / "tokens.json").find(token) is not None
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.skipif(not os_files.HAS_LOCKS, reason="files cannot be locked here")
def test_two_that_add_at_once_are_both_there(path: Path, tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            command("token", "add", user), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for user in ("alice", "bob", "carol")
    ]
    links = [process.communicate(timeout=WAIT_S)[0].strip() for process in processes]
    tokens = StateDirectory(str(path)).tokens()
    assert sorted(grant.user for grant in tokens.grants()) == ["alice", "bob", "carol", "owner"]
    assert all(tokens.find(str(Url.parse(link).token)) for link in links)
    assert len({Url.parse(link).pin for link in links}) == 1
