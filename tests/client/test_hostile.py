"""Hostile servers: invalid, truncated or false replies give one clear error and leave no file."""

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blake3
import pytest

from ftpkit import (
    Address,
    CannotConnectError,
    Client,
    ConnectionLostError,
    CorruptDataError,
    FtpkitError,
    ProtocolError,
    RefusedError,
    Server,
)
from ftpkit.errors import StallTimeoutError
from ftpkit.protocol.status import encode_status
from tests.support.hostile import HELLO, Peer, Script, hostile, relay
from tests.support.status import status, transfer

BLOCK = 4 * 1024 * 1024
BIG = 3 * BLOCK


def b3(data: bytes) -> str:
    return f"blake3:{blake3.blake3(data).hexdigest()}"


def talking_to(address: tuple[str, int]) -> Client:
    return Client(Address(*address), timeout_s=5.0)


def get_reply(data: bytes, **keys: Any) -> dict[str, Any]:
    return {
        "ok": True, "name": "f", "offset": 0, "size": len(data), "total": len(data), "mtime": 0,
        "version": "v", "digest": b3(data), **keys,
    }  # fmt: skip


def sending(data: bytes) -> Script:
    """Send ``data`` to each client, and close the connection."""

    def script(peer: Peer) -> None:
        peer.sock.sendall(data)
        peer.sock.shutdown(1)
        while peer.sock.recv(65_536):
            pass

    return script


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"220 welcome\r\n",
        b"\0\0\0\x02{}",
        b"\0\0\0\x02[]",
        b'\0\0\0\x0b{"ok":true}',
        b"\xff" * 100,
        b"\0\0\0",
        b'\0\0\0\x10{"ok":',
    ],
    ids=range(10),
)
def test_a_server_of_another_protocol(words: bytes) -> None:
    with hostile(sending(words)) as address, talking_to(address) as client:
        with pytest.raises(CannotConnectError) as caught:
            client.ping()
        assert str(address[1]) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_refused_connection() -> None:
    with hostile(sending(b"")) as address:
        pass
    with talking_to(address) as client, pytest.raises(CannotConnectError, match="refused"):
        client.ping()


@pytest.mark.parametrize("host", ["a..b", ".", "a" * 70, "\udcff"])
def test_an_invalid_host_name(host: str) -> None:
    with (
        Client(Address(host)) as client,
        pytest.raises(CannotConnectError, match="name") as caught,
    ):
        client.ping()
    assert caught.value.permanent


def silent(peer: Peer) -> None:
    peer.read(10**9)


def test_a_silent_server() -> None:
    with (
        hostile(silent) as address,
        Client(Address(*address), timeout_s=0.2) as client,
        pytest.raises(CannotConnectError, match="does not answer; is it an ftpkit server"),
    ):
        client.ping()


def test_a_server_that_is_silent_after_hello() -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        silent(peer)

    with (
        hostile(script) as address,
        Client(Address(*address), timeout_s=0.2) as client,
        pytest.raises(StallTimeoutError, match="the peer sent nothing for too long"),
    ):
        client.ping()


def test_an_unknown_digest_algorithm_in_hello() -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.reply({**HELLO, "digest": "md5"})
        peer.read(1)

    with (
        hostile(script) as address,
        talking_to(address) as client,
        pytest.raises(CannotConnectError),
    ):
        client.ping()


def greeted(rest: Callable[[Peer], None]) -> Script:
    def script(peer: Peer) -> None:
        peer.greet()
        rest(peer)

    return script


def answering(*headers: dict[str, Any], body: bytes = b"") -> Script:
    """Answer each request after ``hello`` with the next of ``headers``, then wait."""

    def rest(peer: Peer) -> None:
        for header in headers:
            peer.request()
            peer.reply(header, body if header is headers[-1] else b"")
        peer.read(10**9)

    return greeted(rest)


HALF = bytes(range(256)) * 40

DOWN: list[tuple[Script, type[FtpkitError]]] = [
    (greeted(lambda peer: None), ConnectionLostError),
    (greeted(lambda peer: peer.sock.sendall(b"GARBAGE")), ProtocolError),
    (answering({"ok": 1}), ProtocolError),
    (answering({"ok": True}), ProtocolError),
    (answering({"ok": False}), ProtocolError),
    (answering({"ok": False, "code": "not-found", "message": "no"}), RefusedError),
    (answering({"ok": False, "code": "new-code", "message": "no"}), RefusedError),
    (answering(get_reply(HALF, offset=5), body=HALF), ProtocolError),
    (answering(get_reply(HALF, total=len(HALF) + 1), body=HALF), ProtocolError),
    (answering(get_reply(HALF, size=len(HALF) - 1), body=HALF), ProtocolError),
    (answering(get_reply(HALF, total=-1), body=HALF), ProtocolError),
    (answering({k: v for k, v in get_reply(HALF).items() if k != "digest"}), ProtocolError),
    (answering(get_reply(HALF, digest="md5:" + "00" * 16), body=HALF), ProtocolError),
]


@pytest.mark.parametrize(("script", "error"), DOWN, ids=range(len(DOWN)))
def test_an_invalid_reply_to_a_download(
    script: Script, error: type[FtpkitError], tmp_path: Path
) -> None:
    with hostile(script) as address, talking_to(address) as client:
        with pytest.raises(error) as caught:
            client.get("f", tmp_path / "copy")
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("count", [0, 1, 5_000, len(HALF) - 1])
def test_a_connection_lost_within_a_body(count: int, tmp_path: Path) -> None:
    def rest(peer: Peer) -> None:
        peer.request()
        peer.reply(get_reply(HALF), HALF[:count])

    with (
        hostile(greeted(rest)) as address,
        talking_to(address) as client,
        pytest.raises(ConnectionLostError),
    ):
        client.get("f", tmp_path / "copy")
    assert os.listdir(tmp_path) == []


def test_a_block_that_never_matches_its_digest_is_fetched_three_times(tmp_path: Path) -> None:
    asked: list[int] = []

    def rest(peer: Peer) -> None:
        while True:
            header, _ = peer.request()
            asked.append(header.get("offset", 0))
            peer.reply(get_reply(HALF, digest=b3(b"other")), HALF)

    with (
        hostile(greeted(rest)) as address,
        talking_to(address) as client,
        pytest.raises(CorruptDataError),
    ):
        client.get("f", tmp_path / "copy")
    assert asked == [0, 0, 0]
    assert os.listdir(tmp_path) == []


UP: list[tuple[dict[str, Any], bytes, type[FtpkitError]]] = [
    ({"ok": True, "upload": "u", "block": 65_536, "size": 0}, b"", ProtocolError),
    ({"ok": True, "upload": "u", "block": BLOCK, "size": 43}, bytes(43), ProtocolError),
    ({"ok": True, "upload": "u", "block": BLOCK, "size": 440}, bytes(440), ProtocolError),
    ({"ok": True, "upload": "u", "block": BLOCK, "size": 2**40}, b"", ProtocolError),
    ({"ok": True, "name": "f", "total": 1, "version": "v"}, b"", ProtocolError),
    ({"ok": False, "code": "forbidden", "message": "no"}, b"", RefusedError),
]


@pytest.mark.parametrize(("header", "body", "error"), UP, ids=range(len(UP)))
def test_an_invalid_reply_to_an_upload(
    header: dict[str, Any], body: bytes, error: type[FtpkitError], tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(bytes(BIG))
    with hostile(answering(header, body=body)) as address, talking_to(address) as client:
        with pytest.raises(error) as caught:
            client.put(tmp_path / "f")
        assert type(caught.value) is error


def test_a_connection_lost_within_an_upload(tmp_path: Path) -> None:
    def rest(peer: Peer) -> None:
        peer.request()
        peer.reply({"ok": True, "upload": "u", "block": BLOCK, "size": 0})
        peer.read(BLOCK + 5)

    (tmp_path / "f").write_bytes(bytes(BIG))
    with (
        hostile(greeted(rest)) as address,
        talking_to(address) as client,
        pytest.raises(ConnectionLostError),
    ):
        client.put(tmp_path / "f")


@pytest.mark.parametrize("total", [500_000, BIG])
def test_a_refusal_that_closes_is_raised_while_sending(tmp_path: Path, total: int) -> None:
    def rest(peer: Peer) -> None:
        if total > 1024 * 1024:
            peer.request()
            peer.reply({"ok": True, "upload": "u", "block": BLOCK, "size": 0})
        peer.read(1000)
        peer.reply({"ok": False, "code": "no-space", "message": "full", "close": True})
        peer.sock.shutdown(1)
        while peer.sock.recv(65_536):
            pass

    (tmp_path / "f").write_bytes(bytes(total))
    with hostile(greeted(rest)) as address, talking_to(address) as client:
        with pytest.raises(RefusedError) as caught:
            client.put(tmp_path / "f")
        assert caught.value.code == "no-space"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a reset may eat the refusal")
def test_a_refusal_is_raised_also_if_the_connection_is_reset_after_it(tmp_path: Path) -> None:
    def rest(peer: Peer) -> None:
        peer.request()
        peer.reply({"ok": True, "upload": "u", "block": BLOCK, "size": 0})
        peer.read(1000)
        peer.reply({"ok": False, "code": "no-space", "message": "full", "close": True})

    with open(tmp_path / "f", "wb") as file:
        file.truncate(64 * 1024 * 1024)
    with (
        hostile(greeted(rest)) as address,
        talking_to(address) as client,
        pytest.raises(RefusedError, match="full"),
    ):
        client.put(tmp_path / "f")


def test_a_server_that_reports_every_block_as_damaged(tmp_path: Path) -> None:
    def rest(peer: Peer) -> None:
        peer.request()
        peer.reply({"ok": True, "upload": "u", "block": BLOCK, "size": 0})
        while True:
            peer.request()
            peer.reply({"ok": False, "code": "digest-mismatch", "message": "bad"})

    (tmp_path / "f").write_bytes(bytes(BLOCK))
    with (
        hostile(greeted(rest)) as address,
        talking_to(address) as client,
        pytest.raises(CorruptDataError),
    ):
        client.put(tmp_path / "f")
    (tmp_path / "f").write_bytes(b"small")
    always = {"ok": False, "code": "digest-mismatch", "message": "bad"}
    with (
        hostile(answering(*[always] * 3)) as address,
        talking_to(address) as client,
        pytest.raises(CorruptDataError),
    ):
        client.put(tmp_path / "f")


def list_line(name: str) -> bytes:
    return b'{"name":"%s","kind":"file","total":0,"mtime":0}\n' % name.encode()


@pytest.mark.parametrize(
    ("keys", "page", "error"),
    [
        ({}, b"not json\n", ProtocolError),
        ({}, b'{"name":1}\n', ProtocolError),
        ({"digest": b3(b"other")}, list_line("a"), CorruptDataError),
        ({"digest": "md5:00"}, list_line("a"), ProtocolError),
        ({"size": 2**40}, b"", ProtocolError),
        ({"next": 7}, list_line("a"), ProtocolError),
    ],
)
def test_an_invalid_list_reply(keys: dict[str, Any], page: bytes, error: type[FtpkitError]) -> None:
    header = {"ok": True, "size": len(page), "digest": b3(page), "next": None, **keys}
    with (
        hostile(answering(header, body=page)) as address,
        talking_to(address) as client,
        pytest.raises(error),
    ):
        list(client.list())


def test_a_list_whose_page_cursor_does_not_advance(tmp_path: Path) -> None:
    page = list_line("a")
    header = {"ok": True, "size": len(page), "digest": b3(page), "next": "a"}

    def rest(peer: Peer) -> None:
        while True:
            peer.request()
            peer.reply(header, page)

    with (
        hostile(greeted(rest)) as address,
        talking_to(address) as client,
        pytest.raises(ProtocolError),
    ):
        list(client.list())


def test_damaged_headers_never_make_a_wrong_file(tmp_path: Path) -> None:
    """A flipped bit in a length or a brace breaks the connection, and never makes a wrong file."""
    served = tmp_path / "root"
    served.mkdir()
    (tmp_path / "f").write_bytes(b"x" * 10)
    with Server(served, port=0) as server:
        for flip in range(0, 400, 7):
            with (
                relay(server.address, up=(flip,)) as address,
                talking_to(address) as client,
                contextlib.suppress(FtpkitError),
            ):
                client.put(tmp_path / "f")
            found = [p for p in served.iterdir() if p.name != ".ftpkit" and p.is_file()]
            for path in found:
                path.chmod(0o600)  # its mode may be what was damaged
            assert all(p.read_bytes() == b"x" * 10 for p in found)
            for path in found:
                path.unlink()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff\xfe",
        b'{"uptime_s": NaN}',
        b"[" * 100_000,
        encode_status(status(uptime_s=-1)),
        encode_status(status(transfer(total="all"))),
        encode_status(status())[:-1],
    ],
    ids=range(9),
)
def test_an_invalid_status_reply(body: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        peer.request()
        peer.reply({"ok": True, "size": len(body)}, body)
        peer.request()
        peer.reply({"ok": True})

    with hostile(script) as address, talking_to(address) as client:
        with pytest.raises(ProtocolError):
            client.status()
        client.ping()


def test_a_status_reply_that_is_too_long() -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        peer.request()
        peer.reply({"ok": True, "size": 2**62}, bytes(100))

    with (
        hostile(script) as address,
        talking_to(address) as client,
        pytest.raises(ProtocolError, match="invalid status reply"),
    ):
        client.status()


def test_a_status_reply_that_is_truncated() -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        peer.request()
        peer.reply({"ok": True, "size": 100}, bytes(99))

    with (
        hostile(script) as address,
        talking_to(address) as client,
        pytest.raises(ConnectionLostError),
    ):
        client.status()


# Progress that is none


def pending_for_ever(asked: list[str], **keys: Any) -> Script:
    """Answer every request with the same pending reply; ``asked`` gets their operations."""

    def script(peer: Peer) -> None:
        peer.greet()
        while True:
            header, _ = peer.request()
            asked.append(header["op"])
            peer.reply({"ok": True, "pending": True, "done": 1, "total": 5, **keys})

    return script


def test_a_server_that_is_pending_for_ever_is_asked_seldom_and_given_up() -> None:
    asked: list[str] = []
    with (
        hostile(pending_for_ever(asked)) as address,
        Client(Address(*address), timeout_s=2.0) as client,
        pytest.raises(StallTimeoutError, match="no progress"),
    ):
        client.digest("f")
    assert 3 < len(asked) < 12


def test_a_put_that_is_pending_for_ever_is_given_up(tmp_path: Path) -> None:
    asked: list[str] = []
    (tmp_path / "f").write_bytes(b"body")
    with (
        hostile(pending_for_ever(asked, job="j")) as address,
        Client(Address(*address), timeout_s=1.0) as client,
        pytest.raises(StallTimeoutError, match="no progress"),
    ):
        client.put(tmp_path / "f")
    assert asked[:2] == ["put", "wait"]
    assert len(asked) < 12


def test_pending_is_believed_only_of_what_may_take_long(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"body")
    for operation in (
        lambda client: client.stat("f"),
        lambda client: client.ping(),
        lambda client: list(client.list()),
        lambda client: client.put(tmp_path / "f"),  # a pending reply that names no job
    ):
        asked: list[str] = []
        with (
            hostile(pending_for_ever(asked)) as address,
            talking_to(address) as client,
            pytest.raises(ProtocolError),
        ):
            operation(client)
        assert len(asked) == 1


def test_replies_that_answer_no_request_end_the_wait_for_a_pending_one() -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        peer.request()
        for _ in range(100):
            peer.reply({"ok": True, "pending": True, "done": 1, "total": 5})
        peer.request()

    with (
        hostile(script) as address,
        talking_to(address) as client,
        pytest.raises(ProtocolError, match="a reply without a request"),
    ):
        client.digest("f")
