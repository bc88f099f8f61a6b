"""Both sides of a session: allowed requests, and matching of replies."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftpkit.errors import Code, ProtocolError, RefusedError
from ftpkit.protocol import ClientProtocol, Decoder, Response, ServerProtocol
from ftpkit.protocol.frame import Header, encode_header
from ftpkit.protocol.messages import (
    REQUESTS,
    Auth,
    AuthReply,
    Commit,
    FileReply,
    Get,
    Hello,
    HelloReply,
    OkReply,
    Pending,
    Ping,
    Request,
    Stat,
    StatReply,
)
from ftpkit.protocol.state import MAX_ID
from tests.protocol.reading import read
from tests.protocol.samples import REQUEST_KINDS, fields_of, headers, messages_of, values

PING: Header = {"op": "ping"}
HELLO: Header = {"op": "hello", "version": 1}
AUTH: Header = {"op": "auth", "token": "t"}
FULL: Header = {"ok": False, "code": "too-many-connections", "message": "full", "close": True}
BAD_TOKEN = RefusedError(Code.AUTH_FAILED, "no such token")


def said(wire: bytes) -> Header:
    """Return the one header in ``wire``."""
    (frame,) = read([wire])
    return frame.header


def code_of(server: ServerProtocol, header: Header) -> Code | None:
    """Let ``server`` handle ``header``; return the code of a refusal."""
    try:
        server.receive(header)
    except RefusedError as refusal:
        return Code(said(server.refuse(refusal))["code"])
    server.accept(OkReply())
    return None


# The server's side


def test_a_request_gets_its_reply() -> None:
    server = ServerProtocol()
    assert server.receive(PING) == Ping()
    assert said(server.accept(OkReply())) == {"ok": True}
    assert server.receive({"op": "stat", "name": "a"}) == Stat(name="a")
    refusal = RefusedError(Code.NOT_FOUND, "no 'a'")
    assert said(server.refuse(refusal)) == {"ok": False, "code": "not-found", "message": "no 'a'"}
    assert not server.closed


def test_a_long_operation_is_pending() -> None:
    server = ServerProtocol()
    server.receive({"op": "commit", "upload": "u", "total": 5, "id": "c"})
    assert said(server.accept(Pending(done=1, total=5))) == {
        "ok": True, "pending": True, "done": 1, "total": 5, "id": "c"
    }  # fmt: skip


@pytest.mark.parametrize(
    "identity", [0, -1, 2**64 - 1, -(2**63), "", "a", "é" * (MAX_ID // 2), "\0" * MAX_ID]
)
def test_a_reply_repeats_the_id_of_its_request(identity: str | int) -> None:
    server = ServerProtocol()
    server.receive(PING | {"id": identity})
    assert said(server.accept(OkReply())) == {"ok": True, "id": identity}
    with pytest.raises(RefusedError) as caught:
        server.receive({"op": "quit", "id": identity})
    assert said(server.refuse(caught.value))["id"] == identity
    server.receive(PING)
    assert said(server.accept(OkReply())) == {"ok": True}


@pytest.mark.parametrize(
    "identity", [True, 1.0, [], {}, "x" * (MAX_ID + 1), "é" * (MAX_ID // 2) + "x", "x" * 65_000]
)
def test_a_bad_id_is_refused_and_not_repeated(identity: Any) -> None:
    server = ServerProtocol()
    with pytest.raises(RefusedError, match="id must be an integer or a string") as caught:
        server.receive(PING | {"id": identity})
    assert caught.value.code is Code.BAD_REQUEST
    assert "id" not in said(server.refuse(caught.value))
    assert code_of(server, PING | {"id": None}) is None


def test_a_refusal_without_a_request_has_no_id() -> None:
    server = ServerProtocol()
    server.receive(PING | {"id": 7})
    server.accept(OkReply())
    late = said(server.refuse(RefusedError(Code.TIMEOUT, "you say nothing"), close=True))
    assert late == {"ok": False, "code": "timeout", "message": "you say nothing", "close": True}
    assert server.closed


def test_a_full_server_refuses_before_any_request() -> None:
    server = ServerProtocol()
    refusal = RefusedError(Code.TOO_MANY_CONNECTIONS, "full")
    assert said(server.refuse(refusal, close=True)) == FULL


def test_a_closed_session_stays_closed() -> None:
    server = ServerProtocol()
    server.refuse(RefusedError(Code.BAD_FRAME, "what?"), close=True)
    with pytest.raises(RuntimeError, match="closed"):
        server.receive(PING)
    with pytest.raises(RuntimeError, match="closed"):
        server.accept(OkReply())
    with pytest.raises(RuntimeError, match="closed"):
        server.refuse(RefusedError(Code.BUSY, "busy"))
    assert server.closed


def test_hello_must_be_the_first_request() -> None:
    server = ServerProtocol()
    assert server.receive(HELLO) == Hello(version=1)
    server.accept(OkReply())
    assert code_of(server, HELLO) is Code.BAD_REQUEST
    assert code_of(server, PING) is None


@pytest.mark.parametrize(
    "first", [PING, {"op": "quit"}, {}, PING | {"id": []}, HELLO | {"version": 2}]
)
def test_hello_is_too_late_after_any_request(first: Header) -> None:
    server = ServerProtocol()
    code_of(server, first)
    with pytest.raises(RefusedError, match="hello must be the first") as caught:
        server.receive(HELLO)
    assert caught.value.code is Code.BAD_REQUEST


@pytest.mark.parametrize("version", [0, 2, -1, 2**64 - 1])
def test_another_version_is_unsupported_and_the_session_continues(version: int) -> None:
    server = ServerProtocol()
    with pytest.raises(RefusedError, match="protocol version here is 1") as caught:
        server.receive({"op": "hello", "version": version})
    assert caught.value.code is Code.UNSUPPORTED
    assert "close" not in said(server.refuse(caught.value))
    assert code_of(server, PING) is None


@pytest.mark.parametrize(
    "header",
    [
        PING,
        {"op": "quit"},
        {"op": "stat", "name": "/"},
        {"op": "put", "name": "a", "size": 5},
        {"op": "put"},
        {"op": 5},
        {"op": ["auth"]},
        {},
    ],
)
def test_other_requests_need_authentication(header: Header) -> None:
    server = ServerProtocol(must_authenticate=True)
    assert code_of(server, header) is Code.AUTH_REQUIRED
    assert code_of(server, AUTH) is None
    assert code_of(server, header) is Code.AUTH_REQUIRED  # the shell has not found the token good
    server.mark_authenticated()
    assert code_of(server, header) is not Code.AUTH_REQUIRED


def test_hello_and_auth_need_no_authentication() -> None:
    server = ServerProtocol(must_authenticate=True)
    assert server.receive(HELLO) == Hello(version=1)
    server.accept(OkReply())
    assert server.receive(AUTH) == Auth(token="t")
    server.mark_authenticated()
    assert said(server.accept(AuthReply(user="ada", can=["read"]))) == {
        "ok": True, "user": "ada", "can": ["read"]
    }  # fmt: skip
    assert server.receive(PING) == Ping()


def test_hello_and_auth_are_checked_before_authentication() -> None:
    server = ServerProtocol(must_authenticate=True)
    assert code_of(server, HELLO | {"version": 2}) is Code.UNSUPPORTED
    assert code_of(server, HELLO) is Code.BAD_REQUEST
    assert code_of(server, {"op": "auth"}) is Code.BAD_REQUEST
    assert code_of(server, AUTH | {"size": 5}) is Code.BAD_REQUEST


def test_the_third_invalid_token_closes() -> None:
    server = ServerProtocol(must_authenticate=True)
    for left in (2, 1, 0):
        server.receive(AUTH)
        assert ("close" in said(server.refuse(BAD_TOKEN))) is (left == 0)
        assert server.closed is (left == 0)
        if left:
            assert code_of(server, PING) is Code.AUTH_REQUIRED


def test_a_server_may_close_after_the_first_invalid_token() -> None:
    server = ServerProtocol(must_authenticate=True)
    server.receive(AUTH)
    assert said(server.refuse(BAD_TOKEN, close=True))["close"] is True


# Nearly valid requests: known operations with arbitrary fields.
requests = st.sampled_from(REQUEST_KINDS).flatmap(
    lambda kind: st.fixed_dictionaries(
        {"op": st.just(kind.op)},
        optional={
            "id": values,
            **{name: good | values for name, good in fields_of(kind).items()},
        },
    )
)


@given(
    st.lists(headers | requests | requests.map(lambda header: header | {"op": 1})), st.booleans()
)
def test_any_header_is_a_request_or_refused(offered: list[Header], locked: bool) -> None:
    server = ServerProtocol(must_authenticate=locked)
    for header in offered:
        try:
            wire = encode_header(header)
        except ValueError:
            continue  # a bad frame never comes so far
        try:
            request = server.receive(said(wire))
            assert type(request) in REQUESTS.values()
            reply = said(server.accept(OkReply()))
        except RefusedError as refusal:
            reply = said(server.refuse(refusal))
        assert reply.get("id") in (header.get("id"), None)


# The client's side


def test_replies_are_matched_in_order() -> None:
    client = ClientProtocol()
    assert said(client.send_request(Ping())) == PING
    assert said(client.send_request(Stat(name="a"))) == {"op": "stat", "name": "a"}
    assert said(client.send_request(Ping())) == PING
    assert client.unanswered == 3
    assert client.receive({"ok": True}) == Response(Ping(), OkReply())
    stat = {"ok": True, "name": "a", "kind": "file", "total": 5, "mtime": 0, "version": "v"}
    assert client.receive(stat) == Response(
        Stat(name="a"), StatReply(name="a", kind="file", total=5, mtime=0, version="v")
    )
    assert client.unanswered == 1
    answer = client.receive({"ok": False, "code": "busy", "message": "later"})
    assert isinstance(answer.reply, RefusedError)
    assert (answer.request, answer.reply.code, str(answer.reply)) == (Ping(), Code.BUSY, "later")
    assert (client.unanswered, client.closed) == (0, False)


def test_a_client_receives_a_pending_reply() -> None:
    client = ClientProtocol()
    request = Commit(upload="u", total=5)
    client.send_request(request)
    pending = {"ok": True, "pending": True, "done": 1, "total": 5}
    assert client.receive(pending) == Response(request, Pending(done=1, total=5))
    assert client.unanswered == 0


@pytest.mark.parametrize("request_", [Ping(), Stat(name="a"), Get(name="a")])
def test_a_client_believes_pending_only_of_what_may_take_long(request_: Request) -> None:
    client = ClientProtocol()
    client.send_request(request_)
    with pytest.raises(ProtocolError, match=f"{request_.op} cannot be pending"):
        client.receive({"ok": True, "pending": True, "done": 1, "total": 5})


def test_a_client_reads_an_unknown_code_as_internal() -> None:
    client = ClientProtocol()
    client.send_request(Ping())
    reply = client.receive({"ok": False, "code": "on-strike", "message": "why not"}).reply
    assert isinstance(reply, RefusedError)
    assert reply.code is Code.INTERNAL


def test_a_reply_may_announce_a_close() -> None:
    client = ClientProtocol()
    client.send_request(Ping())
    client.send_request(Ping())
    assert client.receive({"ok": True, "close": True}).reply == OkReply()
    assert client.closed
    client.receive({"ok": True})
    assert client.closed


@pytest.mark.parametrize("close", [False, None, 1, "true"])
def test_only_true_closes(close: object) -> None:
    client = ClientProtocol()
    client.send_request(Ping())
    client.receive({"ok": True, "close": close})
    assert not client.closed


def test_a_closing_refusal_needs_no_request() -> None:
    client = ClientProtocol()
    with pytest.raises(RefusedError, match="full") as caught:
        client.receive(FULL)
    assert caught.value.code is Code.TOO_MANY_CONNECTIONS
    assert client.closed


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"ok": True},
        {"ok": True, "close": True},
        {"ok": False, "code": "busy", "message": "and the connection stays open"},
        {"ok": False, "code": 5, "message": "", "close": True},
    ],
)
def test_any_other_reply_without_a_request_is_an_error(header: Header) -> None:
    with pytest.raises(ProtocolError):
        ClientProtocol().receive(header)


def test_a_reply_of_another_kind_is_an_error() -> None:
    client = ClientProtocol()
    client.send_request(Stat(name="a"))
    with pytest.raises(ProtocolError, match="name is missing"):
        client.receive({"ok": True})


def test_a_request_that_cannot_be_encoded_expects_no_reply() -> None:
    client = ClientProtocol()
    with pytest.raises(ValueError, match="digest"):
        client.send_request(Get(name="a", digest="BLAKE3"))
    assert client.unanswered == 0


@given(headers)
def test_any_header_is_a_reply_or_an_error(header: Header) -> None:
    client = ClientProtocol()
    client.send_request(Ping())
    try:
        answer = client.receive(header)
    except ProtocolError:
        return
    assert answer.request == Ping()


# Both sides together


@given(st.lists(st.sampled_from(REQUEST_KINDS).flatmap(messages_of), max_size=5), st.data())
def test_both_sides_together(asked: list[Any], data: st.DataObject) -> None:
    client, server = ClientProtocol(), ServerProtocol()
    stream = b"".join(client.send_request(request) for request in asked)
    decoder, replies = Decoder(), list[Any]()
    while stream:
        taken, stream = stream[: decoder.wanted], stream[decoder.wanted :]
        header = decoder.feed(taken)
        if header is None:
            continue
        request = asked[len(replies)]
        reply = data.draw(messages_of(request.reply))
        try:
            assert server.receive(header) == request
            wire = server.accept(reply)
        except RefusedError as refusal:  # hello of another version, or too late
            reply, wire = str(refusal), server.refuse(refusal)
        answer = client.receive(said(wire))
        assert answer.request == request
        if isinstance(reply, str):
            assert isinstance(request, Hello)
            assert str(answer.reply) == reply
        else:
            assert answer.reply == reply
        replies.append(reply)
    assert (client.unanswered, len(replies)) == (0, len(asked))


def test_the_longest_name_and_id_fit_into_a_reply() -> None:
    server = ServerProtocol()
    name = "/".join(['"' * 255] * 16)
    server.receive({"op": "digest", "name": name, "id": "\0" * MAX_ID})
    reply = FileReply(name=name, total=2**63 - 1, version="v" * 200)
    assert said(server.accept(reply))["name"] == name


def test_a_hello_is_answered() -> None:
    server, client = ServerProtocol(), ClientProtocol()
    server.receive(said(client.send_request(Hello(version=1, agent="a", digests=["sha256"]))))
    reply = HelloReply(
        version=1, agent="b", digest="sha256", auth=False, features=[], limits={"block": 65_536}
    )
    assert client.receive(said(server.accept(reply))).reply == reply
