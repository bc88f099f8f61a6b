"""TLS: identities, verification of servers, and connections that are tampered with."""

import base64
import contextlib
import hashlib
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from hypothesis import given
from hypothesis import strategies as st

from ftpkit.errors import (
    CannotConnectError,
    Code,
    ConnectionLostError,
    EndOfStreamError,
    FtpkitError,
    HandshakeError,
    RefusedError,
    StallTimeoutError,
    UntrustedError,
)
from ftpkit.net import trust
from ftpkit.net.frame_stream import FrameStream
from ftpkit.net.tls_identity import Identity
from ftpkit.net.trust import ConfirmPin, pin_of
from ftpkit.osapi import files as os_files
from ftpkit.protocol.frame import encode_header
from tests.support.tls import APPLICATION_DATA, Authority, TlsClient, records, unverified_context

PATIENT_S = 30.0
SHORT_S = 0.2
HOST = "files.example.org"

IDENTITY = Identity.make()


@pytest.fixture
def pair() -> Iterator[tuple[FrameStream, socket.socket]]:
    """A stream, and the bare socket of its peer."""
    ours, peer = socket.socketpair()
    peer.settimeout(PATIENT_S)
    stream = FrameStream(ours, stall_timeout_s=PATIENT_S)
    yield stream, peer
    stream.close()
    peer.close()


@contextlib.contextmanager
def running(work: Callable[[], object]) -> Iterator[list[BaseException]]:
    """Run ``work`` in a thread beside the block; yield a list of what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except (OSError, ConnectionLostError) as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield raised
    finally:
        thread.join(PATIENT_S)
        assert not thread.is_alive()


# Identities


def test_every_generated_identity_has_its_own_pin() -> None:
    assert len(IDENTITY.pin) == 43
    assert IDENTITY.pin != Identity.make().pin
    assert Identity(IDENTITY.certificate, IDENTITY.key) == IDENTITY


def test_a_pin_is_the_digest_of_the_public_key() -> None:
    key = load_pem_private_key(IDENTITY.key, None).public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = base64.urlsafe_b64encode(hashlib.sha256(spki).digest())
    assert IDENTITY.pin == digest.decode().rstrip("=")


@pytest.mark.parametrize("version", [x509.Version.v1, x509.Version.v3])
@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["P-384", "RSA", "Ed25519"],
)
def test_a_key_of_any_kind_is_found_in_its_certificate(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey,
    version: x509.Version,
) -> None:
    certificate = bytearray(Authority().certify(key))
    if version is x509.Version.v1:
        at = certificate.index(b"\xa0\x03\x02\x01\x02")
        del certificate[at : at + 5]
        for place in (2, 6):
            length = int.from_bytes(certificate[place : place + 2], "big") - 5
            certificate[place : place + 2] = length.to_bytes(2, "big")
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = base64.urlsafe_b64encode(hashlib.sha256(spki).digest())
    assert pin_of(bytes(certificate)) == digest.decode().rstrip("=")


@given(st.data())
def test_an_invalid_certificate_is_a_value_error(data: st.DataObject) -> None:
    der = ssl.PEM_cert_to_DER_cert(IDENTITY.certificate.decode())
    at = data.draw(st.integers(0, len(der)))
    with contextlib.suppress(ValueError):
        pin_of(der[:at] + data.draw(st.binary(max_size=20)))


def test_the_private_key_is_not_in_the_repr() -> None:
    assert "KEY" not in repr(IDENTITY)


def test_an_identity_is_read_from_its_files(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate", tmp_path / "key"
    certificate.write_bytes(IDENTITY.certificate)
    key.write_bytes(IDENTITY.key)
    assert Identity.read(str(certificate), str(key)) == IDENTITY


def encrypted() -> bytes:
    key = load_pem_private_key(IDENTITY.key, None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))


@pytest.mark.parametrize(
    ("certificate", "key", "message"),
    [
        (b"", IDENTITY.key, "c is not a certificate"),
        (IDENTITY.key, IDENTITY.key, "c is not a certificate"),
        (IDENTITY.certificate, b"\0\xff", "k is not a private key"),
        (IDENTITY.certificate, IDENTITY.certificate, "k is not a private key"),
        (IDENTITY.certificate, Identity.make().key, "k does not match .*c"),
        (IDENTITY.certificate, encrypted(), "k is encrypted"),
    ],
)
def test_invalid_identity_files_are_a_value_error_with_the_reason(
    tmp_path: Path, certificate: bytes, key: bytes, message: str
) -> None:
    (tmp_path / "c").write_bytes(certificate)
    (tmp_path / "k").write_bytes(key)
    with pytest.raises(ValueError, match=message):
        Identity.read(str(tmp_path / "c"), str(tmp_path / "k"))


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Identity.read(str(tmp_path / "c"), str(tmp_path / "k"))


# Verification


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


def test_a_client_without_tls_1_3_gets_a_protocol_version_alert(
    pair: tuple[FrameStream, socket.socket],
) -> None:
    stream, sock = pair
    old = unverified_context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with running(lambda: old.wrap_socket(sock)) as raised:
        with pytest.raises(HandshakeError) as caught:
            stream.start_tls(IDENTITY.context(), PATIENT_S)
        stream.close()
    assert caught.value.code == "tls-failed"
    assert "protocol" in str(caught.value)
    assert "PROTOCOL_VERSION" in str(raised[0])


# Tampering

FRAMES = [encode_header({"n": n}) for n in range(3)]


def complete_handshake(sock: socket.socket, client: TlsClient) -> bytes:
    """Return the bytes that complete the handshake, without sending them."""
    sock.sendall(client.hello())
    while not (last := client.finish(sock.recv(1 << 16))):
        pass
    return last


def serve(stream: FrameStream, found: list[object]) -> None:
    """Read as a server until an error, recording headers and the error in ``found``; close."""
    try:
        stream.start_tls(CONTEXT, PATIENT_S)
        found.append("connected")
        while True:
            found.append(stream.read_header()["n"])
    except ConnectionLostError as error:
        found.append(type(error))
    finally:
        stream.close()


CONTEXT = IDENTITY.context()


@contextlib.contextmanager
def conversation() -> Iterator[tuple[socket.socket, TlsClient, bytes, list[object]]]:
    """Yield a client's socket, its TLS, the end of its handshake, and what the server reads."""
    ours, sock = socket.socketpair()
    sock.settimeout(PATIENT_S)
    stream, client, found = (
        FrameStream(ours, stall_timeout_s=PATIENT_S),
        TlsClient(),
        list[object](),
    )
    thread = threading.Thread(target=serve, args=(stream, found))
    thread.start()
    try:
        yield sock, client, complete_handshake(sock, client), found
    finally:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        thread.join(PATIENT_S)
        assert not thread.is_alive()
        sock.close()


def test_frames_that_arrive_with_the_end_of_the_handshake_are_read() -> None:
    with conversation() as (sock, client, last, found):
        sock.sendall(last + client.encrypt(*FRAMES))
    assert found == ["connected", 0, 1, 2, EndOfStreamError]


def test_the_server_sends_no_session_ticket() -> None:
    with conversation() as (sock, _, last, _):
        sock.sendall(last)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""


def test_a_connection_truncated_at_any_byte_gives_whole_frames_then_an_error() -> None:
    at, length, pair = 0, 1, set[object]()
    while at < length:
        with conversation() as (sock, client, last, found):
            sent = last + client.encrypt(*FRAMES)
            length = len(sent)
            sock.sendall(sent[:at])
        whole, end = found[:-1], found[-1]
        assert whole == ["connected", 0, 1, 2][: len(whole)]
        assert isinstance(end, type)
        assert issubclass(end, ConnectionLostError)
        pair.add(end)
        at += 1
    assert EndOfStreamError in pair


def test_every_changed_byte_is_detected() -> None:
    at, length = 0, 1
    while at < length:
        with conversation() as (sock, client, last, found):
            sent = bytearray(last + client.encrypt(*FRAMES))
            length = len(sent)
            sent[at] ^= 1 << at % 8
            sock.sendall(sent)
        assert len(found) < len(["connected", *FRAMES, "end"]), at
        assert found[:-1] == ["connected", 0, 1, 2][: len(found) - 1]
        at += 3


def test_a_replayed_record_is_detected() -> None:
    with conversation() as (sock, client, last, found):
        sock.sendall(last + client.encrypt(FRAMES[0]) * 2)
    assert found == ["connected", 0, ConnectionLostError]


def test_plaintext_after_the_handshake_is_rejected() -> None:
    with conversation() as (sock, client, last, found):
        sock.sendall(last + client.encrypt(FRAMES[0]) + FRAMES[1])
    assert found == ["connected", 0, ConnectionLostError]


@pytest.mark.parametrize("size", [1, 100])
def test_a_handshake_may_arrive_in_pieces(size: int) -> None:
    with conversation() as (sock, client, last, found):
        sent = last + client.encrypt(*FRAMES)
        for at in range(0, len(sent), size):
            sock.sendall(sent[at : at + size])
    assert found == ["connected", 0, 1, 2, EndOfStreamError]


def test_a_truncated_hello_is_a_lost_connection() -> None:
    hello = TlsClient().hello()
    for at in [*range(1, len(hello), 7), len(hello)]:
        ours, sock = socket.socketpair()
        with ours, sock:
            sock.sendall(hello[:at])
            sock.shutdown(socket.SHUT_WR)
            with pytest.raises(ConnectionLostError):
                FrameStream(ours, stall_timeout_s=PATIENT_S).start_tls(CONTEXT, PATIENT_S)


@pytest.mark.parametrize("sent", [0, 1, 100])
def test_a_stalled_handshake_times_out(pair: tuple[FrameStream, socket.socket], sent: int) -> None:
    stream, sock = pair
    sock.sendall(TlsClient().hello()[:sent])
    with pytest.raises(StallTimeoutError):
        stream.start_tls(CONTEXT, SHORT_S)


@pytest.mark.parametrize("hello", ["too long", "in two records"])
def test_a_hello_longer_than_one_record_is_rejected(
    pair: tuple[FrameStream, socket.socket], hello: str
) -> None:
    stream, sock = pair
    sent = TlsClient().hello()
    if hello == "too long":
        sock.sendall(sent[:6] + (131_000).to_bytes(3, "big") + sent[9:])
    else:
        for part in (sent[5:100], sent[100:]):
            sock.sendall(sent[:3] + len(part).to_bytes(2, "big") + part)
    with pytest.raises(HandshakeError, match="not one record"):
        stream.start_tls(CONTEXT, PATIENT_S)


def test_a_handshake_byte_by_byte_times_out(
    pair: tuple[FrameStream, socket.socket],
) -> None:
    stream, sock = pair
    hello, over = TlsClient().hello(), threading.Event()

    def trickle() -> None:
        for at in range(len(hello)):
            sock.sendall(hello[at : at + 1])
            if over.wait(SHORT_S / 20):
                return

    with running(trickle):
        with pytest.raises(StallTimeoutError):
            stream.start_tls(CONTEXT, SHORT_S)
        over.set()


def test_a_record_byte_by_byte_times_out() -> None:
    ours, sock = socket.socketpair()
    sock.settimeout(PATIENT_S)
    stream, client, over = (
        FrameStream(ours, stall_timeout_s=SHORT_S),
        TlsClient(),
        threading.Event(),
    )
    found: list[object] = []

    def trickle() -> None:
        sent = complete_handshake(sock, client)
        sock.sendall(sent)
        record = client.encrypt(encode_header({"pad": "x" * 1000}))
        for at in range(len(record)):
            sock.sendall(record[at : at + 1])
            if over.wait(SHORT_S / 20):
                return

    with ours, sock, running(trickle):
        serve(stream, found)
        over.set()
    assert found == ["connected", StallTimeoutError]


def test_a_lingering_close_sends_close_notify(
    pair: tuple[FrameStream, socket.socket],
) -> None:
    stream, sock = pair
    with running(lambda: stream.start_tls(CONTEXT, PATIENT_S)):
        strict = unverified_context().wrap_socket(sock, suppress_ragged_eofs=False)
    strict.sendall(os.urandom(100_000))
    with strict, running(lambda: stream.lingering_close(PATIENT_S)):
        assert strict.recv(1) == b""
        strict.close()


class SmallQuanta:
    """Grants quanta of 300 bytes without waiting."""

    def acquire(self) -> int:
        return 300

    def release(self, moved: int) -> None:
        pass


@pytest.mark.parametrize("size", [1, 7, 500, 20_000])
def test_a_body_read_in_quanta_is_whole_however_its_records_arrive(size: int) -> None:
    body, read = os.urandom(40_000), bytearray()
    ours, sock = socket.socketpair()
    stream, client = FrameStream(ours, stall_timeout_s=PATIENT_S), TlsClient()

    def read_limited() -> None:
        stream.start_tls(CONTEXT, PATIENT_S)
        stream.read_header()
        stream.limiter = SmallQuanta()
        read.extend(stream.read_body())

    with ours, sock, running(read_limited):
        sent = complete_handshake(sock, client)
        sent += client.encrypt(encode_header({"size": len(body)}), body[:9], body[9:20_000])
        sent += client.encrypt(body[20_000:])
        for at in range(0, len(sent), size):
            sock.sendall(sent[at : at + size])
    assert read == body


def test_a_stream_can_send_after_shutdown_read(
    pair: tuple[FrameStream, socket.socket],
) -> None:
    stream, sock = pair
    with running(lambda: stream.start_tls(CONTEXT, PATIENT_S)):
        peer = unverified_context().wrap_socket(sock)
    with peer:
        with running(stream.shutdown_read), pytest.raises(EndOfStreamError):
            stream.read_header()
        stream.send(FRAMES[1])
        assert peer.recv(100) == FRAMES[1]
