"""A server that speaks TLS: what it says to whom, on its one port."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ftpkit import Client, Server
from ftpkit.client import UdpMode
from ftpkit.errors import CannotConnectError
from ftpkit.net import trust
from ftpkit.net.address import Url
from ftpkit.net.frame_stream import FrameStream
from ftpkit.net.tls_identity import Identity
from ftpkit.osapi import sockets as os_sockets
from ftpkit.server.limits import Limits
from tests.support.logs import Log
from tests.support.raw import TIMEOUT_S, Raw, frame, frames_in
from tests.support.tls import TlsClient, secure, unverified_context

SHORT_S = 0.3
IDENTITY = Identity.make()


@pytest.fixture
def server(root: Path) -> Iterator[Server]:
    """A server that requires TLS, with a short stall timeout."""
    with Server(root, port=0, identity=IDENTITY, limits=Limits(stall_timeout_s=SHORT_S)) as server:
        yield server


def shown(raw: Raw) -> bytes:
    """Return the certificate that a server has shown."""
    assert isinstance(raw.sock, ssl.SSLSocket)
    return raw.sock.getpeercert(binary_form=True) or b""


def test_a_file_goes_up_and_comes_down(server: Server, root: Path) -> None:
    data = bytes(range(256)) * 8192
    with secure(Raw(server.address)) as raw:
        raw.granted("put", data, name="f")
        assert (root / "f").read_bytes() == data
        assert raw.granted("get", name="f").body == data


def test_a_plaintext_request_is_refused_and_not_carried_out(
    server: Server, root: Path, log: Log
) -> None:
    with Raw(server.address) as raw:
        raw.send({"op": "put", "name": "f", "size": 5}, b"hello")
        reply = raw.receive()
        assert (reply.code, reply.closes) == ("tls-required", True)
        assert "ftpkit login" in reply["message"]
        assert raw.rest() == b""
    log.wait_for("connection", outcome="tls-required", requests=0)
    assert not (root / "f").exists()


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n", b"USER a\r\n"])
def test_a_foreign_protocol_on_a_tls_port_gets_a_readable_reply(
    server: Server, first: bytes
) -> None:
    with Raw(server.address) as raw:
        raw.sock.sendall(first)
        reply = raw.receive()
        assert (reply.code, reply.closes) == ("bad-frame", True)
        assert "ftpkit" in reply["message"]


def test_one_port_may_serve_both(root: Path) -> None:
    with (
        Server(root, port=0, identity=IDENTITY, plain=True) as server,
        Raw(server.address) as plain,
        secure(Raw(server.address)) as other,
    ):
        plain.granted("put", b"hello", name="f")
        assert other.granted("get", name="f").body == b"hello"


def test_a_server_without_a_key_refuses_a_tls_handshake(root: Path) -> None:
    with Server(root, port=0) as server, socket.create_connection(server.address) as sock:
        stream = FrameStream(sock, stall_timeout_s=SHORT_S)
        with pytest.raises(CannotConnectError, match="does not speak TLS"):
            trust.connect(stream, "localhost", IDENTITY.pin, None, SHORT_S)


@pytest.mark.parametrize(
    "sent",
    [b"\x16", b"\x16\x03\x01\x00\x05hello", b"\x16" * 5000, TlsClient().hello()[:-1] + b"\0"],
)
def test_an_invalid_handshake_is_logged_once(server: Server, log: Log, sent: bytes) -> None:
    with socket.create_connection(server.address) as sock:
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
        fields = log.wait_for("connection")
    assert fields["outcome"] in ("tls-failed", "connection-lost")
    assert log.so_far("error") == []


def test_a_client_with_an_old_tls_version_is_logged_once(server: Server, log: Log) -> None:
    old = unverified_context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(server.address) as sock,
        pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"),
    ):
        old.wrap_socket(sock)
    log.wait_for("connection", outcome="tls-failed", requests=0)


@pytest.mark.parametrize("sent", [0, 1, 200])
def test_an_unfinished_handshake_times_out(server: Server, log: Log, sent: int) -> None:
    with socket.create_connection(server.address) as sock:
        sock.sendall(TlsClient().hello()[:sent])
        log.wait_for("connection", outcome="timeout")


def test_an_unfinished_handshake_blocks_no_other_client(root: Path) -> None:
    with Server(root, port=0, identity=IDENTITY) as server, ExitStack() as stack:
        for sent in range(100):
            sock = stack.enter_context(socket.create_connection(server.address))
            sock.sendall(TlsClient().hello()[:sent])
        with secure(Raw(server.address)) as raw:
            raw.granted("ping")


def test_stop_does_not_wait_for_a_handshake(root: Path, log: Log) -> None:
    server = Server(root, port=0, identity=IDENTITY, limits=Limits(stall_timeout_s=3600.0))
    server.start()
    talk = TlsClient()
    with socket.create_connection(server.address) as sock:
        sock.sendall(talk.hello())
        assert sock.recv(1)  # so it waits for the rest
        stopper = threading.Thread(target=server.stop)
        stopper.start()
        stopper.join(5.0)
        assert not stopper.is_alive()
    log.wait_for("connection")


def test_a_tls_connection_over_the_limit_is_refused_and_may_retry(root: Path) -> None:
    with (
        Server(root, port=0, identity=IDENTITY, limits=Limits(max_connections=1)) as server,
        secure(Raw(server.address)) as first,
        socket.create_connection(server.address) as sock,
    ):
        first.granted("ping")
        with pytest.raises(Exception, match="too many connections") as caught:
            trust.connect(FrameStream(sock, stall_timeout_s=9), "here", IDENTITY.pin, None, 9)
        assert getattr(caught.value, "code", "") == "too-many-connections"


def test_a_changed_key_applies_to_new_connections(server: Server) -> None:
    with secure(Raw(server.address)) as before:
        before.granted("ping")
        server.change(Limits(), Identity.make())
        with secure(Raw(server.address)) as after:
            after.granted("ping")
            before.granted("ping")
            assert shown(before) == ssl.PEM_cert_to_DER_cert(IDENTITY.certificate.decode())
            assert shown(after) != shown(before)


def test_an_idle_connection_gets_shutting_down_when_the_server_stops(root: Path) -> None:
    server = Server(root, port=0, identity=IDENTITY)
    server.start()
    with secure(Raw(server.address)) as raw:
        raw.granted("ping")
        stopper = threading.Thread(target=server.stop)
        stopper.start()
        assert raw.receive().code == "shutting-down"
        raw.close()
        stopper.join()


def test_pipelined_requests_in_one_record_are_answered_in_order(server: Server) -> None:
    with secure(Raw(server.address)) as raw:
        raw.sock.sendall(b"".join(frame({"op": "ping", "id": n}) for n in range(500)))
        assert [raw.receive()["id"] for _ in range(500)] == list(range(500))


# Datagrams have their own key, which the connection carries


@pytest.mark.skipif(not os_sockets.HAS_SHARED_PORTS, reason="no datagrams here")
def test_udp_transfers_work_beside_tls_and_plaintext(root: Path, tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096
    (tmp_path / "f").write_bytes(data)
    with Server(root, port=0, identity=IDENTITY) as server:
        url = Url(server.address, pin=IDENTITY.pin)
        with Client(url, udp=UdpMode.ONLY) as client:
            client.put(tmp_path / "f")
            assert (root / "f").read_bytes() == data
            client.get("f", tmp_path / "g")
            assert (tmp_path / "g").read_bytes() == data


@pytest.mark.skipif(not os_sockets.HAS_SHARED_PORTS, reason="no datagrams here")
def test_the_key_of_datagrams_is_not_on_the_wire(root: Path) -> None:
    (root / "f").write_bytes(bytes(70_000))
    seen, talk = bytearray(), TlsClient()
    with (
        Server(root, port=0, identity=IDENTITY) as server,
        socket.create_connection(server.address, timeout=TIMEOUT_S) as sock,
    ):

        def ask(op: str, **keys: object) -> dict[str, Any]:
            sock.sendall(talk.encrypt(frame({"op": op, "name": "f", **keys})))
            heard = b""
            while len(heard) < 4 or len(heard) < 4 + int.from_bytes(heard[:4], "big"):
                arrived = sock.recv(1 << 16)
                seen.extend(arrived)
                heard += talk.decrypt(arrived)
            return next(frames_in(heard)).header

        sock.sendall(talk.hello())
        while not (last := talk.finish(sock.recv(1 << 16))):
            pass
        sock.sendall(last)
        version = ask("stat")["version"]
        key = ask("pull", version=version, block=65_536, ranges=[[0, 2]])["key"]
    assert len(key) == 32
    assert key.encode() not in seen
    assert bytes.fromhex(key) not in seen
    assert version.encode() not in seen
