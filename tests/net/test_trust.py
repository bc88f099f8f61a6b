"""Verification of servers: pins, confirmation, authorities, and servers without TLS."""

import contextlib
import socket
import ssl
from datetime import timedelta
from pathlib import Path

import pytest

from ftpkit.errors import (
    CannotConnectError,
    Code,
    ConnectionLostError,
    FtpkitError,
    RefusedError,
    UntrustedError,
)
from ftpkit.net import trust
from ftpkit.net.frame_stream import FrameStream
from ftpkit.net.tls_identity import Identity
from ftpkit.net.trust import ConfirmPin
from ftpkit.osapi import files as os_files
from ftpkit.protocol.frame import encode_header
from tests.support.tls import APPLICATION_DATA, Authority, records, running

PATIENT_S = 30.0
SHORT_S = 0.2
HOST = "files.example.org"

IDENTITY = Identity.make()


class Peer:
    """A TLS echo server with ``identity``, which keeps every byte that the client sent."""

    def __init__(self, identity: Identity) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sni_callback = self._asked
        identity_context(context, identity)
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        self.raw, self.sent, self.name = bytearray(), bytearray(), ""

    def _asked(self, _: object, name: str | None, __: object) -> None:
        self.name = name or ""

    def serve(self, sock: socket.socket) -> None:
        """Complete the handshake, and echo until the client closes."""
        done = False
        while True:
            try:
                if not done:
                    self._tls.do_handshake()
                    done = True
                data = self._tls.read(1 << 16)
                self.sent += data
                self._tls.write(data)
            except ssl.SSLWantReadError:
                sock.sendall(self._out.read())
                data = sock.recv(1 << 16)
                if not data:
                    return
                self.raw += data
                self._in.write(data)


def identity_context(context: ssl.SSLContext, identity: Identity) -> None:
    with os_files.secret_file(identity.certificate + identity.key) as path:
        context.load_cert_chain(path)


def connect(
    pair: tuple[FrameStream, socket.socket],
    identity: Identity,
    *,
    pin: str | None = None,
    confirm: ConfirmPin | None = None,
) -> Peer:
    """Connect and have one frame echoed; close the client."""
    stream, sock = pair
    peer = Peer(identity)
    with running(lambda: peer.serve(sock)):
        try:
            trust.connect(stream, HOST, pin, confirm, PATIENT_S)
            stream.send(encode_header({"n": 1}))
            assert stream.read_header() == {"n": 1}
        finally:
            stream.close()
    return peer


def rejected(
    pair: tuple[FrameStream, socket.socket],
    identity: Identity,
    *,
    pin: str | None = None,
    confirm: ConfirmPin | None = None,
) -> str:
    """Return the UntrustedError's message; check that no application data was sent."""
    stream, sock = pair
    peer = Peer(identity)
    with (
        running(lambda: peer.serve(sock)),
        pytest.raises(UntrustedError) as caught,
        contextlib.closing(stream),
    ):
        trust.connect(stream, HOST, pin, confirm, PATIENT_S)
    assert peer.sent == b""
    assert APPLICATION_DATA not in records(bytes(peer.raw))
    assert caught.value.permanent
    assert caught.value.code == "untrusted"
    return str(caught.value)


def test_a_server_with_the_pinned_key_is_accepted(pair: tuple[FrameStream, socket.socket]) -> None:
    peer = connect(pair, IDENTITY, pin=IDENTITY.pin)
    assert peer.sent == encode_header({"n": 1})
    assert b'"n"' not in peer.raw
    assert peer.name == HOST


def test_nothing_is_sent_to_a_server_with_another_key(
    pair: tuple[FrameStream, socket.socket],
) -> None:
    reason = rejected(pair, Identity.make(), pin=IDENTITY.pin)
    assert "does not match the pinned key" in reason
    assert "a new login URL" in reason


def test_a_pin_outranks_a_certificate_that_an_authority_has_signed(
    pair: tuple[FrameStream, socket.socket], authority: Authority
) -> None:
    assert "does not match the pinned key" in rejected(
        pair, authority.issue(HOST), pin=IDENTITY.pin
    )


def test_an_unknown_key_can_be_confirmed(pair: tuple[FrameStream, socket.socket]) -> None:
    asked: list[str] = []

    def confirm(pin: str) -> bool:
        asked.append(pin)
        return True

    connect(pair, IDENTITY, confirm=confirm)
    assert asked == [IDENTITY.pin]


def test_nothing_is_sent_to_a_server_whose_key_is_not_confirmed(
    pair: tuple[FrameStream, socket.socket],
) -> None:
    assert "not accepted" in rejected(pair, IDENTITY, confirm=lambda _: False)


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """The only authority that the system trusts."""
    authority = Authority()
    (tmp_path / "authorities").write_bytes(authority.certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authorities"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    return authority


def test_a_certificate_of_a_trusted_authority_is_accepted(
    pair: tuple[FrameStream, socket.socket], authority: Authority
) -> None:
    connect(pair, authority.issue(HOST))


def test_nothing_is_sent_to_a_server_with_a_self_signed_certificate(
    pair: tuple[FrameStream, socket.socket], authority: Authority
) -> None:
    reason = rejected(pair, IDENTITY)
    assert "cannot verify the TLS certificate" in reason
    assert ": self-signed certificate." in reason
    assert "ftpkit login URL" in reason


def test_a_certificate_for_another_host_is_rejected(
    pair: tuple[FrameStream, socket.socket], authority: Authority
) -> None:
    assert "hostname mismatch" in rejected(pair, authority.issue("files.example.com"))


def test_an_expired_certificate_is_rejected(
    pair: tuple[FrameStream, socket.socket], authority: Authority
) -> None:
    old = authority.issue(HOST, since=timedelta(days=-3), until=timedelta(days=-2))
    assert "expired" in rejected(pair, old)


def test_a_certificate_of_an_unknown_authority_is_rejected(
    pair: tuple[FrameStream, socket.socket], authority: Authority
) -> None:
    rejected(pair, Authority().issue(HOST))


# Servers without TLS


def outcome(
    pair: tuple[FrameStream, socket.socket], answer: bytes, limit_s: float = PATIENT_S
) -> FtpkitError:
    """Return the error when the peer replies with ``answer`` and sends nothing more."""
    stream, sock = pair
    sock.sendall(answer)
    if answer:
        sock.shutdown(socket.SHUT_WR)
    with pytest.raises((ConnectionLostError, RefusedError)) as caught:
        trust.connect(stream, HOST, IDENTITY.pin, None, limit_s)
    return caught.value


@pytest.mark.parametrize("code", [Code.TOO_MANY_CONNECTIONS, Code.SHUTTING_DOWN, Code.TIMEOUT])
def test_a_refusal_in_plaintext_is_a_refused_error(
    pair: tuple[FrameStream, socket.socket], code: Code
) -> None:
    error = outcome(pair, encode_header({"ok": False, "code": code, "message": "\x1b[2J"}))
    assert isinstance(error, RefusedError)
    assert error.code == code
    assert "\x1b" not in str(error)


@pytest.mark.parametrize(
    "answer",
    [
        encode_header({"ok": False, "code": "bad-frame", "message": "what?"}),
        encode_header({"ok": True}),
        encode_header({"ok": False, "code": []}),
        b"\0",
        b"\0\0\0\x02[]",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x16\x03\x01\x00\x05hello",
        b"\x15\x03\x03\x00\x02\x02\x46",
    ],
)
def test_a_server_without_tls_is_a_permanent_error(
    pair: tuple[FrameStream, socket.socket], answer: bytes
) -> None:
    error = outcome(pair, answer)
    assert isinstance(error, CannotConnectError)
    assert error.permanent
    assert not isinstance(error, UntrustedError)
    assert "TLS" in str(error)


def test_a_closed_connection_is_not_a_permanent_error(
    pair: tuple[FrameStream, socket.socket],
) -> None:
    stream, sock = pair
    sock.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionLostError) as caught:
        trust.connect(stream, HOST, IDENTITY.pin, None, PATIENT_S)
    assert not getattr(caught.value, "permanent", False)


def test_a_server_that_sends_nothing_times_out(pair: tuple[FrameStream, socket.socket]) -> None:
    error = outcome(pair, b"", SHORT_S)
    assert isinstance(error, CannotConnectError)
    assert not error.permanent
