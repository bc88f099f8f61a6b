"""A server with tokens, as clients see it: authentication, permissions, limits and expiry."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from ftpkit import Client, Server, UdpMode, Url
from ftpkit.errors import FtpkitError
from ftpkit.server import session as session_module
from ftpkit.server.limits import Limits
from ftpkit.tokens import Grant, Permission, Tokens
from tests.support.inside import handler_of
from tests.support.logs import Log
from tests.support.raw import TIMEOUT_S, Raw, Reply, frame
from tests.support.trees import published, staged

BLOCK: Final = 64 * 1024
MIB: Final = 1024 * 1024
RATE: Final = 8.0 * MIB
# The burst of a rate limit that was unused before.
BURST_S: Final = 0.05
ZEROS: Final = hashlib.sha256(bytes(BLOCK)).hexdigest()
READ, WRITE = frozenset({Permission.READ}), frozenset({Permission.WRITE})


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(tmp_path / "tokens.json")


@pytest.fixture
def guarded(root: Path, tokens: Tokens) -> Iterator[Server]:
    server = Server(
        root,
        port=0,
        durable=False,
        tokens=tokens,
        limits=Limits(stall_timeout_s=10.0, idle_timeout_s=20.0),
    )
    server.start()
    try:
        yield server
    finally:
        server.stop(grace_s=0.0)


Login = Callable[[Grant], Raw]


@pytest.fixture
def unauthenticated(guarded: Server) -> Iterator[Callable[[], Raw]]:
    """Open unauthenticated connections."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Raw(guarded.address))


@pytest.fixture
def login(tokens: Tokens, unauthenticated: Callable[[], Raw]) -> Login:
    """Open a connection of a user, whose token is added if needed."""
    known: dict[str, str] = {}

    def login(grant: Grant) -> Raw:
        if grant.user not in known:
            known[grant.user] = tokens.add(grant)
        raw = unauthenticated()
        raw.granted("auth", token=known[grant.user])
        return raw

    return login


def begin(raw: Raw, name: str, total: int | None = BLOCK, **keys: Any) -> str:
    upload = raw.granted("begin", name=name, total=total, block=BLOCK, **keys)["upload"]
    assert isinstance(upload, str)
    return upload


# Authentication


def test_hello_says_that_a_token_is_required(unauthenticated: Callable[[], Raw]) -> None:
    assert unauthenticated().granted("hello", version=1)["auth"] is True


def test_hello_says_that_no_token_is_required(raw: Raw) -> None:
    assert raw.granted("hello", version=1)["auth"] is False
    assert raw.refused("auth", token="any") == "unsupported"


@pytest.mark.parametrize("op", ["ping", "list", "put", "status", "nonsense"])
def test_requests_before_a_token_are_refused(
    unauthenticated: Callable[[], Raw], tokens: Tokens, root: Path, op: str
) -> None:
    token = tokens.add(Grant(user="ada"))
    raw = unauthenticated()
    assert raw.refused(op, b"body", name="f") == "auth-required"
    raw.granted("auth", token=token)
    raw.granted("ping")
    assert published(root) == {}


def test_auth_returns_the_user_and_the_permissions(
    unauthenticated: Callable[[], Raw], tokens: Tokens
) -> None:
    token = tokens.add(Grant(user="ada", can=frozenset({Permission.ADMIN, Permission.WRITE})))
    reply = unauthenticated().granted("auth", token=token)
    assert (reply["user"], reply["can"]) == ("ada", ["write", "admin"])


def test_a_connection_authenticates_once(login: Login, tokens: Tokens) -> None:
    raw = login(Grant(user="ada"))
    assert raw.refused("auth", token=tokens.add(Grant(user="bob"))) == "bad-request"
    assert raw.refused("auth", token="wrong") == "bad-request"
    begin(raw, "f")


def test_the_third_invalid_token_closes_the_connection(
    unauthenticated: Callable[[], Raw], tokens: Tokens
) -> None:
    tokens.add(Grant(user="ada"))
    raw = unauthenticated()
    replies = [raw.ask("auth", token=f"wrong{n}") for n in range(3)]
    assert [reply.code for reply in replies] == ["auth-failed"] * 3
    assert [reply.closes for reply in replies] == [False, False, True]
    assert raw.rest() == b""


def test_a_valid_token_after_an_invalid_one_is_accepted(
    unauthenticated: Callable[[], Raw], tokens: Tokens
) -> None:
    raw = unauthenticated()
    assert raw.refused("auth", token="wrong") == "auth-failed"
    assert raw.refused("auth", token=7) == "bad-request"
    raw.granted("auth", token=tokens.add(Grant(user="ada")))


def test_replies_to_invalid_tokens_are_delayed_longer_and_logged_without_the_token(
    unauthenticated: Callable[[], Raw], log: Log
) -> None:
    raw, took = unauthenticated(), []
    peer = "{}:{}".format(*raw.sock.getsockname())
    for _ in range(3):
        asked = time.monotonic()
        assert raw.refused("auth", token="not-to-be-logged") == "auth-failed"
        took.append(time.monotonic() - asked)
        assert log.wait_for("auth") == {"peer": peer, "outcome": "auth-failed"}
    assert took[1] >= 0.2
    assert took[2] >= 0.4


# Permissions


def test_a_drop_box_accepts_files_and_reveals_nothing(login: Login, root: Path) -> None:
    (root / "there").write_bytes(b"old")
    raw = login(Grant(user="ada", can=WRITE))
    raw.granted("put", b"new", name="mine")
    raw.granted("mkdir", name="d")
    asked: dict[str, dict[str, Any]] = {
        "stat": {}, "get": {}, "digest": {}, "delete": {}, "rename": {"to": "x"},
        "pull": {"version": "v", "block": BLOCK, "ranges": [[0, 1]], "rate": 1},
        "begin": {"total": 1, "block": BLOCK, "basis": True},
    }  # fmt: skip
    for op, keys in asked.items():
        there, missing = (raw.ask(op, name=name, **keys) for name in ("there", "missing"))
        assert there.code == "forbidden"
        assert there == missing
    assert raw.refused("list") == "forbidden"
    assert published(root) == {"mine": b"new", "there": b"old"}


def test_a_drop_box_replaces_nothing(login: Login, root: Path) -> None:
    (root / "there").write_bytes(b"old")
    raw = login(Grant(user="ada", can=WRITE))
    assert raw.refused("put", b"new", name="there", overwrite=True) == "exists"
    assert raw.refused("put", b"new", name="there") == "exists"
    keys: dict[str, Any] = {"name": "there", "total": BLOCK, "block": BLOCK}
    assert raw.refused("begin", **keys) == "exists"
    assert raw.refused("begin", **keys, overwrite=True) == "exists"
    upload = begin(raw, "late")
    raw.granted("write", bytes(BLOCK), upload=upload, offset=0, digest=f"sha256:{ZEROS}")
    (root / "late").write_bytes(b"old")
    assert raw.refused("commit", upload=upload, total=BLOCK) == "exists"
    assert (root / "there").read_bytes() == (root / "late").read_bytes() == b"old"


def test_an_upload_begun_with_delete_replaces_nothing_without_it(
    login: Login, tokens: Tokens, unauthenticated: Callable[[], Raw], root: Path
) -> None:
    (root / "f").write_bytes(b"old")
    upload = begin(login(Grant(user="ada")), "f")
    tokens.remove("ada")
    raw = unauthenticated()
    raw.granted("auth", token=tokens.add(Grant(user="ada", can=WRITE)))
    raw.granted("write", bytes(BLOCK), upload=upload, offset=0, digest=f"sha256:{ZEROS}")
    assert raw.refused("commit", upload=upload, total=BLOCK) == "exists"
    assert (root / "f").read_bytes() == b"old"


def test_a_reader_reads_and_changes_nothing(login: Login, root: Path) -> None:
    (root / "f").write_bytes(b"one")
    raw = login(Grant(user="ada", can=READ))
    assert raw.granted("get", name="f").body == b"one"
    assert b'"f"' in raw.granted("list").body
    assert raw.refused("put", b"two", name="g") == "forbidden"
    assert raw.refused("begin", name="g", total=1, block=BLOCK) == "forbidden"
    assert raw.refused("mkdir", name="d") == "forbidden"
    assert raw.refused("delete", name="f") == "forbidden"
    assert raw.refused("rename", name="f", to="g") == "forbidden"
    assert raw.refused("status") == "forbidden"
    assert published(root) == {"f": b"one"}


def test_a_forbidden_file_is_not_written_to_the_disk(login: Login, root: Path) -> None:
    raw = login(Grant(user="ada", can=READ))
    raw.send({"op": "put", "name": "f", "size": MIB})
    raw.sock.sendall(bytes(MIB // 2))
    assert staged(root) == []
    raw.sock.sendall(bytes(MIB // 2))
    assert raw.receive().code == "forbidden"
    raw.granted("ping")


def test_a_user_sees_its_directory_as_the_root(login: Login, root: Path) -> None:
    (root / "besides").write_bytes(b"secret")
    raw = login(Grant(user="ada", under="team/ada"))
    assert raw.granted("stat", name="")["name"] == ""
    assert raw.granted("list", recursive=True).body == b""
    assert raw.granted("put", b"one", name="d/f")["name"] == "d/f"
    assert raw.granted("get", name="d/f")["name"] == "d/f"
    assert raw.granted("digest", name="d/f")["name"] == "d/f"
    assert raw.granted("rename", name="d/f", to="d/g")["name"] == "d/g"
    upload = begin(raw, "e/f")
    raw.granted("write", bytes(BLOCK), upload=upload, offset=0, digest=f"sha256:{ZEROS}")
    assert raw.granted("commit", upload=upload, total=BLOCK)["name"] == "e/f"
    assert raw.granted("commit", upload=upload, total=BLOCK)["name"] == "e/f"
    assert list(published(root)) == ["besides", "team/ada/d/g", "team/ada/e/f"]
    for reply in (
        raw.ask("stat", name="besides"),
        raw.ask("mkdir", name="d/g/h"),
        raw.ask("delete", name="d"),
        raw.ask("put", b"two", name="d"),
        raw.ask("put", b"two", name="d/g", overwrite=False),
        raw.ask("get", name="d/g", if_version="other"),
    ):
        assert reply["ok"] is False
        assert "team" not in reply["message"]
    assert raw.refused("get", name="team/ada/d/g") == "not-found"
    assert raw.refused("delete", name="", recursive=True) == "bad-name"
    assert raw.refused("rename", name="", to="x") == "bad-name"
    assert raw.refused("stat", name="../besides") == "bad-name"
    assert raw.refused("rename", name="d/g", to="../../g") == "bad-name"


def test_a_directory_that_cannot_be_made_refuses_the_login(
    unauthenticated: Callable[[], Raw], tokens: Tokens, root: Path, log: Log
) -> None:
    (root / "team").write_bytes(b"")
    token = tokens.add(Grant(user="ada", under="team/ada", connections=1))
    raw = unauthenticated()
    for _ in range(2):
        reply = raw.ask("auth", token=token)
        assert reply.code == "not-a-directory"
        assert reply["message"] == (
            "cannot open the directory of this token; the server's log says why"
        )
        assert log.wait_for("error", user="ada")["under"] == "team/ada"
    assert raw.refused("list") == "auth-required"
    (root / "team").unlink()
    raw.granted("auth", token=token)
    raw.granted("list")


def test_uploads_of_other_users_are_not_found(login: Login) -> None:
    upload = begin(login(Grant(user="ada")), "f")
    other = login(Grant(user="bob"))
    keys: dict[str, Any] = {"upload": upload, "offset": 0, "digest": f"sha256:{ZEROS}"}
    assert other.refused("write", bytes(BLOCK), **keys) == "not-found"
    assert other.refused("commit", upload=upload, total=BLOCK) == "not-found"
    assert other.refused("abort", upload=upload) == "not-found"
    assert other.refused("push", upload=upload) == "not-found"
    assert begin(login(Grant(user="ada")), "f") == upload
    assert begin(other, "f") != upload


# Limits


def test_a_token_limits_connections(
    login: Login, tokens: Tokens, unauthenticated: Callable[[], Raw], log: Log
) -> None:
    token = tokens.add(Grant(user="ada", connections=2))
    one, two, three = unauthenticated(), unauthenticated(), unauthenticated()
    one.granted("auth", token=token)
    two.granted("auth", token=token)
    reply = three.ask("auth", token=token)
    assert (reply.code, reply.closes) == ("too-many-connections", True)
    assert three.rest() == b""
    login(Grant(user="bob", connections=1)).granted("ping")
    one.close()
    log.wait_for("connection", user="ada")
    unauthenticated().granted("auth", token=token)
    assert unauthenticated().ask("auth", token=token).code == "too-many-connections"


def test_a_token_limits_stored_bytes(login: Login, root: Path) -> None:
    raw = login(Grant(user="ada", under="d", quota=5))
    raw.granted("put", b"four", name="f")
    assert raw.refused("put", b"two", name="g") == "quota-exceeded"
    assert raw.refused("begin", name="g", total=2, block=BLOCK) == "quota-exceeded"
    assert staged(root) == []
    login(Grant(user="bob")).granted("put", b"two", name="g")
    raw.granted("put", b"1", name="g")
    raw.granted("delete", name="f")
    raw.granted("put", b"four", name="h")
    assert published(root) == {"d/g": b"1", "d/h": b"four", "g": b"two"}


def moved(direction: str, raws: list[Raw]) -> float:
    """Move 1 MiB over each connection concurrently; return the seconds that took."""

    def move(raw: Raw) -> Reply:
        if direction == "up":
            return raw.granted("put", bytes(MIB), name=f"f{id(raw)}")
        return raw.granted("get", name="f")

    with ThreadPoolExecutor() as threads:
        begun = time.monotonic()
        list(threads.map(move, raws))
        return time.monotonic() - begun


@pytest.mark.parametrize("direction", ["up", "down"])
def test_the_rate_of_a_token_applies_to_all_its_connections(
    login: Login, root: Path, direction: str
) -> None:
    (root / "f").write_bytes(bytes(MIB))
    ada = Grant(user="ada", bytes_per_s=RATE)
    assert moved(direction, [login(ada) for _ in range(4)]) >= 4 * MIB / RATE - BURST_S


def test_the_rate_of_one_token_does_not_slow_others(login: Login) -> None:
    slow, quick = login(Grant(user="ada", bytes_per_s=1000.0)), login(Grant(user="bob"))
    slow.send({"op": "put", "name": "slow", "size": MIB})
    slow.sock.sendall(bytes(BLOCK))
    moved("up", [quick])


def test_an_unauthenticated_client_shares_no_account_with_a_user_named_like_its_host(
    login: Login, unauthenticated: Callable[[], Raw]
) -> None:
    raw = login(Grant(user="127.0.0.1", bytes_per_s=RATE))
    unauthenticated().granted("hello", version=1)
    assert moved("up", [raw]) >= MIB / RATE - BURST_S


def test_the_weight_of_a_token_is_its_share(root: Path, tokens: Tokens) -> None:
    total = 2 * MIB
    heavy = tokens.add(Grant(user="heavy", weight=4.0))
    light = tokens.add(Grant(user="light"))

    def put(raw: Raw) -> None:
        raw.granted("put", bytes(total), name=f"f{id(raw)}")

    with (
        Server(
            root,
            port=0,
            durable=False,
            tokens=tokens,
            limits=Limits(bytes_per_s=RATE, schedule="rr"),
        ) as server,
        Raw(server.address) as one,
        Raw(server.address) as other,
        ThreadPoolExecutor() as threads,
    ):
        one.granted("auth", token=heavy)
        other.granted("auth", token=light)
        slower = threads.submit(put, other)
        put(one)
        (left,) = server.status()["transfers"]
        slower.result()
    assert left["user"] == "light"
    assert left["moved"] < total * 0.7


# Expiry and removal


def wait_for_bytes(server: Server) -> None:
    """Wait until part of a file was transferred."""
    while not [each for each in server.status()["transfers"] if each["moved"]]:
        pass


def ended(raw: Raw) -> None:
    """Wait until the server has closed the connection."""
    with suppress(ConnectionError):
        raw.rest()


@contextmanager
def held(server: Server) -> Iterator[threading.Event]:
    """Delay jobs until the end of the block; the event is set when one has started."""
    jobs, started, proceed = handler_of(server).jobs, threading.Event(), threading.Event()
    run = jobs.run

    def run_late(key: Hashable, work: Callable[..., Any], **options: Any) -> Any:
        def late(progress: Any) -> Any:
            started.set()
            assert proceed.wait(TIMEOUT_S)
            return work(progress)

        return run(key, late, **options)

    jobs.run = run_late  # type: ignore[method-assign]
    try:
        yield started
    finally:
        proceed.set()


def refused_and_closed(raw: Raw) -> None:
    """Read a refusal that closes the connection, and the end of it."""
    reply = raw.receive()
    assert (reply.code, reply.closes) == ("auth-required", True)
    assert raw.rest() == b""


def test_a_removed_token_ends_an_idle_connection_with_a_refusal(
    login: Login, tokens: Tokens, log: Log
) -> None:
    raw, other = login(Grant(user="ada")), login(Grant(user="bob"))
    raw.granted("ping")
    tokens.remove("ada")
    refused_and_closed(raw)
    assert log.wait_for("connection", user="ada")["outcome"] == "auth-required"
    other.granted("ping")


def test_a_connection_without_a_token_is_closed_whatever_it_sends(
    login: Login, unauthenticated: Callable[[], Raw], monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    monkeypatch.setattr(session_module, "_LOGIN_S", 0.5)
    known, silent, asking, sending = (
        login(Grant(user="ada")),
        *(unauthenticated() for _ in range(3)),
    )
    sending.send({"op": "put", "name": "f", "size": MIB}, b"a")
    until = time.monotonic() + TIMEOUT_S
    with suppress(ConnectionError):
        while not asking.ask("ping").closes:
            assert time.monotonic() < until
    refused_and_closed(silent)
    assert sending.rest() == b"", "no refusal is sent in the middle of a body"
    assert log.wait_for("connection", requests=0)["outcome"] == "auth-required"
    known.granted("ping")


def test_a_token_that_changes_or_expires_ends_its_connections(
    login: Login, tokens: Tokens, unauthenticated: Callable[[], Raw]
) -> None:
    soon = time.time() + 0.5
    raw = login(Grant(user="ada", expires_at=soon))
    raw.granted("ping")
    refused_and_closed(raw)
    assert time.time() >= soon
    raw = login(Grant(user="bob"))
    tokens.remove("bob")
    tokens.add(Grant(user="bob", can=READ))
    refused_and_closed(raw)


def test_a_removed_token_ends_an_upload(
    login: Login, tokens: Tokens, guarded: Server, root: Path, log: Log
) -> None:
    raw = login(Grant(user="ada"))
    raw.send({"op": "put", "name": "f", "size": 4 * MIB}, bytes(3 * MIB))
    wait_for_bytes(guarded)
    tokens.remove("ada")
    ended(raw)
    log.wait_for("connection", user="ada", outcome="auth-required")
    assert published(root) == {}
    assert staged(root) == []


def test_a_removed_token_ends_a_download(
    login: Login, tokens: Tokens, root: Path, log: Log
) -> None:
    with (root / "f").open("wb") as file:
        file.truncate(256 * MIB)
    raw = login(Grant(user="ada"))
    raw.send({"op": "get", "name": "f"})
    assert raw.receive_header()["size"] == 256 * MIB
    tokens.remove("ada")  # the rest is read only when the server has ended the session
    log.wait_for("connection", user="ada", outcome="auth-required")
    ended(raw)


def test_a_removed_token_ends_a_transfer_that_waits_for_its_rate(
    login: Login, tokens: Tokens, guarded: Server, root: Path, log: Log
) -> None:
    raw = login(Grant(user="ada", bytes_per_s=1.0))
    raw.send({"op": "put", "name": "f", "size": MIB}, bytes(MIB))
    wait_for_bytes(guarded)
    tokens.remove("ada")
    ended(raw)
    log.wait_for("connection", user="ada", outcome="auth-required")
    assert published(root) == {}


def test_a_removed_token_ends_a_udp_transfer(
    tokens: Tokens, guarded: Server, root: Path, tmp_path: Path, log: Log
) -> None:
    (tmp_path / "f").write_bytes(bytes(MIB))
    token = tokens.add(Grant(user="ada", bytes_per_s=100_000.0))
    url = Url(guarded.address, token=token, plain=True)
    with Client(url, udp=UdpMode.ONLY) as client:
        future = client.submit_put(tmp_path / "f")
        wait_for_bytes(guarded)
        tokens.remove("ada")
        with pytest.raises(FtpkitError):
            future.result(TIMEOUT_S)
    log.wait_for("connection", user="ada", outcome="auth-required")
    assert published(root) == {}


def test_a_removed_token_ends_a_connection_that_waits_for_a_job(
    guarded: Server, tokens: Tokens, unauthenticated: Callable[[], Raw], root: Path, log: Log
) -> None:
    (root / "f").write_bytes(b"one")
    raw = unauthenticated()
    raw.granted("auth", token=tokens.add(Grant(user="ada")))
    with held(guarded) as started:
        raw.send({"op": "digest", "name": "f"})
        assert started.wait(TIMEOUT_S)
        tokens.remove("ada")
        ended(raw)
    log.wait_for("connection", user="ada", outcome="auth-required")


# Unauthenticated clients


def test_a_long_header_before_authentication_is_not_read(
    unauthenticated: Callable[[], Raw], login: Login
) -> None:
    header = {"op": "hello", "version": 1, "agent": "x" * 5000}
    raw = unauthenticated()
    raw.sock.sendall(frame(header)[:4])  # and not one byte of the header itself
    refused_and_closed(raw)
    assert login(Grant(user="ada")).refused("stat", name="x" * 5000) == "bad-name"


def test_bytes_that_are_no_frame_are_refused_before_authentication(
    unauthenticated: Callable[[], Raw],
) -> None:
    raw = unauthenticated()
    raw.sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
    reply = raw.receive()
    assert reply.code == "bad-frame"
    assert "ftpkit" in reply["message"]


def test_the_body_of_a_request_before_authentication_is_skipped(
    unauthenticated: Callable[[], Raw], tokens: Tokens
) -> None:
    token = tokens.add(Grant(user="ada"))
    raw = unauthenticated()
    assert raw.refused("put", bytes(MIB), name="f") == "auth-required"
    raw.granted("auth", token=token)
    raw = unauthenticated()
    raw.send({"op": "put", "name": "f", "size": MIB + 1})
    assert raw.receive().closes


# Log and status


def test_the_log_and_the_status_name_the_user(
    login: Login, guarded: Server, log: Log, root: Path
) -> None:
    raw = login(Grant(user="ada"))
    raw.granted("put", b"one", name="f")
    assert log.wait_for("transfer", name="f")["user"] == "ada"
    upload = begin(raw, "g")
    (transfer,) = guarded.status()["transfers"]
    assert (transfer["user"], transfer["name"]) == ("ada", "g")
    raw.granted("abort", upload=upload)
    raw.close()
    assert log.wait_for("connection")["user"] == "ada"


def test_status_tells_names_only_below_the_root_of_the_token(login: Login) -> None:
    admin = frozenset({Permission.ADMIN})
    uploads = [
        (login(Grant(user="ada", under="team/ada")), "a"),
        (login(Grant(user="bob", under="teams")), "b"),
        (login(Grant(user="eve")), "team/e"),
    ]
    for raw, name in uploads:
        begin(raw, name)
    for viewer, expected in [
        (Grant(user="lead", can=admin, under="team"), {("ada", "ada/a"), ("", ""), ("eve", "e")}),
        (Grant(user="root", can=admin), {("ada", "a"), ("bob", "b"), ("eve", "team/e")}),
    ]:
        raw = login(viewer)
        reply = raw.granted("status")
        transfers = json.loads(reply.body)["transfers"]
        assert {(each["user"], each["name"]) for each in transfers} == expected
        assert all(bool(each["peer"]) == bool(each["user"]) for each in transfers)
