"""The wire, as a client sees it that was written from WIRE.md alone: operation by operation."""

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blake3
import pytest

from ftpkit import DirectoryStore, Server
from tests.support.gated_store import Gated
from tests.support.inside import handler_of
from tests.support.raw import Raw, Reply
from tests.support.trees import published, staged

BLOCK = 64 * 1024
MTIME = 1_234_567_890_123_456_789
OPERATIONS = [
    "hello", "auth", "ping", "stat", "list", "mkdir", "rename", "delete", "digest", "put", "get",
    "begin", "write", "commit", "abort", "status",
]  # fmt: skip


def b3(data: bytes) -> str:
    return f"blake3:{blake3.blake3(data).hexdigest()}"


def sha(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def lines(reply: Reply) -> list[dict[str, Any]]:
    """Return the entries of one page of a list, after checking the page."""
    assert reply["digest"] == b3(reply.body)
    assert reply["size"] == len(reply.body) <= 1024 * 1024
    return [json.loads(line) for line in reply.body.splitlines()]


def names(reply: Reply) -> list[str]:
    return [entry["name"] for entry in lines(reply)]


def records(reply: Reply) -> list[tuple[int, int, str]]:
    """Return the records in the body of a reply to ``begin``."""
    return [
        (offset, length, raw.hex())
        for offset, length, raw in struct.iter_unpack("!QI32s", reply.body)
    ]


def record(offset: int, data: bytes) -> tuple[int, int, str]:
    return (offset, len(data), blake3.blake3(data).hexdigest())


def begin(raw: Raw, name: str, total: int | None, **keys: Any) -> str:
    upload = raw.granted("begin", name=name, total=total, block=BLOCK, **keys)["upload"]
    assert isinstance(upload, str)
    return upload


def write(raw: Raw, upload: str, offset: int, data: bytes) -> Reply:
    return raw.ask("write", data, upload=upload, offset=offset, digest=b3(data))


# hello, auth, status, ping, id


def test_hello_returns_agent_version_and_limits(raw: Raw) -> None:
    reply = raw.granted("hello", version=1, agent="test/1", digests=["sha256", "blake3"])
    assert reply["version"] == 1
    assert reply["agent"].startswith("ftpkit/")
    assert reply["digest"] == "sha256"
    assert reply["auth"] is False
    assert all(isinstance(feature, str) for feature in reply["features"])
    assert reply["limits"]["header"] == 65_536
    assert reply["limits"]["block"] == 64 * 1024 * 1024


@pytest.mark.parametrize(
    ("keys", "picked"),
    [
        ({}, "blake3"),
        ({"digests": None}, "blake3"),
        ({"digests": []}, "blake3"),
        ({"digests": ["md5"]}, "blake3"),
        ({"digests": ["md5", "sha256"]}, "sha256"),
        ({"digests": ["blake3", "sha256"]}, "blake3"),
        ({"agent": "x", "unknown": {"key": [1]}}, "blake3"),
    ],
)
def test_hello_picks_the_first_digest_that_both_have(
    raw: Raw, keys: dict[str, Any], picked: str
) -> None:
    assert raw.granted("hello", version=1, **keys)["digest"] == picked


def test_hello_comes_first_or_not_at_all(raw: Raw) -> None:
    raw.granted("ping")
    assert raw.refused("hello", version=1) == "bad-request"
    raw.granted("ping")


def test_hello_comes_once(raw: Raw) -> None:
    raw.granted("hello", version=1)
    assert raw.refused("hello", version=1) == "bad-request"
    raw.granted("ping")


@pytest.mark.parametrize("version", [0, 2, 99])
def test_another_version_is_unsupported_and_the_conversation_goes_on(
    raw: Raw, version: int
) -> None:
    assert raw.refused("hello", version=version) == "unsupported"
    raw.granted("ping")


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"version": "1"},
        {"version": True},
        {"version": 1.0},
        {"version": None},
        {"version": 1, "agent": 7},
        {"version": 1, "digests": "blake3"},
        {"version": 1, "digests": [1]},
    ],
)
def test_a_bad_hello_is_a_bad_request(raw: Raw, keys: dict[str, Any]) -> None:
    assert raw.refused("hello", **keys) == "bad-request"
    raw.granted("ping")


def test_auth_is_unsupported_so_far(raw: Raw) -> None:
    assert raw.refused("auth", token="secret") == "unsupported"
    raw.granted("ping")


@pytest.mark.parametrize("identity", ["", "a", "é✓", 0, 7, -1, 2**63, "x" * 1024])
def test_a_reply_repeats_the_id(raw: Raw, identity: str | int) -> None:
    assert raw.granted("ping", id=identity).header == {"ok": True, "id": identity}
    refused = raw.ask("stat", name="none", id=identity)
    assert (refused.code, refused["id"]) == ("not-found", identity)


@pytest.mark.parametrize("identity", [1.5, True, [], {}, "x" * 1025, "é" * 513])
def test_a_bad_id_is_a_bad_request_and_is_not_repeated(raw: Raw, identity: Any) -> None:
    reply = raw.ask("ping", id=identity)
    assert reply.code == "bad-request"
    assert "id" not in reply.header
    assert raw.granted("ping").header == {"ok": True}


def test_an_unknown_operation_is_unsupported(raw: Raw) -> None:
    assert raw.refused("fly") == "unsupported"
    assert raw.refused("x" * 50_000) == "unsupported"
    raw.granted("ping")


@pytest.mark.parametrize("header", [{}, {"op": None}, {"op": 1}, {"op": ["ping"]}])
def test_a_request_without_an_op_is_a_bad_request(raw: Raw, header: dict[str, Any]) -> None:
    raw.send(header)
    assert raw.receive().code == "bad-request"
    raw.granted("ping")


def test_unknown_keys_are_ignored(raw: Raw) -> None:
    raw.granted("mkdir", name="d", later={"a": [None, 1.5]}, colour="blue")
    assert raw.granted("stat", name="d", colour="blue")["kind"] == "dir"


@pytest.mark.parametrize("op", [op for op in OPERATIONS if op not in ("put", "write")])
def test_a_body_where_none_belongs_is_a_bad_request(raw: Raw, op: str) -> None:
    keys: dict[str, Any] = {
        "version": 1, "token": "t", "name": "a", "to": "b", "total": 1, "block": BLOCK,
        "upload": "u", "offset": 0,
    }  # fmt: skip
    assert raw.refused(op, b"body", **keys) == "bad-request"
    raw.granted("ping")


REQUIRED: list[tuple[str, dict[str, Any]]] = [
    ("stat", {"name": "f"}),
    ("mkdir", {"name": "d"}),
    ("rename", {"name": "f", "to": "g"}),
    ("delete", {"name": "f"}),
    ("digest", {"name": "f"}),
    ("put", {"name": "f", "size": 0}),
    ("get", {"name": "f"}),
    ("begin", {"name": "f", "total": 1, "block": BLOCK}),
    ("write", {"upload": "u", "offset": 0, "size": 0, "digest": b3(b"")}),
    ("commit", {"upload": "u", "total": 0}),
    ("abort", {"upload": "u"}),
]


@pytest.mark.parametrize(
    ("op", "keys", "missing"), [(op, keys, key) for op, keys in REQUIRED for key in keys]
)
def test_a_missing_key_is_a_bad_request(
    raw: Raw, op: str, keys: dict[str, Any], missing: str
) -> None:
    assert raw.refused(op, **{k: v for k, v in keys.items() if k != missing}) == "bad-request"
    raw.granted("ping")


OF_TYPE: list[tuple[str, str]] = [
    *((op, "name") for op in ("stat", "list", "mkdir", "rename", "delete", "digest", "get")),
    ("put", "name"), ("begin", "name"), ("rename", "to"), ("rename", "overwrite"),
    ("list", "recursive"), ("list", "after"), ("delete", "recursive"), ("put", "mtime"),
    ("put", "mode"), ("put", "overwrite"), ("get", "offset"), ("get", "length"),
    ("get", "if_version"), ("begin", "total"), ("begin", "block"), ("begin", "mtime"),
    ("begin", "mode"), ("begin", "overwrite"), ("begin", "basis"), ("write", "upload"),
    ("write", "offset"), ("commit", "upload"), ("commit", "total"), ("commit", "content_digest"),
    ("commit", "blocks_digest"), ("abort", "upload"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "key"), OF_TYPE)
@pytest.mark.parametrize("value", [1.5, [], {"a": 1}])
def test_a_key_of_another_type_is_a_bad_request(raw: Raw, op: str, key: str, value: Any) -> None:
    keys = {**dict(REQUIRED).get(op, {}), key: value}
    assert raw.refused(op, **keys) == "bad-request"
    raw.granted("ping")


@pytest.mark.parametrize(
    ("op", "keys"),
    [
        ("put", {"name": "f", "size": 0, "mtime": True}),
        ("put", {"name": "f", "size": 0, "mtime": 2**64 - 1}),
        ("put", {"name": "f", "size": 0, "mode": -1}),
        ("put", {"name": "f", "size": 0, "overwrite": 1}),
        ("put", {"name": "f", "size": 0, "overwrite": None}),
        ("get", {"name": "f", "offset": -1}),
        ("get", {"name": "f", "length": -1}),
        ("get", {"name": "f", "offset": 2**63}),
        ("get", {"name": "f", "offset": True}),
        ("list", {"recursive": 0}),
        ("begin", {"name": "f", "total": -1, "block": BLOCK}),
        ("begin", {"name": "f", "total": 1, "block": 0}),
        ("begin", {"name": "f", "total": 1, "block": BLOCK // 2}),
        ("begin", {"name": "f", "total": 1, "block": BLOCK + 1}),
        ("begin", {"name": "f", "total": 1, "block": 128 * 1024 * 1024}),
        ("commit", {"upload": "u", "total": 0, "content_digest": "blake3"}),
        ("commit", {"upload": "u", "total": 0, "blocks_digest": "blake3:00"}),
    ],
)
def test_a_value_out_of_range_is_a_bad_request(raw: Raw, op: str, keys: dict[str, Any]) -> None:
    assert raw.refused(op, **keys) == "bad-request"
    raw.granted("ping")


# put


def test_put_publishes_a_file_with_all_that_travels_with_it(raw: Raw, root: Path) -> None:
    reply = raw.granted(
        "put", b"hello", name="a/b.txt", digest=b3(b"hello"), mtime=MTIME, mode=0o4641
    )
    assert reply.header == {
        "ok": True, "name": "a/b.txt", "total": 5, "version": reply["version"],
        "content_digest": b3(b"hello"),
    }  # fmt: skip
    status = (root / "a/b.txt").stat()
    assert (root / "a/b.txt").read_bytes() == b"hello"
    assert status.st_mtime_ns == MTIME
    assert status.st_mode & 0o7777 == 0o641
    assert raw.granted("stat", name="a/b.txt")["version"] == reply["version"]


def test_put_with_the_required_keys_alone(raw: Raw, root: Path) -> None:
    reply = raw.granted("put", name="empty", size=0)
    assert (reply["total"], reply["content_digest"]) == (0, b3(b""))
    assert published(root) == {"empty": b""}


def test_put_with_sha256_answers_in_sha256(raw: Raw) -> None:
    assert raw.granted("put", b"x", name="f", digest=sha(b"x"))["content_digest"] == sha(b"x")


def test_put_replaces_by_default_and_the_version_changes(raw: Raw, root: Path) -> None:
    first = raw.granted("put", b"old", name="f", mtime=MTIME)
    second = raw.granted("put", b"new", name="f", mtime=MTIME, overwrite=True)
    assert first["version"] != second["version"]
    assert published(root) == {"f": b"new"}


def test_put_without_overwrite_keeps_an_existing_file(raw: Raw, root: Path) -> None:
    raw.granted("put", b"old", name="f", overwrite=False)
    assert raw.refused("put", b"new", name="f", overwrite=False) == "exists"
    assert published(root) == {"f": b"old"}


def test_put_that_does_not_match_its_digest_changes_nothing(raw: Raw, root: Path) -> None:
    raw.granted("put", b"old", name="f")
    assert raw.refused("put", b"new", name="f", digest=b3(b"now")) == "digest-mismatch"
    assert published(root) == {"f": b"old"}
    assert staged(root) == []
    raw.granted("ping")


def test_a_digest_that_the_server_lacks_is_unsupported(raw: Raw, root: Path) -> None:
    (root / "f").write_bytes(b"x")
    assert raw.refused("put", b"x", name="g", digest="md5:00") == "unsupported"
    assert raw.refused("get", name="f", digest="md5") == "unsupported"
    upload = begin(raw, "h", 1)
    refused = raw.refused("write", b"x", upload=upload, offset=0, digest="md5:00")
    assert refused == "unsupported"
    raw.granted("ping")
    assert published(root) == {"f": b"x"}


def test_a_refused_put_of_1_mib_keeps_the_conversation(raw: Raw, root: Path) -> None:
    reply = raw.ask("put", bytes(1024 * 1024), name="../f")
    assert reply.code == "bad-name"
    assert not reply.closes
    raw.granted("ping")
    assert published(root) == {}


def test_a_larger_refused_put_is_answered_before_its_body(raw: Raw) -> None:
    raw.send({"op": "put", "name": "../f", "size": 1024 * 1024 + 1})
    reply = raw.receive()
    assert reply.code == "bad-name"
    assert reply.closes
    raw.sock.sendall(bytes(1024 * 1024 + 1))
    assert raw.rest() == b""


@pytest.mark.parametrize("name", ["../f", "d"])
def test_a_client_that_sends_64_mib_first_still_receives_the_refusal(
    raw: Raw, root: Path, name: str
) -> None:
    (root / "d").mkdir()
    piece = bytes(1024 * 1024)
    raw.send({"op": "put", "name": name, "size": 64 * len(piece)})
    for _ in range(64):
        raw.sock.sendall(piece)
    reply = raw.receive()
    assert reply.code in ("bad-name", "is-a-directory")
    assert reply.closes
    assert raw.rest() == b""
    assert published(root) == {}


PUT = {"op": "put", "name": "small", "digest": b3(b"small body"), "size": 10}


def test_a_put_that_is_cut_anywhere_publishes_nothing(server: Server, root: Path) -> None:
    whole = json.dumps(PUT).encode()
    whole = struct.pack("!I", len(whole)) + whole + b"small body"
    for cut in range(len(whole)):
        with Raw(server.address) as raw:
            raw.sock.sendall(whole[:cut])
            raw.finish()
            assert raw.rest() == b"", f"cut at {cut}"
        assert published(root) == {}
        assert staged(root) == []
    with Raw(server.address) as raw:
        raw.sock.sendall(whole)
        raw.finish()
        assert raw.receive().ok
        assert raw.rest() == b""
    assert published(root) == {"small": b"small body"}


@pytest.mark.parametrize("sent", [0, 1, 70_000, 3 * 1024 * 1024 - 1])
def test_a_body_shorter_than_declared_publishes_nothing(raw: Raw, root: Path, sent: int) -> None:
    (root / "f").write_bytes(b"old")
    raw.send({"op": "put", "name": "f", "size": 3 * 1024 * 1024}, bytes(sent))
    raw.finish()
    assert raw.rest() == b""
    assert published(root) == {"f": b"old"}
    assert staged(root) == []


# Frames that are none


def framed(raw: bytes) -> bytes:
    return struct.pack("!I", len(raw)) + raw


BAD_FRAMES = [
    struct.pack("!I", 0),
    struct.pack("!I", 1) + b"{",
    struct.pack("!I", 65_537),
    struct.pack("!I", 2**32 - 1),
    framed(b"\xff\xfe"),
    framed(b"not json"),
    framed(b"[]"),
    framed(b"12"),
    framed(b'\xef\xbb\xbf{"op":"ping"}'),
    framed(b'{"op":"ping","op":"ping"}'),
    framed(b'{"op":"ping","x":{"a":1,"a":2}}'),
    framed(b'{"op":"ping","x":NaN}'),
    framed(b'{"op":"ping","x":-Infinity}'),
    framed(b'{"op":"ping","x":1e999}'),
    framed(b'{"op":"ping","x":18446744073709551616}'),
    framed(b'{"op":"ping","x":"\\ud800"}'),
    framed(b'{"op":"ping","x":' + b"[" * 16 + b"]" * 16 + b"}"),
    framed(b'{"op":"ping","x":' + b"[" * 30_000 + b"]" * 30_000 + b"}"),
    framed(b'{"op":"put","name":"f","size":-1}'),
    framed(b'{"op":"put","name":"f","size":true}'),
    framed(b'{"op":"put","name":"f","size":1.0}'),
    framed(b'{"op":"put","name":"f","size":"1"}'),
    framed(b'{"op":"put","name":"f","size":null}'),
    framed(b'{"op":"put","name":"f","size":9223372036854775808}'),
    framed(b'{"op":"put","name":"f","size":0,"digest":"blake3"}'),
    framed(b'{"op":"put","name":"f","size":0,"digest":null}'),
    framed(b'{"op":"put","name":"f","size":0,"digest":"blake3:00"}'),
    framed(b'{"op":"put","name":"f","size":0,"digest":"sha256:' + b"AB" * 32 + b'"}'),
    framed(b'{"op":"ping","digest":7}'),
]


@pytest.mark.parametrize("frame", BAD_FRAMES, ids=range(len(BAD_FRAMES)))
def test_a_bad_frame_is_answered_and_ends_the_conversation(
    server: Server, root: Path, frame: bytes
) -> None:
    with Raw(server.address) as raw:
        raw.send({"op": "ping", "id": "before"})
        raw.sock.sendall(frame)
        assert raw.receive().header == {"ok": True, "id": "before"}
        reply = raw.receive()
        assert reply.code == "bad-frame"
        assert reply.closes
        assert "id" not in reply.header
        assert raw.rest() == b""
    with Raw(server.address) as raw:
        raw.granted("ping")
    assert published(root) == {}


def test_the_deepest_valid_header(raw: Raw) -> None:
    raw.send(b'{"op":"ping","x":' + b"[" * 15 + b"]" * 15 + b"}")
    assert raw.receive().ok


def test_the_longest_valid_header(raw: Raw) -> None:
    header = b'{"op":"ping","x":"'
    raw.send(header + b"x" * (65_536 - len(header) - 2) + b'"}')
    assert raw.receive().ok


def test_a_refusal_reaches_a_client_that_is_still_sending(raw: Raw) -> None:
    raw.sock.sendall(struct.pack("!I", 1))
    for _ in range(16):
        raw.sock.sendall(bytes(1024 * 1024))
    reply = raw.receive()
    assert (reply.code, reply.closes) == ("bad-frame", True)
    assert raw.rest() == b""


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"USER anonymous\r\n",
        b"EHLO there\r\n",
    ],
)
def test_a_foreign_protocol_gets_a_readable_reply(raw: Raw, words: bytes) -> None:
    raw.sock.sendall(words)
    reply = raw.receive()
    assert (reply.code, reply.closes) == ("bad-frame", True)
    assert "ftpkit" in reply["message"]
    assert raw.rest() == b""


# Many requests


def test_500_requests_may_be_sent_before_a_reply_is_read(raw: Raw, root: Path) -> None:
    for number in range(100):
        raw.send({"op": "put", "name": f"f{number}", "size": 1, "id": number}, b"x")
        raw.send({"op": "get", "name": f"f{number}", "id": number})
        raw.send({"op": "stat", "name": "none", "id": number})
        raw.send({"op": "delete", "name": f"f{number}", "id": number})
        raw.send({"op": "fly", "size": 3, "id": number}, b"far")
    raw.finish()
    for number in range(100):
        replies = [raw.receive() for _ in range(5)]
        assert [reply["id"] for reply in replies] == [number] * 5
        codes = [reply.code for reply in replies]
        assert codes == [None, None, "not-found", None, "unsupported"]
        assert replies[1].body == b"x"
    assert raw.rest() == b""
    assert published(root) == {}


@pytest.mark.parametrize("header", [b'{"op":"ping"}', b"{}"])
def test_a_flood_of_tiny_frames_is_answered_one_by_one(raw: Raw, header: bytes) -> None:
    rounds, count = 5, 2_000
    for _ in range(rounds):
        raw.sock.sendall(framed(header) * count)
        for _ in range(count):
            assert raw.receive().ok is (header != b"{}")
    raw.granted("ping")


# Names


BAD_NAMES = [
    "/", "/etc/passwd", "a//b", "a/", "./a", "a/.", "..", "../a", "a/../b", "a\\b", "..\\a",
    "a\0b", "a\nb", "a\x7fb", "a\x85b", "x" * 256, "/".join(["x" * 255] * 17), ".ftpkit",
    ".ftpkit/uploads", "a/.ftpkit-x", ".FTPKIT",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_is_refused_by_every_operation(raw: Raw, root: Path, name: str) -> None:
    (root / "f").write_bytes(b"x")
    for op in ("stat", "list", "mkdir", "delete", "digest", "get"):
        assert raw.refused(op, name=name) == "bad-name", op
    assert raw.refused("rename", name=name, to="g") == "bad-name"
    assert raw.refused("rename", name="f", to=name) == "bad-name"
    assert raw.refused("put", b"x", name=name) == "bad-name"
    assert raw.refused("begin", name=name, total=1, block=BLOCK) == "bad-name"
    assert published(root) == {"f": b"x"}


@pytest.mark.parametrize("op", ["mkdir", "delete", "digest", "get"])
def test_the_root_has_a_name_for_list_and_stat_alone(raw: Raw, op: str) -> None:
    assert raw.refused(op, name="") == "bad-name"
    assert raw.granted("stat", name="")["kind"] == "dir"
    assert names(raw.granted("list", name="")) == []


def test_hidden_and_missing_names_get_the_same_refusal(
    raw: Raw, root: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "inner").write_bytes(b"secret")
    (root / "seen").symlink_to(secret)
    (root / "file").symlink_to(secret / "inner")
    (root / "dang").symlink_to(tmp_path / "nowhere")
    os.mkfifo(root / "fifo")
    requests: list[tuple[str, dict[str, Any]]] = [
        ("stat", {}), ("get", {}), ("digest", {}), ("delete", {}), ("list", {}),
        ("delete", {"recursive": True}), ("rename", {"to": "moved"}),
    ]  # fmt: skip
    for hidden in ("seen", "file", "dang", "fifo", "seen/inner"):
        nothing = hidden.replace("seen", "none").replace("file", "none")
        nothing = nothing.replace("dang", "none").replace("fifo", "none")
        for op, keys in requests:
            replies = [raw.ask(op, name=name, **keys) for name in (hidden, nothing)]
            if hidden == "fifo" and op == "list":
                continue  # what is no directory, a list of it says
            assert replies[0].code == "not-found", (op, hidden, replies)
            texts = [json.dumps(reply.header) for reply in replies]
            assert texts[0].replace(f"'{hidden}'", f"'{nothing}'") == texts[1]
    for hidden in ("seen", "file", "dang", "fifo", "seen/inner", "seen/new"):
        assert raw.refused("put", b"x", name=hidden) == "not-found"
        assert raw.refused("begin", name=hidden, total=1, block=BLOCK) == "not-found"
    assert raw.refused("mkdir", name="seen/new") == "not-found"
    assert sorted(os.listdir(secret)) == ["inner"]
    assert (secret / "inner").read_bytes() == b"secret"
    kinds = {entry["name"]: entry["kind"] for entry in lines(raw.granted("list"))}
    assert kinds == {"seen": "link", "file": "link", "dang": "link", "fifo": "other"}


# stat, mkdir, rename, delete


def test_stat_describes_files_and_directories(raw: Raw, root: Path) -> None:
    (root / "d").mkdir()
    (root / "d/f").write_bytes(b"12345")
    os.utime(root / "d/f", ns=(MTIME, MTIME))
    reply = raw.granted("stat", name="d/f")
    assert (reply["name"], reply["kind"], reply["total"]) == ("d/f", "file", 5)
    assert reply["mtime"] == MTIME
    assert isinstance(reply["version"], str)
    directory = raw.granted("stat", name="d")
    assert (directory["kind"], directory["total"]) == ("dir", 0)
    assert raw.granted("stat", name="")["name"] == ""
    assert raw.refused("stat", name="d/none") == "not-found"
    assert raw.refused("stat", name="d/f/g") in ("not-found", "not-a-directory")


def test_mkdir_creates_parents_and_accepts_an_existing_directory(raw: Raw, root: Path) -> None:
    assert raw.granted("mkdir", name="a/b/c")["name"] == "a/b/c"
    assert raw.granted("mkdir", name="a/b")["name"] == "a/b"
    assert (root / "a/b/c").is_dir()
    (root / "f").write_bytes(b"")
    assert raw.refused("mkdir", name="f") in ("exists", "not-a-directory")
    assert raw.refused("mkdir", name="f/g") == "not-a-directory"


def test_rename_moves_files_and_directories(raw: Raw, root: Path) -> None:
    (root / "f").write_bytes(b"f")
    (root / "d").mkdir()
    assert raw.granted("rename", name="f", to="new/dir/g")["name"] == "new/dir/g"
    raw.granted("rename", name="new", to="moved")
    assert published(root) == {"moved/dir/g": b"f"}
    assert raw.refused("rename", name="f", to="h") == "not-found"
    raw.granted("rename", name="d", to="e")
    assert (root / "e").is_dir()


def test_rename_replaces_only_with_overwrite(raw: Raw, root: Path) -> None:
    for name in ("f", "g"):
        (root / name).write_bytes(name.encode())
    (root / "d").mkdir()
    (root / "e").mkdir()
    (root / "e/full").write_bytes(b"")
    assert raw.refused("rename", name="f", to="g") == "exists"
    assert raw.refused("rename", name="f", to="g", overwrite=False) == "exists"
    assert raw.refused("rename", name="f", to="d") == "exists"
    assert raw.refused("rename", name="f", to="d", overwrite=True) == "is-a-directory"
    assert raw.refused("rename", name="d", to="e") == "exists"
    assert raw.refused("rename", name="d", to="e", overwrite=True) == "not-empty"
    assert raw.refused("rename", name="d", to="d/inside") == "bad-request"
    raw.granted("rename", name="f", to="g", overwrite=True)
    assert published(root) == {"g": b"f", "e/full": b""}


def test_delete_removes_only_the_named_file_or_directory(raw: Raw, root: Path) -> None:
    (root / "d/deep/er").mkdir(parents=True)
    (root / "d/deep/er/f").write_bytes(b"")
    (root / "f").write_bytes(b"")
    assert raw.granted("delete", name="f")["name"] == "f"
    assert raw.refused("delete", name="f") == "not-found"
    assert raw.refused("delete", name="d") == "not-empty"
    assert raw.refused("delete", name="d", recursive=False) == "not-empty"
    raw.granted("delete", name="d", recursive=True)
    assert raw.refused("delete", name="d", recursive=True) == "not-found"
    raw.granted("mkdir", name="e")
    raw.granted("delete", name="e")
    assert os.listdir(root) == [".ftpkit"]
    assert staged(root) == []


# list


def test_list_is_in_the_byte_order_of_full_names(raw: Raw, root: Path) -> None:
    (root / "a/x").mkdir(parents=True)
    (root / "a/x/deep").write_bytes(b"1")
    for name in ("a-b", "a.txt", "a/c", "B", "é", "z", "\U0001f600", "\uffee"):
        (root / name).write_bytes(b"12")
    flat = ["B", "a", "a-b", "a.txt", "z", "é", "\uffee", "\U0001f600"]
    assert names(raw.granted("list")) == sorted(flat, key=str.encode)
    deep = sorted([*flat, "a/c", "a/x", "a/x/deep"], key=str.encode)
    assert names(raw.granted("list", name="", recursive=True, after=None)) == deep
    inner = lines(raw.granted("list", name="a"))
    assert [(entry["name"], entry["kind"], entry["total"]) for entry in inner] == [
        ("a/c", "file", 2),
        ("a/x", "dir", 0),
    ]
    assert inner[0]["mtime"] == (root / "a/c").stat().st_mtime_ns
    for position, name in enumerate(deep):
        reply = raw.granted("list", recursive=True, after=name)
        assert names(reply) == deep[position + 1 :]
        assert reply["next"] is None


def test_list_of_a_file_is_refused(raw: Raw, root: Path) -> None:
    (root / "f").write_bytes(b"")
    assert raw.refused("list", name="f") == "not-a-directory"
    assert raw.refused("list", name="none") == "not-found"


def test_a_long_list_comes_in_pages(raw: Raw, root: Path) -> None:
    made = []
    for number in range(4_000):
        directory = root / f"d{number % 3}"
        directory.mkdir(exist_ok=True)
        name = f"d{number % 3}/{number:05}-{'x' * 240}"
        (root / name).touch()
        made.append(name)
    made = sorted([*made, "d0", "d1", "d2"], key=str.encode)
    found, after, pages = [], None, 0
    while pages == 0 or after is not None:
        reply = raw.granted("list", recursive=True, after=after)
        found += names(reply)
        after, pages = reply["next"], pages + 1
        assert after in (None, found[-1])
        assert len(reply.body) > 1_000_000 or after is None
    assert pages >= 2
    assert found == made


# get and digest


def test_get_of_every_range(raw: Raw, root: Path) -> None:
    data = b"0123456789"
    (root / "f").write_bytes(data)
    os.utime(root / "f", ns=(MTIME, MTIME))
    version = raw.granted("stat", name="f")["version"]
    for offset in range(11):
        for length in (None, 0, 1, 5, 9, 10, 11, 2**63 - 1):
            reply = raw.granted("get", name="f", offset=offset, length=length)
            part = data[offset:] if length is None else data[offset : offset + length]
            assert reply.body == part
            assert reply.header == {
                **reply.header, "ok": True, "name": "f", "offset": offset, "size": len(part),
                "total": 10, "mtime": MTIME, "version": version,
            }  # fmt: skip
            assert "digest" not in reply.header
    assert raw.granted("get", name="f").body == data
    assert raw.refused("get", name="f", offset=11) == "bad-request"
    assert raw.refused("get", name="f", offset=2**63 - 1) == "bad-request"


@pytest.mark.parametrize("total", [65_535, 65_536, 65_537, 1_048_576, 3_000_001])
def test_get_of_larger_files(raw: Raw, root: Path, total: int) -> None:
    data = os.urandom(total)
    (root / "f").write_bytes(data)
    assert raw.granted("get", name="f").body == data
    reply = raw.granted("get", name="f", offset=1, length=total - 2, digest="blake3")
    assert reply.body == data[1:-1]
    assert reply["digest"] == b3(data[1:-1])
    raw.granted("ping")


def test_get_with_a_digest(raw: Raw, root: Path) -> None:
    (root / "f").write_bytes(b"0123456789")
    assert raw.granted("get", name="f", digest="sha256")["digest"] == sha(b"0123456789")
    reply = raw.granted("get", name="f", offset=2, length=3, digest="blake3")
    assert (reply["digest"], reply.body) == (b3(b"234"), b"234")
    assert raw.granted("get", name="f", offset=10, digest="blake3")["digest"] == b3(b"")
    assert "digest" not in raw.granted("get", name="f", digest=None).header


def test_a_range_with_a_digest_is_limited_to_one_block(raw: Raw, root: Path) -> None:
    with open(root / "sparse", "wb") as file:
        file.truncate(64 * 1024 * 1024 + 1)
    assert raw.refused("get", name="sparse", digest="blake3") == "too-large"
    reply = raw.granted("get", name="sparse", offset=1, digest="blake3")
    assert reply["digest"] == b3(bytes(64 * 1024 * 1024)) == b3(reply.body)


def test_get_with_if_version_never_mixes_two_files(raw: Raw, root: Path) -> None:
    raw.granted("put", b"old", name="f", mtime=MTIME)
    version = raw.granted("get", name="f", length=1)["version"]
    assert raw.granted("get", name="f", offset=1, if_version=version).body == b"ld"
    assert raw.granted("get", name="f", if_version=None).body == b"old"
    raw.granted("put", b"new", name="f", mtime=MTIME)
    assert raw.refused("get", name="f", offset=1, if_version=version) == "changed"
    (root / "f").write_bytes(b"now")
    again = raw.granted("get", name="f")["version"]
    with open(root / "f", "ab") as file:
        file.write(b"!")
    assert raw.refused("get", name="f", if_version=again) == "changed"
    assert raw.refused("get", name="f", if_version="") == "changed"


def test_get_and_digest_of_a_directory_are_refused(raw: Raw, root: Path) -> None:
    (root / "d").mkdir()
    for op in ("get", "digest"):
        assert raw.refused(op, name="d") == "is-a-directory"
        assert raw.refused(op, name="none") == "not-found"
        assert raw.refused(op, name="none/f") == "not-found"


def test_digest_reads_the_whole_file(raw: Raw, root: Path) -> None:
    data = os.urandom(2_500_000)
    (root / "f").write_bytes(data)
    reply = raw.granted("digest", name="f")
    assert (reply["name"], reply["total"]) == ("f", len(data))
    assert reply["content_digest"] == b3(data)
    assert reply["version"] == raw.granted("stat", name="f")["version"]


def test_digest_uses_the_algorithm_of_the_session(raw: Raw, root: Path) -> None:
    (root / "f").write_bytes(b"x")
    raw.granted("hello", version=1, digests=["sha256"])
    assert raw.granted("digest", name="f")["content_digest"] == sha(b"x")


LARGE = 48 * 1024 * 1024


def test_a_file_that_is_replaced_while_it_is_sent_arrives_whole(raw: Raw, root: Path) -> None:
    data = os.urandom(LARGE)
    (root / "f").write_bytes(data)
    raw.send({"op": "get", "name": "f"})
    assert raw.receive_header()["size"] == LARGE
    (root / "new").write_bytes(b"new")
    os.replace(root / "new", root / "f")
    assert raw.read(LARGE) == data
    assert raw.granted("get", name="f").body == b"new"


def change(path: Path, how: str) -> None:
    with open(path, "r+b") as file:
        match how:
            case "written to":
                file.write(b"changed")
            case "grows":
                file.seek(0, os.SEEK_END)
                file.write(b"more")
            case "shrinks":
                file.truncate(LARGE // 2)
            case "emptied":
                file.truncate(0)
    os.utime(path, ns=(MTIME, MTIME))  # surely another time than before


@pytest.mark.parametrize("how", ["written to", "grows", "shrinks", "emptied"])
def test_a_file_that_changes_while_it_is_sent_is_cut_short(
    raw: Raw, connect: Callable[[], Raw], root: Path, how: str
) -> None:
    (root / "f").write_bytes(bytes(LARGE))
    raw.send({"op": "get", "name": "f"})
    assert raw.receive_header()["size"] == LARGE
    # Far less than a file of this size fits into the buffers on the way.
    change(root / "f", how)
    assert len(raw.rest()) < LARGE
    connect().granted("ping")


# Uploads in blocks


def test_an_upload_in_blocks(raw: Raw, root: Path) -> None:
    data = os.urandom(2 * BLOCK + 100)
    reply = raw.granted(
        "begin", name="a/big", total=len(data), block=BLOCK, mtime=MTIME, mode=0o1600
    )
    assert (reply["block"], reply["size"], reply.body) == (BLOCK, 0, b"")
    upload = reply["upload"]
    for offset in (2 * BLOCK, 0, BLOCK):
        part = data[offset : offset + BLOCK]
        written = write(raw, upload, offset, part)
        assert written.header == {
            "ok": True, "upload": upload, "offset": offset, "size": 0
        }  # fmt: skip
        assert published(root) == {}
    assert names(raw.granted("list", recursive=True)) == []
    done = raw.granted("commit", upload=upload, total=len(data), content_digest=b3(data))
    assert (done["name"], done["total"]) == ("a/big", len(data))
    assert done["content_digest"] == b3(data)
    assert published(root) == {"a/big": data}
    status = (root / "a/big").stat()
    assert (status.st_mtime_ns, status.st_mode & 0o7777) == (MTIME, 0o600)
    assert raw.granted("stat", name="a/big")["version"] == done["version"]
    assert staged(root) == []


def test_an_upload_without_a_total(raw: Raw, root: Path) -> None:
    data = os.urandom(BLOCK + 1)
    upload = begin(raw, "f", None)
    assert write(raw, upload, 0, data[:BLOCK]).ok
    assert write(raw, upload, BLOCK, data[BLOCK:]).ok
    for wrong in (0, BLOCK, BLOCK + 2, 2**63 - 1):
        assert raw.refused("commit", upload=upload, total=wrong) == "incomplete"
    raw.granted("commit", upload=upload, total=len(data))
    assert published(root) == {"f": data}


def test_an_upload_of_an_empty_file(raw: Raw, root: Path) -> None:
    upload = begin(raw, "f", 0)
    assert raw.granted("commit", upload=upload, total=0)["total"] == 0
    assert published(root) == {"f": b""}


def test_a_commit_with_missing_blocks_is_refused(raw: Raw, root: Path) -> None:
    data = os.urandom(BLOCK + 1)
    upload = begin(raw, "f", len(data))
    assert raw.refused("commit", upload=upload, total=len(data)) == "incomplete"
    assert write(raw, upload, BLOCK, data[BLOCK:]).ok
    assert raw.refused("commit", upload=upload, total=len(data)) == "incomplete"
    assert raw.refused("commit", upload=upload, total=len(data) - 1) == "bad-request"
    assert published(root) == {}
    assert write(raw, upload, 0, data[:BLOCK]).ok
    raw.granted("commit", upload=upload, total=len(data))
    assert published(root) == {"f": data}


NO_BLOCKS = [
    (1, BLOCK), (0, BLOCK - 1), (0, BLOCK + 1), (BLOCK, BLOCK), (BLOCK, 9), (BLOCK, 11),
    (2 * BLOCK, 1), (0, 0), (BLOCK, 0), (2**62, BLOCK),
]  # fmt: skip


@pytest.mark.parametrize(("offset", "size"), NO_BLOCKS)
def test_a_write_that_is_not_a_block_is_refused(
    raw: Raw, root: Path, offset: int, size: int
) -> None:
    upload = begin(raw, "f", BLOCK + 10)
    body = bytes(size)
    refused = raw.refused("write", body, upload=upload, offset=offset, digest=b3(body), size=size)
    assert refused == "bad-request"
    assert write(raw, upload, BLOCK, bytes(10)).ok


def test_a_block_that_does_not_match_is_not_held(raw: Raw) -> None:
    upload = begin(raw, "f", BLOCK)
    bad = raw.ask("write", bytes(BLOCK), upload=upload, offset=0, digest=b3(b"other"))
    assert (bad.code, bad.closes) == ("digest-mismatch", False)
    assert raw.refused("commit", upload=upload, total=BLOCK) == "incomplete"
    assert raw.granted("begin", name="f", total=BLOCK, block=BLOCK).body == b""


def test_digests_of_the_whole_are_checked(raw: Raw, root: Path) -> None:
    data = os.urandom(BLOCK + 7)
    upload = begin(raw, "f", len(data))
    assert write(raw, upload, 0, data[:BLOCK]).ok
    assert write(raw, upload, BLOCK, data[BLOCK:]).ok
    raws = blake3.blake3(data[:BLOCK]).digest() + blake3.blake3(data[BLOCK:]).digest()
    for key in ("content_digest", "blocks_digest"):
        keys: dict[str, Any] = {"upload": upload, "total": len(data), key: b3(b"another")}
        assert raw.refused("commit", **keys) == "digest-mismatch"
        assert published(root) == {}
    reply = raw.granted(
        "commit", upload=upload, total=len(data), content_digest=sha(data), blocks_digest=b3(raws)
    )
    assert reply["content_digest"] == sha(data)


def test_begin_resumes_an_upload_and_lists_its_blocks(
    raw: Raw, connect: Callable[[], Raw], root: Path
) -> None:
    data = os.urandom(2 * BLOCK + 5)
    upload = begin(raw, "f", len(data))
    assert write(raw, upload, BLOCK, data[BLOCK : 2 * BLOCK]).ok
    assert write(raw, upload, 2 * BLOCK, data[2 * BLOCK :]).ok
    other = connect()
    reply = other.granted("begin", name="f", total=len(data), block=BLOCK)
    assert reply["upload"] == upload
    held = [record(BLOCK, data[BLOCK : 2 * BLOCK]), record(2 * BLOCK, data[2 * BLOCK :])]
    assert records(reply) == held
    raw.close()
    assert records(connect().granted("begin", name="f", total=len(data), block=BLOCK)) == held
    # Another name, total or block is another upload.
    others: list[dict[str, Any]] = [{"name": "g"}, {"total": len(data) + 1}, {"block": 2 * BLOCK}]
    for keys in others:
        begun = other.granted("begin", **{"name": "f", "total": len(data), "block": BLOCK, **keys})
        assert begun["upload"] != upload
        assert begun.body == b""
    assert write(other, upload, 0, data[:BLOCK]).ok
    other.granted("commit", upload=upload, total=len(data), content_digest=b3(data))
    assert published(root) == {"f": data}


def test_block_records_use_the_digest_of_the_session(raw: Raw, connect: Callable[[], Raw]) -> None:
    raw.granted("hello", version=1, digests=["sha256"])
    upload = begin(raw, "f", 3)
    raw.granted("write", b"abc", upload=upload, offset=0, digest=sha(b"abc"))
    reply = raw.granted("begin", name="f", total=3, block=BLOCK)
    assert records(reply) == [(0, 3, hashlib.sha256(b"abc").hexdigest())]
    other = connect().granted("begin", name="f", total=3, block=BLOCK)
    assert other["upload"] == upload
    assert other.body == b"", "a record without its algorithm would mislead"


def test_an_unfinished_upload_outlives_the_server(root: Path) -> None:
    data = os.urandom(BLOCK + 5)
    with Server(root, port=0) as server, Raw(server.address) as raw:
        upload = begin(raw, "f", len(data))
        assert write(raw, upload, 0, data[:BLOCK]).ok
    with Server(root, port=0) as server, Raw(server.address) as raw:
        reply = raw.granted("begin", name="f", total=len(data), block=BLOCK)
        assert reply["upload"] == upload
        assert records(reply) == [record(0, data[:BLOCK])]
        assert write(raw, upload, BLOCK, data[BLOCK:]).ok
        raw.granted("commit", upload=upload, total=len(data), content_digest=b3(data))
    assert published(root) == {"f": data}


def test_two_connections_write_one_upload(raw: Raw, connect: Callable[[], Raw], root: Path) -> None:
    data = os.urandom(8 * BLOCK + 9)
    upload, other = begin(raw, "f", len(data)), connect()
    offsets = range(0, len(data), BLOCK)
    for number, offset in enumerate(offsets):
        part = data[offset : offset + BLOCK]
        header = {"op": "write", "upload": upload, "offset": offset, "digest": b3(part)}
        (raw, other)[number % 2].send({**header, "size": len(part)}, part)
    for number, offset in enumerate(offsets):
        reply = (raw, other)[number % 2].receive()
        assert (reply.ok, reply["offset"]) == (True, offset)
    other.granted("commit", upload=upload, total=len(data), content_digest=b3(data))
    assert published(root) == {"f": data}
    assert write(raw, upload, 0, data[:BLOCK]).code == "not-found"


def test_a_block_is_taken_over_from_a_silent_connection(
    raw: Raw, connect: Callable[[], Raw], server: Server, root: Path
) -> None:
    old, new = b"o" * BLOCK, b"n" * BLOCK
    upload, other = begin(raw, "f", BLOCK), connect()
    half = {"op": "write", "upload": upload, "offset": 0, "size": BLOCK, "digest": b3(old)}
    raw.send(half, old[: BLOCK // 2])
    # The old connection must have begun: only the store can tell.
    (writers,) = [held._writers for held in open_uploads(server)]
    while not writers:
        other.granted("ping")
    assert write(other, upload, 0, new).ok
    raw.sock.sendall(old[BLOCK // 2 :])
    reply = raw.receive()
    assert (reply.code, reply.closes) == ("busy", False)
    other.granted("commit", upload=upload, total=BLOCK, content_digest=b3(new))
    assert published(root) == {"f": new}
    raw.granted("ping")


def open_uploads(server: Server) -> list[Any]:
    store = handler_of(server).store
    assert isinstance(store, DirectoryStore)
    return list(store._uploads._open.values())


def test_a_block_that_is_written_again_replaces_the_older(raw: Raw, root: Path) -> None:
    upload = begin(raw, "f", 3)
    assert write(raw, upload, 0, b"old").ok
    assert write(raw, upload, 0, b"new").ok
    assert records(raw.granted("begin", name="f", total=3, block=BLOCK)) == [record(0, b"new")]
    reply = raw.granted("commit", upload=upload, total=3)
    assert reply.header.get("content_digest") in (None, b3(b"new"))
    assert published(root) == {"f": b"new"}


def test_a_block_on_a_connection_that_breaks_does_not_count(
    raw: Raw, connect: Callable[[], Raw], root: Path
) -> None:
    upload = begin(raw, "f", BLOCK)
    header = {"op": "write", "upload": upload, "offset": 0, "size": BLOCK, "digest": b3(b"")}
    raw.send(header, bytes(BLOCK - 1))
    raw.finish()
    assert raw.rest() == b""
    other = connect()
    assert other.granted("begin", name="f", total=BLOCK, block=BLOCK).body == b""
    assert published(root) == {}


def test_a_commit_may_be_repeated(raw: Raw, connect: Callable[[], Raw], root: Path) -> None:
    upload = begin(raw, "f", 3)
    assert write(raw, upload, 0, b"abc").ok
    first = raw.granted("commit", upload=upload, total=3)
    assert raw.granted("commit", upload=upload, total=3) == first
    assert connect().granted("commit", upload=upload, total=3) == first
    raw.granted("put", b"another", name="f")
    assert connect().granted("commit", upload=upload, total=3) == first
    assert published(root) == {"f": b"another"}


def test_a_commit_may_be_repeated_after_a_restart(root: Path) -> None:
    with Server(root, port=0) as server, Raw(server.address) as raw:
        upload = begin(raw, "f", 3)
        assert write(raw, upload, 0, b"abc").ok
        first = raw.granted("commit", upload=upload, total=3)
    for _ in range(2):
        with Server(root, port=0) as server, Raw(server.address) as raw:
            assert raw.granted("commit", upload=upload, total=3) == first


def test_a_begin_behind_a_commit_is_a_new_upload(raw: Raw) -> None:
    upload = begin(raw, "f", 3)
    assert write(raw, upload, 0, b"abc").ok
    raw.granted("commit", upload=upload, total=3)
    reply = raw.granted("begin", name="f", total=3, block=BLOCK)
    assert reply["upload"] != upload
    assert reply.body == b""


def test_abort_deletes_an_upload(raw: Raw, connect: Callable[[], Raw], root: Path) -> None:
    upload = begin(raw, "f", BLOCK + 1)
    assert write(raw, upload, 0, bytes(BLOCK)).ok
    assert connect().granted("abort", upload=upload).header == {"ok": True}
    assert staged(root) == []
    assert raw.refused("abort", upload=upload) == "not-found"
    assert raw.refused("commit", upload=upload, total=BLOCK + 1) == "not-found"
    refused = raw.refused("write", b"x", upload=upload, offset=BLOCK, digest=b3(b"x"))
    assert refused == "not-found"
    assert begin(raw, "f", BLOCK + 1) != upload


@pytest.mark.parametrize("upload", ["", "x", "../../f", "0" * 32 + "-" + "0" * 16, "é" * 1000])
def test_an_unknown_upload_is_not_found(raw: Raw, upload: str) -> None:
    assert raw.refused("abort", upload=upload) == "not-found"
    assert raw.refused("commit", upload=upload, total=0) == "not-found"
    refused = raw.refused("write", b"x", upload=upload, offset=0, digest=b3(b"x"))
    assert refused == "not-found"


def test_begin_and_commit_keep_an_existing_file_without_overwrite(raw: Raw, root: Path) -> None:
    (root / "d").mkdir()
    (root / "f").write_bytes(b"old")
    assert raw.refused("begin", name="d", total=1, block=BLOCK) == "is-a-directory"
    assert raw.refused("begin", name="f", total=1, block=BLOCK, overwrite=False) == "exists"
    assert raw.refused("begin", name="f/g", total=1, block=BLOCK) == "not-a-directory"
    upload = begin(raw, "g", 1, overwrite=False)
    assert write(raw, upload, 0, b"x").ok
    (root / "g").write_bytes(b"faster")
    assert raw.refused("commit", upload=upload, total=1) == "exists"
    assert published(root) == {"f": b"old", "g": b"faster"}


def test_a_delta_upload_sends_what_differs(raw: Raw, root: Path) -> None:
    old = os.urandom(3 * BLOCK + 10)
    new = bytearray(old)
    new[BLOCK : BLOCK + 4] = b"diff"
    (root / "f").write_bytes(old)
    reply = raw.granted("begin", name="f", total=len(new), block=BLOCK, basis=True)
    offsets = range(0, len(old), BLOCK)
    assert records(reply) == [record(o, old[o : o + BLOCK]) for o in offsets]
    upload = reply["upload"]
    assert write(raw, upload, BLOCK, bytes(new[BLOCK : 2 * BLOCK])).ok
    raw.granted("commit", upload=upload, total=len(new), content_digest=b3(bytes(new)))
    assert published(root) == {"f": bytes(new)}


def test_a_missing_basis_is_ignored(raw: Raw) -> None:
    reply = raw.granted("begin", name="f", total=1, block=BLOCK, basis=True)
    assert reply.body == b""


def test_a_basis_of_another_length_offers_the_blocks_that_fit(raw: Raw, root: Path) -> None:
    old = os.urandom(BLOCK + 10)
    (root / "f").write_bytes(old)
    total = 2 * BLOCK
    reply = raw.granted("begin", name="f", total=total, block=BLOCK, basis=True)
    assert records(reply) == [record(0, old[:BLOCK])]
    new = os.urandom(BLOCK)
    assert write(raw, reply["upload"], BLOCK, new).ok
    raw.granted("commit", upload=reply["upload"], total=total)
    assert published(root) == {"f": old[:BLOCK] + new}


# Work that takes long


@pytest.fixture
def gated(server: Server) -> Any:
    """Let the server soon reply ``pending``, and its jobs wait for an event.

    Only for connections made after it: each keeps the store that it began with.
    """
    gated = Gated(handler_of(server).store)
    setattr(handler_of(server), "store", gated)  # noqa: B010  it stands before a store, and looks like one
    handler_of(server).jobs._patience_s = 0.5
    yield gated
    gated.gate.set()


def opened(server: Server, gated: Gated) -> None:
    handler_of(server).jobs._patience_s = 20.0
    gated.gate.set()


def pending(reply: Reply) -> bool:
    return reply.header.keys() == {"ok", "pending", "done", "total"} and reply["pending"] is True


def test_a_long_digest_is_pending_and_is_joined(
    connect: Callable[[], Raw], server: Server, gated: Gated, root: Path
) -> None:
    (root / "f").write_bytes(b"x")
    one, two = connect(), connect()
    assert pending(one.ask("digest", name="f"))
    assert pending(two.ask("digest", name="f"))
    assert one.ask("digest", name="f", id=1)["id"] == 1
    assert one.granted("ping").header == {"ok": True}
    opened(server, gated)
    assert one.granted("digest", name="f")["content_digest"] == b3(b"x")
    assert gated.begun == ["read"]


def test_a_long_commit_is_pending_and_is_joined(
    connect: Callable[[], Raw], server: Server, gated: Gated, root: Path
) -> None:
    one, two = connect(), connect()
    upload = begin(one, "f", 3)
    assert write(one, upload, 0, b"abc").ok
    assert pending(one.ask("commit", upload=upload, total=3))
    one.close()
    assert pending(two.ask("commit", upload=upload, total=3))
    assert published(root) == {}
    opened(server, gated)
    assert two.granted("commit", upload=upload, total=3)["name"] == "f"
    assert gated.begun == ["upload"]
    assert published(root) == {"f": b"abc"}


def test_a_long_delete_is_pending_and_is_joined(
    server: Server, gated: Gated, raw: Raw, root: Path
) -> None:
    (root / "d/deep").mkdir(parents=True)
    assert pending(raw.ask("delete", name="d", recursive=True))
    assert pending(raw.ask("delete", name="d", recursive=True))
    opened(server, gated)
    assert raw.granted("delete", name="d", recursive=True)["name"] == "d"
    assert gated.begun == ["delete"]
    assert not (root / "d").exists()


def test_a_long_begin_with_basis_is_pending_and_is_joined(
    server: Server, gated: Gated, raw: Raw, root: Path
) -> None:
    (root / "f").write_bytes(b"abc")
    keys: dict[str, Any] = {"name": "f", "total": 3, "block": BLOCK, "basis": True}
    gated.waved_through.add("upload")
    assert pending(raw.ask("begin", **keys))
    assert pending(raw.ask("begin", **keys))
    opened(server, gated)
    assert records(raw.granted("begin", **keys)) == [record(0, b"abc")]
    assert gated.begun == ["read"]


def test_a_begin_with_basis_whose_connection_ended_is_joined_over_another(
    connect: Callable[[], Raw], server: Server, gated: Gated, root: Path
) -> None:
    (root / "f").write_bytes(b"abc")
    keys: dict[str, Any] = {"name": "f", "total": 3, "block": BLOCK, "basis": True}
    gated.waved_through.add("upload")
    one = connect()
    assert pending(one.ask("begin", **keys))
    assert gated.came.wait(10.0)
    one.close()
    server.connection_limiter.wait_for(lambda count: count == 0)
    two = connect()
    assert pending(two.ask("begin", **keys))
    opened(server, gated)
    assert records(two.granted("begin", **keys)) == [record(0, b"abc")]
    assert gated.begun == ["read"]


def test_a_basis_that_was_not_requested_again_is_offered_anew(
    connect: Callable[[], Raw], server: Server, gated: Gated, root: Path
) -> None:
    (root / "f").write_bytes(b"abc")
    keys: dict[str, Any] = {"name": "f", "total": 3, "block": BLOCK, "basis": True}
    gated.waved_through.add("upload")
    one = connect()
    assert pending(one.ask("begin", **keys))
    assert gated.came.wait(10.0)
    one.close()
    server.connection_limiter.wait_for(lambda count: count == 0)
    (job,) = handler_of(server).jobs._jobs.values()
    opened(server, gated)
    assert job.finished.wait(10.0)
    assert records(connect().granted("begin", **keys)) == [record(0, b"abc")]


def test_a_failed_job_refuses_the_repeated_request(
    server: Server, gated: Gated, raw: Raw, root: Path
) -> None:
    (root / "none").write_bytes(b"x")
    assert pending(raw.ask("digest", name="none"))
    (root / "none").unlink()
    opened(server, gated)
    assert raw.refused("digest", name="none") == "not-found"


# The last codes


def test_a_failure_of_the_server_has_a_reference_and_no_detail(
    raw: Raw, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def stat(self, name: str) -> None:
            raise RuntimeError("the disk of /secret/place is on fire")

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

    store = handler_of(server).store
    setattr(handler_of(server), "store", Broken())  # noqa: B010  it stands before a store
    # The connection is older than the broken store: it keeps the store it began with.
    raw.granted("ping")
    with Raw(server.address) as other:
        reply = other.ask("stat", name="f")
        assert (reply.code, reply.closes) == ("internal", False)
        assert "secret" not in reply["message"]
        reference = reply["message"].split()[-1]
        other.granted("ping")
    (logged,) = [entry for entry in caplog.records if entry.exc_info]
    assert getattr(logged, "fields", {})["reference"] == reference


def test_work_is_refused_while_the_server_stops(raw: Raw, server: Server, root: Path) -> None:
    (root / "f").write_bytes(b"x")
    handler_of(server).jobs.stop()
    assert raw.refused("digest", name="f") == "shutting-down"


def test_a_path_through_a_file_is_refused(raw: Raw, root: Path) -> None:
    (root / "f").write_bytes(b"x")
    assert raw.refused("put", b"x", name="f/g") == "not-a-directory"
    (root / "d").mkdir()
    assert raw.refused("put", b"x", name="d") == "is-a-directory"
    assert raw.refused("put", b"x", name="d", overwrite=False) == "exists"
    assert published(root) == {"f": b"x"}
