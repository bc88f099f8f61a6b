"""Tokens: valid, expired, removed and changed ones, and damage to their file."""

import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ftpkit import private_files
from ftpkit.errors import LocalFileError
from ftpkit.osapi import files as os_files
from ftpkit.tokens import EVERYTHING, Grant, Permission, Tokens, decode_grant, encode_grant
from tests.support.logs import Log

WAIT_S = 20
FULL = Grant(
    user="alice",
    can=frozenset({Permission.READ, Permission.WRITE}),
    under="people/alice",
    quota=10**10,
    bytes_per_s=5e7,
    weight=2.0,
    connections=4,
    expires_at=2e9,
)
needs_owners = pytest.mark.skipif(not os_files.HAS_OWNERS, reason="no file owners on this system")
needs_locks = pytest.mark.skipif(not os_files.HAS_LOCKS, reason="no file locks on this system")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the token file."""
    return tmp_path / "tokens.json"


@pytest.fixture
def tokens(path: Path) -> Tokens:
    """Tokens without a file yet."""
    return Tokens(path)


@pytest.fixture
def log() -> Iterator[Log]:
    """The log of the tokens during the test."""
    handler, logger = Log(), logging.getLogger("ftpkit.tokens")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


def test_only_the_exact_token_is_found(tokens: Tokens) -> None:
    token = tokens.add(FULL)
    other = tokens.add(Grant(user="bob"))
    assert re.fullmatch("[A-Za-z0-9_-]{32}", token)
    found = tokens.find(token)
    assert found is not None
    assert replace(found, key="") == FULL
    assert replace(tokens.find(other) or FULL, key="") == Grant(user="bob", can=EVERYTHING)
    for wrong in ("", token[:-1], token + "=", token.swapcase(), found.key, "\ud800", "a\0b"):
        assert tokens.find(wrong) is None


def test_neither_the_file_nor_a_repr_contains_the_token(tokens: Tokens, path: Path) -> None:
    token = tokens.add(FULL)
    found = tokens.find(token)
    assert found is not None
    assert token not in path.read_text()
    assert token not in repr((found, tokens))
    assert found.key not in repr(found)


def test_a_token_can_be_chosen(tokens: Tokens) -> None:
    assert tokens.add(FULL, "a word") == "a word"
    assert tokens.find("a word") is not None


def test_a_user_has_one_token(tokens: Tokens) -> None:
    token = tokens.add(FULL)
    with pytest.raises(ValueError, match="alice already has a token"):
        tokens.add(Grant(user="alice"))
    with pytest.raises(ValueError, match="alice already has a token"):
        tokens.add(Grant(user="alice"), token)
    assert [grant.user for grant in tokens.grants()] == ["alice"]


def test_two_users_cannot_have_the_same_token(tokens: Tokens) -> None:
    tokens.add(FULL, "a word")
    with pytest.raises(ValueError, match="already that of alice"):
        tokens.add(Grant(user="bob"), "a word")
    assert [grant.user for grant in tokens.grants()] == ["alice"]


def test_a_removed_token_is_not_valid(tokens: Tokens) -> None:
    token, kept = tokens.add(FULL), tokens.add(Grant(user="bob"))
    grant = tokens.find(token)
    assert grant is not None
    assert tokens.is_valid(grant)
    assert tokens.remove("alice")
    assert not tokens.remove("alice")
    assert not tokens.is_valid(grant)
    assert tokens.find(token) is None
    assert tokens.find(kept) is not None
    # A user who is added again has another token.
    tokens.add(FULL)
    assert not tokens.is_valid(grant)
    assert tokens.find(token) is None


def test_a_grant_that_was_changed_is_not_valid(tokens: Tokens, path: Path) -> None:
    token = tokens.add(FULL)
    grant = tokens.find(token)
    assert grant is not None
    content = json.loads(path.read_text())
    content["tokens"][0]["can"] = ["read"]
    private_files.replace(str(path), json.dumps(content).encode())
    assert not tokens.is_valid(grant)
    changed = tokens.find(token)
    assert changed == replace(grant, can=frozenset({Permission.READ}))
    assert tokens.is_valid(changed)


def test_a_grant_that_was_not_found_is_not_valid(tokens: Tokens) -> None:
    grant = tokens.find(tokens.add(FULL))
    assert grant is not None
    for made_up in (FULL, replace(grant, can=EVERYTHING), replace(grant, key="0" * 64)):
        assert not tokens.is_valid(made_up)


def test_an_expired_token_is_not_valid(path: Path) -> None:
    clock = Clock()
    tokens = Tokens(path, clock=clock)
    token = tokens.add(replace(FULL, expires_at=clock.now + 10))
    clock.now += 9.5
    grant = tokens.find(token)
    assert grant is not None
    assert tokens.is_valid(grant)
    clock.now += 0.5
    assert not tokens.is_valid(grant)
    assert tokens.find(token) is None
    assert tokens.grants() == [grant]


def test_changes_by_another_process_are_seen_at_once(tokens: Tokens, path: Path) -> None:
    others = Tokens(path)
    # Several changes within one tick of the file system's clock, and all of one length.
    users = ["ann", "bob", "cat", "dan"]
    held: list[tuple[str, Grant]] = []
    for user in users * 5:
        for token, grant in held:
            assert others.remove(grant.user)
            assert not tokens.is_valid(grant)
            assert tokens.find(token) is None
        token = others.add(Grant(user=user))
        found = tokens.find(token)
        assert found is not None
        assert found.user == user
        assert tokens.is_valid(found)
        held = [(token, found)]


def test_the_file_is_read_only_when_it_changed(
    tokens: Tokens, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant = tokens.find(tokens.add(FULL))
    assert grant is not None
    assert tokens.is_valid(grant)
    reads: list[str] = []

    def read(path: str) -> bytes | None:
        reads.append(path)
        return data

    data = private_files.read(str(path))
    assert data is not None
    monkeypatch.setattr(private_files, "read", read)
    assert all(tokens.is_valid(grant) for _ in range(10))
    assert reads == []
    private_files.replace(str(path), data)
    assert all(tokens.is_valid(grant) for _ in range(10))
    assert reads == [str(path)]


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_symlink(path: Path) -> None:
    path.rename(f"{path}.old")
    path.symlink_to(f"{path}.old")


def make_directory_writable(path: Path) -> None:
    path.parent.chmod(0o777)
    path.touch()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "not text": lambda path: path.write_bytes(b"\xff" + path.read_bytes()),
    "a directory": replace_by_directory,
    "a symbolic link": replace_by_symlink,
}
if os_files.HAS_OWNERS:
    DAMAGES["others can read it"] = partial(Path.chmod, mode=0o644)
    DAMAGES["others can replace it"] = make_directory_writable


def stamp(path: Path) -> tuple[int, ...]:
    status = path.lstat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_token_of_a_damaged_file_is_valid(
    tokens: Tokens, path: Path, log: Log, damage: str
) -> None:
    token = tokens.add(FULL)
    grant = tokens.find(token)
    assert grant is not None
    good = path.read_bytes()
    DAMAGES[damage](path)
    assert not tokens.is_valid(grant)
    assert tokens.find(token) is None
    with pytest.raises(LocalFileError, match=str(path.parent)) as caught:
        tokens.grants()
    assert len(log.so_far(f"all logins are refused: {caught.value}")) == 1
    # The file is restored.
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.parent.chmod(0o700)
    private_files.replace(str(path), good)
    assert tokens.is_valid(grant)
    assert tokens.find(token) == grant


@pytest.mark.parametrize("damage", sorted(set(DAMAGES) - {"missing"}))
def test_a_damaged_file_is_not_replaced(tokens: Tokens, path: Path, damage: str) -> None:
    tokens.add(FULL)
    DAMAGES[damage](path)
    before = stamp(path)
    for change in (lambda: tokens.add(Grant(user="bob")), lambda: tokens.remove("alice")):
        with pytest.raises(LocalFileError):
            change()
    assert stamp(path) == before


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ("content", "version", 2),
        ("content", "more", 1),
        ("content", "tokens", None),
        ("content", "tokens", {"user": "alice"}),
        ("content", "tokens", ["alice"]),
        ("token", "user", "al ice"),
        ("token", "user", "\u0430lice"),
        ("token", "user", ""),
        ("token", "user", 5),
        ("token", "user", "bob"),
        ("token", "can", "read"),
        ("token", "can", ["all"]),
        ("token", "can", [["read"]]),
        ("token", "can", None),
        ("token", "under", ".."),
        ("token", "under", "/etc"),
        ("token", "under", ".ftpkit"),
        ("token", "under", None),
        ("token", "quota", -1),
        ("token", "quota", True),
        ("token", "quota", 1e3),
        ("token", "rate_bps", 0),
        ("token", "rate_bps", "50M"),
        ("token", "rate_bps", float("nan")),
        ("token", "weight", 0),
        ("token", "weight", None),
        ("token", "weight", float("inf")),
        ("token", "weight", 10**400),
        ("token", "connections", 0),
        ("token", "connections", 1.5),
        ("token", "expires_at", "never"),
        ("token", "expires_at", False),
        ("token", "key", "abc"),
        ("token", "key", None),
        ("token", "only_from", "192.0.2.7"),
    ],
)
def test_an_invalid_value_damages_the_file(
    tokens: Tokens, path: Path, where: str, key: str, value: object
) -> None:
    tokens.add(Grant(user="bob"))
    token = tokens.add(FULL)
    content = json.loads(path.read_text())
    (content if where == "content" else content["tokens"][1])[key] = value
    private_files.replace(str(path), json.dumps(content).encode())
    assert tokens.find(token) is None
    with pytest.raises(LocalFileError, match=f"{path} is damaged: "):
        tokens.grants()


def test_a_missing_value_damages_the_file(tokens: Tokens, path: Path) -> None:
    tokens.add(FULL)
    content = json.loads(path.read_text())
    for key in encode_grant(FULL):
        token = {name: value for name, value in content["tokens"][0].items() if name != key}
        private_files.replace(str(path), json.dumps({"version": 1, "tokens": [token]}).encode())
        with pytest.raises(LocalFileError, match="is damaged"):
            tokens.grants()


def test_deep_json_damages_the_file(tokens: Tokens, path: Path) -> None:
    private_files.replace(str(path), b"[" * 200_000)
    with pytest.raises(LocalFileError, match="is damaged"):
        tokens.grants()


@pytest.mark.parametrize(
    "wrong",
    [
        {"user": "-rf"},
        {"user": ".hidden"},
        {"user": "a" * 65},
        {"user": "a\n"},
        {"user": "\u00e9mile"},
        {"under": "a/../b"},
        {"quota": -1},
        {"weight": float("nan")},
    ],
    ids=str,
)
def test_an_invalid_grant_is_not_added(tokens: Tokens, path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is not a valid value of"):
        tokens.add(replace(FULL, **wrong))
    assert not path.exists()


def test_a_grant_is_equal_after_encoding_and_decoding(tokens: Tokens) -> None:
    grant = tokens.find(tokens.add(FULL))
    assert grant is not None
    assert decode_grant(json.loads(json.dumps(encode_grant(grant)))) == grant


@needs_owners
def test_the_file_has_mode_0600_whatever_the_umask(tokens: Tokens, path: Path) -> None:
    before = os.umask(0)
    try:
        tokens.add(FULL)
        tokens.remove("alice")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert tokens.grants() == []


ADD = """
import sys
from ftpkit.tokens import Grant, Tokens
tokens = Tokens(sys.argv[1])
for number in range(20):
    tokens.add(Grant(user=f"{sys.argv[2]}{number}"))
    tokens.remove(f"{sys.argv[2]}{number - 10}")
"""


@needs_locks
def test_concurrent_changes_by_processes_lose_nothing(tokens: Tokens, path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", ADD, str(path), name]) for name in ("a", "b", "c")
    ]
    assert [process.wait(WAIT_S) for process in processes] == [0, 0, 0]
    users = {grant.user for grant in tokens.grants()}
    assert users == {f"{name}{number}" for name in "abc" for number in range(10, 20)}


def test_threads_that_read_during_changes_see_whole_files(tokens: Tokens, path: Path) -> None:
    token = tokens.add(FULL)
    grant = tokens.find(token)
    assert grant is not None
    ended, errors = threading.Event(), []

    def read() -> None:
        while not ended.is_set():
            if not tokens.is_valid(grant) or tokens.find(token) != grant:
                errors.append(grant)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    others = Tokens(path)
    for number in range(50):
        others.add(Grant(user=f"user{number}"))
    ended.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert errors == []


def test_has_quotas_is_true_with_a_quota_or_without_a_readable_file(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "tokens")
    assert tokens.has_quotas
    tokens.add(Grant(user="ada"))
    assert not tokens.has_quotas
    tokens.add(Grant(user="bob", quota=0))
    assert tokens.has_quotas
    tokens.remove("bob")
    assert not tokens.has_quotas
    (tmp_path / "tokens").write_text("damaged")
    assert tokens.has_quotas
