"""Requests and replies: to headers and back, and invalid headers."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftpkit.errors import Code, ProtocolError, RefusedError
from ftpkit.protocol.codec import (
    list_entry_from_json,
    list_entry_to_json,
    refusal_to_header,
    reply_from_header,
    reply_to_header,
    request_from_header,
    request_to_header,
)
from ftpkit.protocol.fields import (
    BLOCK_RECORD,
    is_block_size,
    pack_block_record,
    unpack_block_records,
)
from ftpkit.protocol.frame import decode_header, encode_header
from ftpkit.protocol.messages import (
    REQUESTS,
    Begin,
    Commit,
    FileReply,
    Get,
    Hello,
    HelloReply,
    List,
    ListEntry,
    OkReply,
    Pending,
    Ping,
    Put,
    Reply,
    Request,
    Stat,
    Write,
)
from tests.protocol.samples import REPLY_KINDS, REQUEST_KINDS, messages_of

DIGEST = "blake3:" + "ab" * 32
WRITE = {"op": "write", "upload": "u", "offset": 0, "size": 1, "digest": DIGEST}
BEGIN = {"op": "begin", "name": "a", "total": 1, "block": 65_536}
COMMIT = {"op": "commit", "upload": "u", "total": 1}
HELLO_REPLY = {
    "ok": True, "version": 1, "agent": "a", "digest": "blake3", "auth": False, "features": [],
    "limits": {},
}  # fmt: skip


def over_the_wire(header: dict[str, Any]) -> dict[str, Any]:
    return decode_header(encode_header(header)[4:])


def test_the_operations() -> None:
    assert " ".join(REQUESTS) == (
        "hello auth ping stat list mkdir rename delete digest put wait get "
        "begin write commit abort push pull status"
    )


@pytest.mark.parametrize("kind", REQUEST_KINDS)
@given(data=st.data())
def test_every_request_makes_the_round_trip(kind: type[Request], data: st.DataObject) -> None:
    request = data.draw(messages_of(kind))
    assert request_from_header(over_the_wire(request_to_header(request))) == request


@pytest.mark.parametrize("kind", REPLY_KINDS)
@given(data=st.data())
def test_every_reply_makes_the_round_trip(kind: type[Reply], data: st.DataObject) -> None:
    reply = data.draw(messages_of(kind))
    assert reply_from_header(kind, over_the_wire(reply_to_header(reply))) == reply


@pytest.mark.parametrize("code", Code)
def test_every_refusal_makes_the_round_trip(code: Code) -> None:
    header = over_the_wire(refusal_to_header(RefusedError(code, "so it is")))
    refusal = reply_from_header(OkReply, header)
    assert isinstance(refusal, RefusedError)
    assert (refusal.code, str(refusal)) == (code, "so it is")


@given(st.lists(messages_of(ListEntry), max_size=4))
def test_every_list_entry_makes_the_round_trip(entries: list[ListEntry]) -> None:
    body = b"".join(map(list_entry_to_json, entries))
    assert body.count(b"\n") == len(entries)
    assert [list_entry_from_json(line) for line in body.splitlines()] == entries


def test_a_list_entry_is_compact_and_may_have_more_keys() -> None:
    line = b'{"name":"\xc3\xa9","kind":"dir","total":0,"mtime":-1}\n'
    entry = ListEntry(name="é", kind="dir", total=0, mtime=-1)
    assert list_entry_to_json(entry) == line
    assert list_entry_from_json(line.replace(b"}", b',"new":null}')) == entry


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "not JSON"),
        (b"[]\n", "not a JSON object"),
        (b"{}", "bad list: name is missing"),
        (b'{"name":5}', "bad list: name must be a string"),
        (b'{"name":"a","kind":"dir","total":-1,"mtime":0}', "bad list: total must be"),
        (b'{"name":"a","kind":"dir","total":0,"mtime":0.5}', "bad list: mtime must be"),
        (b'{"name":"a","name":"b","kind":"dir","total":0,"mtime":0}', "duplicate key"),
    ],
)
def test_bad_lines_of_a_list(line: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        list_entry_from_json(line)


def test_defaults_are_not_sent() -> None:
    assert request_to_header(Ping()) == {"op": "ping"}
    assert request_to_header(List()) == {"op": "list"}
    assert request_to_header(Put(name="a", size=0)) == {"op": "put", "name": "a", "size": 0}
    assert request_to_header(Begin(name="a", total=None, block=65_536, mtime=0)) == {
        "op": "begin", "name": "a", "total": None, "block": 65_536, "mtime": 0
    }  # fmt: skip
    assert reply_to_header(FileReply(name="a", total=0, version="v")) == {
        "ok": True, "name": "a", "total": 0, "version": "v"
    }  # fmt: skip


def test_unknown_keys_are_ignored() -> None:
    assert request_from_header({"op": "ping", "new": [], "name": 5, "size": 0}) == Ping()
    assert reply_from_header(OkReply, {"ok": True, "code": 5, "new": {}}) == OkReply()
    for pending in (False, None, 1, "true"):
        assert reply_from_header(OkReply, {"ok": True, "pending": pending}) == OkReply()


def test_defaults() -> None:
    assert request_from_header({"op": "hello", "version": 2}) == Hello(version=2)
    assert request_from_header({"op": "list"}) == List(name="", recursive=False, after=None)
    assert request_from_header({"op": "put", "name": "a", "size": 1}) == Put(
        name="a", size=1, digest=None, mtime=None, mode=None, overwrite=True
    )
    assert request_from_header({"op": "get", "name": "a"}) == Get(
        name="a", offset=0, length=None, digest=None, if_version=None
    )
    assert request_from_header(BEGIN) == Begin(
        name="a", total=1, block=65_536, mtime=None, mode=None, overwrite=True, basis=False
    )
    assert request_from_header(COMMIT) == Commit(
        upload="u", total=1, content_digest=None, blocks_digest=None
    )


@pytest.mark.parametrize(
    "header",
    [
        {"op": "stat", "name": ""},
        {"op": "list", "name": "", "after": None},
        {"op": "hello", "version": 1, "digests": None},
        {"op": "hello", "version": 1, "digests": []},
        {"op": "get", "name": "a", "offset": 2**63 - 1, "length": 0, "digest": None},
        {"op": "get", "name": "a", "digest": "md5"},
        {"op": "put", "name": "a", "size": 2**63 - 1, "mtime": -(2**63) + 1, "mode": None},
        BEGIN | {"total": None},
        BEGIN | {"block": 2**26},
        COMMIT | {"content_digest": DIGEST, "blocks_digest": None},
        WRITE | {"digest": "md5:00"},
    ],
)
def test_good_requests(header: dict[str, Any]) -> None:
    request = request_from_header(over_the_wire(header))
    assert {"op": request.op, **dataclasses.asdict(request)}.items() >= header.items()


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({}, "op is missing"),
        ({"op": None}, "op is missing"),
        ({"op": 5}, "op is missing"),
        ({"op": ["ping"]}, "op is missing"),
        ({"op": "stat"}, "stat: name is missing"),
        ({"op": "stat", "name": None}, "stat: name must be a name"),
        ({"op": "stat", "name": 5}, "name must be a name"),
        ({"op": "stat", "name": ["a"]}, "name must be a name"),
        ({"op": "hello"}, "version is missing"),
        ({"op": "hello", "version": True}, "version must be an integer"),
        ({"op": "hello", "version": 1.0}, "version must be an integer"),
        ({"op": "hello", "version": "1"}, "version must be an integer"),
        ({"op": "hello", "version": 1, "agent": None}, "agent must be a string"),
        (
            {"op": "hello", "version": 1, "digests": "a"},
            "digests must be a list of strings or null",
        ),
        ({"op": "hello", "version": 1, "digests": ["a", 1]}, "digests must be a list of strings"),
        ({"op": "auth"}, "token is missing"),
        ({"op": "auth", "token": 5}, "token must be a string"),
        ({"op": "list", "recursive": 1}, "recursive must be true or false"),
        ({"op": "list", "recursive": None}, "recursive must be true or false"),
        ({"op": "list", "after": 1}, "after must be a string or null"),
        ({"op": "rename", "name": "a"}, "to is missing"),
        ({"op": "put", "name": "a"}, "size is missing"),
        ({"op": "put", "name": "a", "size": 1, "mtime": 1.5}, "nanoseconds since 1970 or null"),
        ({"op": "put", "name": "a", "size": 1, "mtime": 2**63}, "nanoseconds since 1970 or null"),
        ({"op": "put", "name": "a", "size": 1, "mtime": -(2**63)}, "nanoseconds"),
        ({"op": "put", "name": "a", "size": 1, "mode": -1}, "mode must be an integer"),
        ({"op": "put", "name": "a", "size": 1, "overwrite": None}, "true or false"),
        ({"op": "get", "name": "a", "offset": -1}, "offset must be an integer from 0"),
        ({"op": "get", "name": "a", "offset": 2**63}, "offset must be an integer from 0"),
        ({"op": "get", "name": "a", "offset": None}, "offset must be an integer from 0"),
        ({"op": "get", "name": "a", "length": True}, "2\\^63-1 or null"),
        (
            {"op": "get", "name": "a", "digest": DIGEST},
            "digest must be an algorithm's name or null",
        ),
        ({"op": "get", "name": "a", "if_version": 1}, "if_version must be a string or null"),
        (BEGIN | {"block": 65_537}, "a power of two"),
        (BEGIN | {"block": 32_768}, "a power of two"),
        (BEGIN | {"block": 2**27}, "a power of two"),
        (BEGIN | {"block": 0}, "a power of two"),
        (BEGIN | {"block": None}, "a power of two"),
        (BEGIN | {"total": -1}, "total must be"),
        ({"op": "begin", "name": "a", "block": 65_536}, "total is missing"),
        ({"op": "write", "upload": "u", "offset": 0, "size": 1}, "digest is missing"),
        (WRITE | {"upload": 5}, "upload must be a string"),
        (COMMIT | {"total": None}, "total must be"),
        (COMMIT | {"content_digest": "md5"}, '"<algorithm>:<lowercase hex>" or null'),
        (COMMIT | {"blocks_digest": DIGEST[:-2]}, "blocks_digest must be"),
        ({"op": "ping", "size": 1}, "ping: this request has no body"),
        ({"op": "get", "name": "a", "size": 1}, "get: this request has no body"),
        (COMMIT | {"size": 2**63 - 1}, "commit: this request has no body"),
    ],
)
def test_bad_requests(header: dict[str, Any], why: str) -> None:
    with pytest.raises(RefusedError, match=why) as caught:
        request_from_header(over_the_wire(header))
    assert caught.value.code is Code.BAD_REQUEST


@pytest.mark.parametrize(
    "header",
    [
        {"op": "stat", "name": "/a"},
        {"op": "get", "name": ""},
        {"op": "mkdir", "name": "a/../b"},
        {"op": "rename", "name": "a", "to": ".ftpkit"},
        {"op": "list", "name": "a//b"},
        BEGIN | {"name": "a\\b"},
    ],
)
def test_a_bad_name_has_a_code_of_its_own(header: dict[str, Any]) -> None:
    with pytest.raises(RefusedError) as caught:
        request_from_header(header)
    assert caught.value.code is Code.BAD_NAME


@pytest.mark.parametrize("op", ["", "PING", "ping ", "quit", "__class__", "\x1b[31m" * 1_000])
def test_an_unknown_operation_is_unsupported(op: str) -> None:
    with pytest.raises(RefusedError, match="unknown operation") as caught:
        request_from_header({"op": op})
    assert caught.value.code is Code.UNSUPPORTED
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("op", ["put", "write"])
def test_a_body_belongs_to_put_and_write(op: str) -> None:
    header = WRITE | {"op": op, "name": "a"}
    assert isinstance(request_from_header(header), Put | Write)


def test_block_records_make_the_round_trip() -> None:
    records = [(0, 65_536, DIGEST), (65_536, 1, "blake3:" + "cd" * 32)]
    body = b"".join(pack_block_record(*record) for record in records)
    assert len(body) == 2 * BLOCK_RECORD.size == 2 * 44
    assert list(unpack_block_records(body, "blake3")) == records


@pytest.mark.parametrize(
    ("size", "good"),
    [(2**15, False), (2**16 - 1, False), (2**16, True), (2**16 + 1, False), (3 * 2**16, False),
     (2**20, True), (2**26, True), (2**26 + 1, False), (2**27, False), (0, False), (-1, False)],
)  # fmt: skip
def test_block_sizes(size: int, good: bool) -> None:
    assert is_block_size(size) is good


@pytest.mark.parametrize(
    ("kind", "header", "why"),
    [
        (OkReply, {}, "ok must be true or false"),
        (OkReply, {"ok": None}, "ok must be true or false"),
        (OkReply, {"ok": 1}, "ok must be true or false"),
        (OkReply, {"ok": 0}, "ok must be true or false"),
        (OkReply, {"ok": "true"}, "ok must be true or false"),
        (OkReply, {"ok": False}, "needs a code and a message"),
        (OkReply, {"ok": False, "code": "busy"}, "needs a code and a message"),
        (OkReply, {"ok": False, "code": 5, "message": "a"}, "needs a code and a message"),
        (
            OkReply,
            {"ok": False, "code": "busy", "message": None},
            "needs a code and a message",
        ),
        (OkReply, {"ok": True, "pending": True}, "done is missing"),
        (OkReply, {"ok": True, "pending": True, "done": 0}, "total is missing"),
        (OkReply, {"ok": True, "pending": True, "done": -1, "total": 1}, "done must be"),
        (FileReply, {"ok": True}, "bad reply: name is missing"),
        (HelloReply, HELLO_REPLY | {"auth": 1}, "auth must be true or false"),
        (HelloReply, HELLO_REPLY | {"features": [1]}, "features must be a list of strings"),
        (HelloReply, HELLO_REPLY | {"limits": []}, "limits must be an object of integers"),
        (HelloReply, HELLO_REPLY | {"limits": {"a": True}}, "limits must be an object of integers"),
    ],
)
def test_bad_replies(kind: type[Reply], header: dict[str, Any], why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        reply_from_header(kind, header)


def test_a_pending_reply() -> None:
    header = {"ok": True, "pending": True, "done": 1, "total": 2}
    assert reply_from_header(FileReply, header) == Pending(done=1, total=2)
    named = Pending(done=1, total=2, job="j")
    assert reply_from_header(FileReply, header | {"job": "j"}) == named
    assert reply_to_header(named) == header | {"job": "j"}


@pytest.mark.parametrize("code", ["", "BUSY", "code-of-next-year"])
def test_an_unknown_code_is_read_as_internal(code: str) -> None:
    refusal = reply_from_header(OkReply, {"ok": False, "code": code, "message": "why"})
    assert isinstance(refusal, RefusedError)
    assert (refusal.code, str(refusal)) == (Code.INTERNAL, "why")


def test_messages_compare_by_kind_and_fields() -> None:
    assert Stat(name="a") == Stat(name="a")
    assert Stat(name="a") != Stat(name="b")
    assert Stat(name="a") != List(name="a")
    assert len({Stat(name="a"), Stat(name="a"), Stat(name="b"), List(name="a")}) == 3
    assert repr(List(name="a")) == "List(name='a', recursive=False, after=None)"


def test_messages_are_frozen_for_type_checkers() -> None:
    Stat(name="a").name = "b"  # type: ignore[misc]  # mypy reports what this line does not
    assert all("__slots__" in vars(kind) for kind in (*REQUEST_KINDS, *REPLY_KINDS, ListEntry))
