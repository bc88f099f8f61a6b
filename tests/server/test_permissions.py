"""What each request needs: every request, with every set of permissions, over real connections."""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import pytest

from ftpkit import Server
from ftpkit.errors import RefusedError
from ftpkit.protocol import messages as m
from ftpkit.server.operations import OPERATIONS
from ftpkit.server.permissions import permitted
from ftpkit.tokens import Grant, Permission, Tokens
from tests.support.raw import Raw

BLOCK: Final = 64 * 1024
DIGEST: Final = f"blake3:{'0' * 64}"
UPLOAD: Final = f"{'0' * 32}-{'0' * 16}"

# A request of each kind, which would fail or not: what matters is whether it is forbidden.
REQUESTS: Final[dict[str, tuple[dict[str, Any], set[str]]]] = {
    "hello": ({"version": 1}, set()),
    "auth": ({"token": "again"}, set()),
    "ping": ({}, set()),
    "stat": ({"name": "f"}, {"read"}),
    "list": ({}, {"read"}),
    "get": ({"name": "f"}, {"read"}),
    "digest": ({"name": "f"}, {"read"}),
    "pull": (
        {"name": "f", "version": "v", "block": BLOCK, "ranges": [[0, 1]], "rate": 1},
        {"read"},
    ),
    "mkdir": ({"name": "d"}, {"write"}),
    "put": ({"name": "p"}, {"write"}),
    "wait": ({"job": "j"}, {"write"}),
    "begin": ({"name": "b", "total": 0, "block": BLOCK}, {"write"}),
    "write": ({"upload": UPLOAD, "offset": 0, "digest": DIGEST}, {"write"}),
    "commit": ({"upload": UPLOAD, "total": 0}, {"write"}),
    "abort": ({"upload": UPLOAD}, {"write"}),
    "push": ({"upload": UPLOAD}, {"write"}),
    "delete": ({"name": "missing"}, {"delete"}),
    "rename": ({"name": "missing", "to": "r"}, {"write", "delete"}),
    "status": ({}, {"admin"}),
}
SUBSETS: Final = [
    frozenset(subset)
    for size in range(len(Permission) + 1)
    for subset in combinations(Permission, size)
]


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(tmp_path / "tokens.json")


@pytest.fixture
def guarded(root: Path, tokens: Tokens) -> Iterator[Server]:
    (root / "f").write_bytes(b"one")
    with Server(root, port=0, durable=False, tokens=tokens) as server:
        yield server


def test_every_request_has_its_permissions() -> None:
    assert set(OPERATIONS) == set(m.REQUESTS.values())
    assert set(REQUESTS) == set(m.REQUESTS)


@pytest.mark.parametrize("can", SUBSETS, ids=lambda can: "+".join(sorted(can)) or "nothing")
def test_a_request_without_the_permission_is_forbidden(
    guarded: Server, tokens: Tokens, can: frozenset[Permission]
) -> None:
    token = tokens.add(Grant(user="ada", can=can))
    with Raw(guarded.address) as raw:
        assert set(raw.granted("auth", token=token)["can"]) == can
        for op, (keys, needs) in REQUESTS.items():
            body = b"x" if op in ("put", "write") else b""
            reply = raw.ask(op, body, **keys)
            assert (reply.code == "forbidden") == (not needs <= can), (op, reply)
        basis = raw.ask("begin", name="b", total=0, block=BLOCK, basis=True)
        assert (basis.code == "forbidden") == (not {"read", "write"} <= can)


def test_without_tokens_every_request_is_allowed(raw: Raw) -> None:
    for op, (keys, _) in REQUESTS.items():
        body = b"x" if op in ("put", "write") else b""
        assert raw.ask(op, body, **keys).code != "forbidden"


def test_a_refusal_names_what_the_token_lacks() -> None:
    request, needs = m.Rename(name="a", to="b"), OPERATIONS[m.Rename][1]
    writer = Grant(user="ada", can=frozenset({Permission.WRITE}))
    with pytest.raises(RefusedError, match=r"permission 'delete': .*--can write,delete"):
        permitted(request, needs, writer)
    powerless = Grant(user="ada", can=frozenset())
    with pytest.raises(RefusedError, match="permission 'write' and 'delete': "):
        permitted(request, needs, powerless)


@pytest.mark.parametrize(
    "request_",
    [m.Put(name="f", size=1), m.Begin(name="f", total=1, block=BLOCK)],
    ids=["put", "begin"],
)
def test_files_are_not_replaced_without_delete(request_: m.Put | m.Begin) -> None:
    needs = OPERATIONS[type(request_)][1]
    writer = Grant(user="ada", can=frozenset({Permission.WRITE}))
    assert permitted(request_, needs, Grant(user="ada")) is request_
    changed = permitted(request_, needs, writer)
    assert isinstance(changed, m.Put | m.Begin)
    assert (request_.overwrite, changed.overwrite) == (True, False)
