"""TLS: who is spoken to, and what a stream makes of a conversation that is disturbed."""

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
from tests.support.tls import APPLICATION_DATA, Authority, Talk, any_server, records

PATIENT_S = 30.0
SHORT_S = 0.2
HOST = "files.example.org"

IDENTITY = Identity.make()


@pytest.fixture
def ends() -> Iterator[tuple[FrameStream, socket.socket]]:
    """A stream, and the bare socket of its peer."""
    ours, peer = socket.socketpair()
    peer.settimeout(PATIENT_S)
    stream = FrameStream(ours, stall_timeout_s=PATIENT_S)
    yield stream, peer
    stream.close()
    peer.close()


@contextlib.contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[list[BaseException]]:
    """Do ``work`` in a thread while the block runs; give what it raised, once the block ended."""
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


# Who a server is


def test_an_identity_is_known_by_its_key_alone() -> None:
    assert len(IDENTITY.pin) == 43
    assert IDENTITY.pin != Identity.make().pin
    assert Identity(IDENTITY.certificate, IDENTITY.key) == IDENTITY


def test_a_pin_is_the_digest_of_the_key_alone() -> None:
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
def test_what_is_no_certificate_is_a_value_error(data: st.DataObject) -> None:
    der = ssl.PEM_cert_to_DER_cert(IDENTITY.certificate.decode())
    at = data.draw(st.integers(0, len(der)))
    with contextlib.suppress(ValueError):
        pin_of(der[:at] + data.draw(st.binary(max_size=20)))


def test_the_key_is_not_shown() -> None:
    assert "KEY" not in repr(IDENTITY)


def test_an_identity_is_read_as_it_was_written(tmp_path: Path) -> None:
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
def test_files_that_are_no_identity_say_why(
    tmp_path: Path, certificate: bytes, key: bytes, message: str
) -> None:
    (tmp_path / "c").write_bytes(certificate)
    (tmp_path / "k").write_bytes(key)
    with pytest.raises(ValueError, match=message):
        Identity.read(str(tmp_path / "c"), str(tmp_path / "k"))


def test_a_file_that_is_missing_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Identity.read(str(tmp_path / "c"), str(tmp_path / "k"))


# Who is spoken to


class Peer:
    """Speaks TLS as the server of ``identity``, and keeps every byte that the client sent."""

    def __init__(self, identity: Identity) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sni_callback = self._asked
        identity_context(context, identity)
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        self.raw, self.said, self.name = bytearray(), bytearray(), ""

    def _asked(self, _: object, name: str | None, __: object) -> None:
        self.name = name or ""

    def talk(self, sock: socket.socket) -> None:
        """Shake hands, and answer each thing said with the same, until the client hangs up."""
        shaken = False
        while True:
            try:
                if not shaken:
                    self._tls.do_handshake()
                    shaken = True
                data = self._tls.read(1 << 16)
                self.said += data
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


def greet(
    ends: tuple[FrameStream, socket.socket],
    identity: Identity,
    *,
    pin: str | None = None,
    ask: ConfirmPin | None = None,
) -> Peer:
    """Connect, and have one frame echoed; close the client in any case."""
    stream, sock = ends
    peer = Peer(identity)
    with meanwhile(lambda: peer.talk(sock)):
        try:
            trust.connect(stream, HOST, pin, ask, PATIENT_S)
            stream.send(encode_header({"n": 1}))
            assert stream.read_header() == {"n": 1}
        finally:
            stream.close()
    return peer


def refused(
    ends: tuple[FrameStream, socket.socket],
    identity: Identity,
    *,
    pin: str | None = None,
    ask: ConfirmPin | None = None,
) -> str:
    """Connect to a server that is not trusted; return why, if it heard of us nothing at all."""
    stream, sock = ends
    peer = Peer(identity)
    with (
        meanwhile(lambda: peer.talk(sock)),
        pytest.raises(UntrustedError) as caught,
        contextlib.closing(stream),
    ):
        trust.connect(stream, HOST, pin, ask, PATIENT_S)
    assert peer.said == b""
    assert APPLICATION_DATA not in records(bytes(peer.raw))
    assert caught.value.permanent
    assert caught.value.code == "untrusted"
    return str(caught.value)


def test_the_key_that_is_meant_is_spoken_to(ends: tuple[FrameStream, socket.socket]) -> None:
    peer = greet(ends, IDENTITY, pin=IDENTITY.pin)
    assert peer.said == encode_header({"n": 1})
    assert b'"n"' not in peer.raw
    assert peer.name == HOST


def test_another_key_hears_nothing(ends: tuple[FrameStream, socket.socket]) -> None:
    reason = refused(ends, Identity.make(), pin=IDENTITY.pin)
    assert "does not match the pinned key" in reason
    assert "a new login URL" in reason


def test_also_a_key_that_authorities_vouch_for_hears_nothing_if_another_is_meant(
    ends: tuple[FrameStream, socket.socket], authority: Authority
) -> None:
    assert "does not match the pinned key" in refused(ends, authority.vouch(HOST), pin=IDENTITY.pin)


def test_a_key_is_asked_about_and_accepted(ends: tuple[FrameStream, socket.socket]) -> None:
    asked: list[str] = []

    def ask(pin: str) -> bool:
        asked.append(pin)
        return True

    greet(ends, IDENTITY, ask=ask)
    assert asked == [IDENTITY.pin]


def test_a_key_that_is_not_accepted_hears_nothing(ends: tuple[FrameStream, socket.socket]) -> None:
    assert "not accepted" in refused(ends, IDENTITY, ask=lambda _: False)


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """The only authority that this system trusts."""
    authority = Authority()
    (tmp_path / "authorities").write_bytes(authority.certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authorities"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    return authority


def test_who_an_authority_vouches_for_is_spoken_to(
    ends: tuple[FrameStream, socket.socket], authority: Authority
) -> None:
    greet(ends, authority.vouch(HOST))


def test_who_nobody_vouches_for_hears_nothing(
    ends: tuple[FrameStream, socket.socket], authority: Authority
) -> None:
    reason = refused(ends, IDENTITY)
    assert "cannot verify the TLS certificate" in reason
    assert ": self-signed certificate." in reason
    assert "ftpkit login URL" in reason


def test_the_certificate_of_another_host_is_worth_nothing(
    ends: tuple[FrameStream, socket.socket], authority: Authority
) -> None:
    assert "hostname mismatch" in refused(ends, authority.vouch("files.example.com"))


def test_a_certificate_that_has_expired_is_worth_nothing(
    ends: tuple[FrameStream, socket.socket], authority: Authority
) -> None:
    old = authority.vouch(HOST, since=timedelta(days=-3), until=timedelta(days=-2))
    assert "expired" in refused(ends, old)


def test_an_authority_that_nobody_knows_is_worth_nothing(
    ends: tuple[FrameStream, socket.socket], authority: Authority
) -> None:
    refused(ends, Authority().vouch(HOST))


# Who does not speak TLS


def answered(
    ends: tuple[FrameStream, socket.socket], answer: bytes, limit_s: float = PATIENT_S
) -> FtpkitError:
    """Return how it ends when somebody answers with these bytes, and says no more."""
    stream, sock = ends
    sock.sendall(answer)
    if answer:
        sock.shutdown(socket.SHUT_WR)
    with pytest.raises((ConnectionLostError, RefusedError)) as caught:
        trust.connect(stream, HOST, IDENTITY.pin, None, limit_s)
    return caught.value


@pytest.mark.parametrize("code", [Code.TOO_MANY_CONNECTIONS, Code.SHUTTING_DOWN, Code.TIMEOUT])
def test_a_server_that_has_no_time_says_so_in_plaintext(
    ends: tuple[FrameStream, socket.socket], code: Code
) -> None:
    error = answered(ends, encode_header({"ok": False, "code": code, "message": "\x1b[2J"}))
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
def test_somebody_else_is_not_tried_again(
    ends: tuple[FrameStream, socket.socket], answer: bytes
) -> None:
    error = answered(ends, answer)
    assert isinstance(error, CannotConnectError)
    assert error.permanent
    assert not isinstance(error, UntrustedError)
    assert "TLS" in str(error)


def test_a_server_that_hangs_up_is_tried_again(ends: tuple[FrameStream, socket.socket]) -> None:
    stream, sock = ends
    sock.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionLostError) as caught:
        trust.connect(stream, HOST, IDENTITY.pin, None, PATIENT_S)
    assert not getattr(caught.value, "permanent", False)


def test_a_server_that_says_nothing_is_given_up(ends: tuple[FrameStream, socket.socket]) -> None:
    error = answered(ends, b"", SHORT_S)
    assert isinstance(error, CannotConnectError)
    assert not error.permanent


def test_a_client_without_tls_1_3_is_refused_and_told(
    ends: tuple[FrameStream, socket.socket],
) -> None:
    stream, sock = ends
    old = any_server()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with meanwhile(lambda: old.wrap_socket(sock)) as told:
        with pytest.raises(HandshakeError) as caught:
            stream.start_tls(IDENTITY.context(), PATIENT_S)
        stream.close()
    assert caught.value.code == "tls-failed"
    assert "protocol" in str(caught.value)
    assert "PROTOCOL_VERSION" in str(told[0])


# Conversations that are disturbed

FRAMES = [encode_header({"n": n}) for n in range(3)]


def shake_hands(sock: socket.socket, talk: Talk) -> bytes:
    """Let a server answer the hello of ``talk``; return what the client then sends.

    The server is still waiting for it.
    """
    sock.sendall(talk.hello())
    while not (last := talk.finish(sock.recv(1 << 16))):
        pass
    return last


def serve(stream: FrameStream, found: list[object]) -> None:
    """Read as a server does, until something ends it, and close; say in ``found`` what was read."""
    try:
        stream.start_tls(CONTEXT, PATIENT_S)
        found.append("shaken")
        while True:
            found.append(stream.read_header()["n"])
    except ConnectionLostError as error:
        found.append(type(error))
    finally:
        stream.close()


CONTEXT = IDENTITY.context()


@contextlib.contextmanager
def conversation() -> Iterator[tuple[socket.socket, Talk, bytes, list[object]]]:
    """A client's socket, its half of TLS, its end of the handshake, and what the server reads."""
    ours, sock = socket.socketpair()
    sock.settimeout(PATIENT_S)
    stream, talk, found = FrameStream(ours, stall_timeout_s=PATIENT_S), Talk(), list[object]()
    thread = threading.Thread(target=serve, args=(stream, found))
    thread.start()
    try:
        yield sock, talk, shake_hands(sock, talk), found
    finally:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        thread.join(PATIENT_S)
        assert not thread.is_alive()
        sock.close()


def test_what_comes_with_the_end_of_the_handshake_is_not_waited_for() -> None:
    with conversation() as (sock, talk, last, found):
        sock.sendall(last + talk.say(*FRAMES))
    assert found == ["shaken", 0, 1, 2, EndOfStreamError]


def test_no_ticket_comes_behind_the_handshake() -> None:
    with conversation() as (sock, _, last, _):
        sock.sendall(last)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""


def test_cut_anywhere_it_gives_whole_frames_and_then_an_error_or_the_end() -> None:
    at, length, ends = 0, 1, set[object]()
    while at < length:
        with conversation() as (sock, talk, last, found):
            said = last + talk.say(*FRAMES)
            length = len(said)
            sock.sendall(said[:at])
        whole, end = found[:-1], found[-1]
        assert whole == ["shaken", 0, 1, 2][: len(whole)]
        assert isinstance(end, type)
        assert issubclass(end, ConnectionLostError)
        ends.add(end)
        at += 1
    assert EndOfStreamError in ends


def test_a_byte_that_was_changed_anywhere_is_noticed() -> None:
    at, length = 0, 1
    while at < length:
        with conversation() as (sock, talk, last, found):
            said = bytearray(last + talk.say(*FRAMES))
            length = len(said)
            said[at] ^= 1 << at % 8
            sock.sendall(said)
        assert len(found) < len(["shaken", *FRAMES, "end"]), at
        assert found[:-1] == ["shaken", 0, 1, 2][: len(found) - 1]
        at += 3


def test_a_record_that_is_sent_twice_is_noticed() -> None:
    with conversation() as (sock, talk, last, found):
        sock.sendall(last + talk.say(FRAMES[0]) * 2)
    assert found == ["shaken", 0, ConnectionLostError]


def test_nobody_can_go_on_in_plaintext() -> None:
    with conversation() as (sock, talk, last, found):
        sock.sendall(last + talk.say(FRAMES[0]) + FRAMES[1])
    assert found == ["shaken", 0, ConnectionLostError]


@pytest.mark.parametrize("size", [1, 100])
def test_a_handshake_in_pieces_is_one(size: int) -> None:
    with conversation() as (sock, talk, last, found):
        said = last + talk.say(*FRAMES)
        for at in range(0, len(said), size):
            sock.sendall(said[at : at + size])
    assert found == ["shaken", 0, 1, 2, EndOfStreamError]


def test_a_hello_that_ends_anywhere_is_no_handshake() -> None:
    hello = Talk().hello()
    for at in [*range(1, len(hello), 7), len(hello)]:
        ours, sock = socket.socketpair()
        with ours, sock:
            sock.sendall(hello[:at])
            sock.shutdown(socket.SHUT_WR)
            with pytest.raises(ConnectionLostError):
                FrameStream(ours, stall_timeout_s=PATIENT_S).start_tls(CONTEXT, PATIENT_S)


@pytest.mark.parametrize("sent", [0, 1, 100])
def test_a_handshake_that_stands_still_ends(
    ends: tuple[FrameStream, socket.socket], sent: int
) -> None:
    stream, sock = ends
    sock.sendall(Talk().hello()[:sent])
    with pytest.raises(StallTimeoutError):
        stream.start_tls(CONTEXT, SHORT_S)


@pytest.mark.parametrize("hello", ["too long", "in two records"])
def test_for_a_hello_no_more_memory_is_taken_than_for_a_record(
    ends: tuple[FrameStream, socket.socket], hello: str
) -> None:
    stream, sock = ends
    said = Talk().hello()
    if hello == "too long":
        sock.sendall(said[:6] + (131_000).to_bytes(3, "big") + said[9:])
    else:
        for part in (said[5:100], said[100:]):
            sock.sendall(said[:3] + len(part).to_bytes(2, "big") + part)
    with pytest.raises(HandshakeError, match="not one record"):
        stream.start_tls(CONTEXT, PATIENT_S)


def test_a_handshake_byte_by_byte_may_take_no_longer(
    ends: tuple[FrameStream, socket.socket],
) -> None:
    stream, sock = ends
    hello, over = Talk().hello(), threading.Event()

    def trickle() -> None:
        for at in range(len(hello)):
            sock.sendall(hello[at : at + 1])
            if over.wait(SHORT_S / 20):
                return

    with meanwhile(trickle):
        with pytest.raises(StallTimeoutError):
            stream.start_tls(CONTEXT, SHORT_S)
        over.set()


def test_a_record_byte_by_byte_may_take_no_longer_than_silence() -> None:
    ours, sock = socket.socketpair()
    sock.settimeout(PATIENT_S)
    stream, talk, over = FrameStream(ours, stall_timeout_s=SHORT_S), Talk(), threading.Event()
    found: list[object] = []

    def trickle() -> None:
        said = shake_hands(sock, talk)
        sock.sendall(said)
        record = talk.say(encode_header({"pad": "x" * 1000}))
        for at in range(len(record)):
            sock.sendall(record[at : at + 1])
            if over.wait(SHORT_S / 20):
                return

    with ours, sock, meanwhile(trickle):
        serve(stream, found)
        over.set()
    assert found == ["shaken", StallTimeoutError]


def test_the_last_reply_is_seen_before_the_end_and_the_end_is_said(
    ends: tuple[FrameStream, socket.socket],
) -> None:
    stream, sock = ends
    with meanwhile(lambda: stream.start_tls(CONTEXT, PATIENT_S)):
        strict = any_server().wrap_socket(sock, suppress_ragged_eofs=False)
    strict.sendall(os.urandom(100_000))
    with strict, meanwhile(lambda: stream.lingering_close(PATIENT_S)):
        assert strict.recv(1) == b""
        strict.close()


class Turns:
    """Turns of a few bytes, without waiting."""

    def acquire(self) -> int:
        return 300

    def release(self, moved: int) -> None:
        pass


@pytest.mark.parametrize("size", [1, 7, 500, 20_000])
def test_a_body_in_turns_is_whole_however_its_records_arrive(size: int) -> None:
    body, read = os.urandom(40_000), bytearray()
    ours, sock = socket.socketpair()
    stream, talk = FrameStream(ours, stall_timeout_s=PATIENT_S), Talk()

    def read_in_turns() -> None:
        stream.start_tls(CONTEXT, PATIENT_S)
        stream.read_header()
        stream.limiter = Turns()
        read.extend(stream.read_body())

    with ours, sock, meanwhile(read_in_turns):
        said = shake_hands(sock, talk)
        said += talk.say(encode_header({"size": len(body)}), body[:9], body[9:20_000])
        said += talk.say(body[20_000:])
        for at in range(0, len(said), size):
            sock.sendall(said[at : at + size])
    assert read == body


def test_a_stream_that_stops_reading_can_still_speak(
    ends: tuple[FrameStream, socket.socket],
) -> None:
    stream, sock = ends
    with meanwhile(lambda: stream.start_tls(CONTEXT, PATIENT_S)):
        peer = any_server().wrap_socket(sock)
    with peer:
        with meanwhile(stream.shutdown_read), pytest.raises(EndOfStreamError):
            stream.read_header()
        stream.send(FRAMES[1])
        assert peer.recv(100) == FRAMES[1]
