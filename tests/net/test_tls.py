"""TLS streams: handshakes and connections that are disturbed or tampered with."""

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Iterator

import pytest

from ftpkit.errors import (
    ConnectionLostError,
    EndOfStreamError,
    HandshakeError,
    StallTimeoutError,
)
from ftpkit.net.frame_stream import FrameStream
from ftpkit.net.tls_identity import Identity
from ftpkit.protocol.frame import encode_header
from tests.support.tls import TlsClient, running, unverified_context

PATIENT_S = 30.0
SHORT_S = 0.2

IDENTITY = Identity.make()


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
