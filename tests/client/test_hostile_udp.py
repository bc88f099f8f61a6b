"""Hostile servers over UDP: one clear error or a fallback to TCP, and never a hang."""

import contextlib
import select
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import blake3
import pytest

from ftpkit import Address, Client, FtpkitError, ProtocolError, RefusedError
from ftpkit.client import UdpMode as Mode
from ftpkit.client.transfer import udp_session
from ftpkit.errors import StallTimeoutError, UdpBlockedError
from tests.support.hostile import HELLO, Peer, Script, hostile
from tests.support.udp import ACK, DATA, ECHO, END, PROBE, SERVER, Heard, RawDatagrams, pieces_of

BLOCK = 4 * 1024 * 1024
PIECE = 1000
KEY = bytes(range(16))
SESSION = 42

Answer = Callable[["UdpPeer", Heard], Iterator[bytes]]


class UdpPeer(RawDatagrams):
    """The server side of a UDP session, on the port of the TCP connection."""

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address, SESSION, KEY)
        self.sock.close()
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind(address)

    def datagram(self, kind: int, payload: bytes = b"", **keys: Any) -> bytes:
        """Return a datagram of the server."""
        return self.encrypted(kind | SERVER, payload, **keys)

    def echo(self, received: Heard, *, proof: int = 7, size: int = 0) -> bytes:
        """Return the echo of a probe."""
        payload = struct.pack("!QHI", proof, 0, 0).ljust((size or received.size) - 33, b"\0")
        return self.datagram(ECHO, payload, number=received.number)

    def serve(self, peer: Peer, answer: Answer, *, pongs: bool = True) -> None:
        """Answer datagrams and pings until another request or the end of the connection."""
        while True:
            ready, _, _ = select.select([self.sock, peer.sock], [], [], 20)
            assert ready, "the client hangs"
            if self.sock in ready:
                raw, self.address = self.sock.recvfrom(65_535)
                received = self.from_client(raw)
                if received is not None:
                    for each in answer(self, received):
                        self.send(each)
            if peer.sock in ready and pongs:
                request, _ = peer.request()
                if request["op"] != "ping":
                    self.asked = request
                    return
                peer.reply({"ok": True})
            elif peer.sock in ready and not peer.sock.recv(65_536):
                raise ConnectionError

    def from_client(self, raw: bytes) -> Heard | None:
        """Decode a datagram of the client."""
        session, number, block, offset, kind = struct.unpack_from("!IIIIB", raw)
        nonce = bytes([kind]) + bytes(7) + struct.pack("!I", number)
        payload = self._cipher.decrypt(nonce, raw[17:], raw[:17])
        assert (session, kind & SERVER) == (SESSION, 0)
        return Heard(kind, number, block, offset, payload, len(raw), ())


def session_reply(**keys: Any) -> dict[str, Any]:
    return {"ok": True, "session": SESSION, "key": KEY.hex(), **keys}


def greet(peer: Peer) -> None:
    peer.request()
    peer.reply({**HELLO, "features": ["datagrams"]})


def open_pull(peer: Peer, total: int = BLOCK, **keys: Any) -> None:
    """Answer requests up to ``pull``."""
    greet(peer)
    peer.request()
    reply_to_stat(peer, total)
    request, _ = peer.request()
    assert request["op"] == "pull"
    peer.reply(session_reply(**keys))


def reply_to_stat(peer: Peer, total: int = BLOCK) -> None:
    peer.reply(
        {"ok": True, "name": "f", "kind": "file", "total": total, "mtime": 0, "version": "v"}
    )


def open_push(peer: Peer, **keys: Any) -> None:
    """Answer requests up to ``push``."""
    greet(peer)
    peer.request()
    peer.reply({"ok": True, "upload": "u", "block": BLOCK, "size": 0})
    request, _ = peer.request()
    assert request["op"] == "push"
    peer.reply(session_reply(**keys))


def answering(open_session: Callable[[Peer], None], answer: Answer, **keys: Any) -> Script:
    """Open a session, and answer each datagram with ``answer``."""

    def script(peer: Peer) -> None:
        with UdpPeer(peer.sock.getsockname()) as udp:
            open_session(peer)
            udp.serve(peer, answer, **keys)

    return script


@contextlib.contextmanager
def talking_to(*scripts: Script, mode: Mode = Mode.ONLY) -> Iterator[Client]:
    with hostile(*scripts) as address, Client(Address(*address), timeout_s=3.0, udp=mode) as client:
        yield client


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(bytes(BLOCK))
    return path


@pytest.fixture
def here(tmp_path: Path) -> Path:
    path = tmp_path / "here"
    path.mkdir()
    return path


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the limit of ten seconds to one."""
    monkeypatch.setattr(udp_session, "_DEAD_S", 1.0)


def echoes(udp: UdpPeer, received: Heard) -> Iterator[bytes]:
    """Answer probes, and nothing else."""
    if received.kind == PROBE:
        yield udp.echo(received)


# The reply


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": ""},
        {"key": "00" * 15},
        {"key": "00" * 17},
        {"key": "zz" * 16},
        {"key": 5},
        {"key": None},
        {"session": -1},
        {"session": 2**32},
        {"session": "42"},
        {"session": True},
        {"session": 1.5},
    ],
)
def test_an_invalid_session_reply(source: Path, here: Path, wrong: dict[str, Any]) -> None:
    with talking_to(lambda peer: open_push(peer, **wrong)) as client, pytest.raises(ProtocolError):
        client.put(source)
    with talking_to(lambda peer: open_pull(peer, **wrong)) as client, pytest.raises(ProtocolError):
        client.get("f", here / "f")


# Endless datagrams


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("mode", [Mode.ONLY, Mode.FIRST])
def test_endless_echoes_do_not_keep_a_session_alive(source: Path, here: Path, mode: Mode) -> None:
    with (
        talking_to(answering(open_push, echoes), mode=mode) as client,
        pytest.raises(UdpBlockedError if mode is Mode.ONLY else FtpkitError),
    ):
        client.put(source)
    with (
        talking_to(answering(open_pull, echoes), mode=mode) as client,
        pytest.raises(UdpBlockedError if mode is Mode.ONLY else FtpkitError),
    ):
        client.get("f", here / "f")
    assert not (here / "f").exists()


@pytest.mark.usefixtures("_impatient")
def test_endless_datagrams_without_blocks_do_not_keep_a_session_alive(
    source: Path, here: Path
) -> None:
    def nothing_new(udp: UdpPeer, received: Heard) -> Iterator[bytes]:
        yield from echoes(udp, received)
        yield udp.datagram(ACK, struct.pack("!IQ", 0, 0))
        yield udp.datagram(ACK, struct.pack("!IQ", 0, 0), number=1)

    with talking_to(answering(open_push, nothing_new)) as client, pytest.raises(UdpBlockedError):
        client.put(source)

    def never_wanted(udp: UdpPeer, received: Heard) -> Iterator[bytes]:
        yield from echoes(udp, received)
        yield udp.datagram(DATA, bytes(PIECE), block=2**32 - 1, offset=2**32 - 1)
        yield udp.datagram(DATA, bytes(PIECE), number=2**32 - 1)

    with talking_to(answering(open_pull, never_wanted)) as client, pytest.raises(UdpBlockedError):
        client.get("f", here / "f")


@pytest.mark.usefixtures("_impatient")
def test_endless_new_proofs_do_not_keep_a_session_alive(source: Path) -> None:
    proofs = iter(range(1, 2**62))

    def renewed(udp: UdpPeer, received: Heard) -> Iterator[bytes]:
        if received.kind == PROBE:
            yield udp.echo(received, proof=next(proofs))

    with talking_to(answering(open_push, renewed)) as client, pytest.raises(UdpBlockedError):
        client.put(source)


@pytest.mark.usefixtures("_impatient")
def test_silence_over_udp_and_tcp_is_a_lost_connection(source: Path) -> None:
    script = answering(open_push, echoes, pongs=False)
    with talking_to(script) as client, pytest.raises(StallTimeoutError):
        client.put(source)


# Invalid datagrams


PUSHED: dict[str, tuple[int, bytes]] = {
    "short ack": (ACK, b"x"),
    "ack of what was never sent": (ACK, struct.pack("!IQ", 2**32 - 1, 0) + b"\1"),
    "ack without its largest": (ACK, struct.pack("!IQ", 1, 0) + b"\2"),
    "long ack": (ACK, struct.pack("!IQ", 1, 2**64 - 1) + bytes(512) + b"\1"),
    "short echo": (ECHO, b""),
}


@pytest.mark.parametrize("nonsense", PUSHED)
def test_invalid_datagrams_in_a_push(source: Path, nonsense: str) -> None:
    kind, payload = PUSHED[nonsense]

    def answer(udp: UdpPeer, received: Heard) -> Iterator[bytes]:
        yield from echoes(udp, received)
        if received.kind == DATA:
            yield udp.datagram(kind, payload)

    with talking_to(answering(open_push, answer)) as client, pytest.raises(ProtocolError):
        client.put(source)


PULLED: dict[str, dict[str, Any]] = {
    "outside": {"offset": BLOCK + 32},
    "far outside": {"offset": 2**32 - 1},
    "over the end": {"offset": BLOCK},
    "tiny": {"payload": b"x"},
    "empty": {"payload": b""},
}


@pytest.mark.parametrize("nonsense", PULLED)
def test_invalid_datagrams_in_a_pull(here: Path, nonsense: str) -> None:
    keys = {"payload": bytes(PIECE), **PULLED[nonsense]}

    def answer(udp: UdpPeer, received: Heard) -> Iterator[bytes]:
        yield from echoes(udp, received)
        yield udp.datagram(DATA, **keys)

    with talking_to(answering(open_pull, answer)) as client, pytest.raises(ProtocolError):
        client.get("f", here / "f")
    assert not (here / "f").exists()


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("size", [47, 60, 60_000])
def test_echoes_of_lengths_that_were_not_probed(source: Path, size: int) -> None:
    def answer(udp: UdpPeer, received: Heard) -> Iterator[bytes]:
        if received.kind == PROBE:
            yield udp.echo(received, size=size)

    with talking_to(answering(open_push, answer)) as client, pytest.raises(FtpkitError):
        client.put(source)


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("payload", [bytes(27), b"", bytes(1000)])
def test_datagrams_that_a_client_ignores(source: Path, payload: bytes) -> None:
    def answer(udp: UdpPeer, received: Heard) -> Iterator[bytes]:
        yield from echoes(udp, received)
        for kind in (PROBE, 5, 127):
            yield udp.datagram(kind, payload)
        for kind in (DATA, ACK, ECHO, END):
            yield udp.encrypted(kind, payload, number=received.number)
        yield b""
        yield payload

    with talking_to(answering(open_push, answer)) as client, pytest.raises(UdpBlockedError):
        client.put(source)


# The end of a session


def test_a_server_that_ends_the_session_with_a_refusal(source: Path, here: Path) -> None:
    def answer(udp: UdpPeer, received: Heard) -> Iterator[bytes]:
        yield udp.datagram(END)

    def script(open_session: Callable[[Peer], None]) -> Script:
        def play(peer: Peer) -> None:
            with UdpPeer(peer.sock.getsockname()) as udp:
                open_session(peer)
                udp.serve(peer, answer)
                peer.reply({"ok": False, "code": "no-space", "message": "the disk is full"})

        return play

    with (
        talking_to(script(open_push)) as client,
        pytest.raises(RefusedError, match="the disk is full"),
    ):
        client.put(source)
    with (
        talking_to(script(open_pull)) as client,
        pytest.raises(RefusedError, match="the disk is full"),
    ):
        client.get("f", here / "f")


def test_a_server_that_shuts_down_says_so_over_tcp(source: Path) -> None:
    def answer(udp: UdpPeer, received: Heard) -> Iterator[bytes]:
        if received.number == 1:
            peer_of[0].reply(
                {"ok": False, "code": "shutting-down", "message": "stopping", "close": True}
            )
        yield from echoes(udp, received)

    peer_of: list[Peer] = []

    def script(peer: Peer) -> None:
        peer_of[:] = [peer]
        answering(open_push, answer)(peer)

    with talking_to(script) as client, pytest.raises(RefusedError, match="stopping"):
        client.put(source)


def test_a_block_that_does_not_match_its_digest_is_fetched_over_tcp(here: Path) -> None:
    data = bytes(range(256)) * (BLOCK // 256)
    numbers = set[int]()

    def answer(udp: UdpPeer, received: Heard) -> Iterator[bytes]:
        yield from echoes(udp, received)
        if received.kind == PROBE and received.payload[:8] != bytes(8) and not numbers:
            for offset, piece in pieces_of(data, 32_000):
                wrong = bytes([piece[0] ^ 1]) + piece[1:] if offset == 0 else piece
                yield udp.datagram(DATA, wrong, offset=offset)
                numbers.add(udp.numbers[DATA | SERVER])

    def script(peer: Peer) -> None:
        with UdpPeer(peer.sock.getsockname()) as udp:
            open_pull(peer)
            udp.serve(peer, answer)
            assert udp.asked["op"] == "stat"
            reply_to_stat(peer)
            assert peer.request()[0]["op"] == "get"
            digest = f"blake3:{blake3.blake3(data).hexdigest()}"
            peer.reply(
                {
                    "ok": True, "name": "f", "offset": 0, "size": BLOCK, "total": BLOCK,
                    "mtime": 0, "version": "v", "digest": digest,
                },
                data,
            )  # fmt: skip
            with contextlib.suppress(ConnectionError):
                peer.request()

    with talking_to(script) as client:
        client.get("f", here / "f")
    assert (here / "f").read_bytes() == data


def test_a_server_that_acknowledges_blocks_it_does_not_hold(source: Path) -> None:
    def answer(udp: UdpPeer, received: Heard) -> Iterator[bytes]:
        yield from echoes(udp, received)
        if received.kind == DATA:
            yield udp.datagram(ACK, struct.pack("!IQ", received.number, 0) + b"\1")

    def script(peer: Peer) -> None:
        with UdpPeer(peer.sock.getsockname()) as udp:
            open_push(peer)
            while True:
                udp.serve(peer, answer)
                match udp.asked["op"]:
                    case "begin":
                        peer.reply({"ok": True, "upload": "u", "block": BLOCK, "size": 0})
                    case "push":
                        peer.reply(session_reply())
                    case op:
                        assert op == "commit"
                        message = {"code": "incomplete", "message": "blocks are missing"}
                        peer.reply({"ok": False, **message})

    with talking_to(script) as client, pytest.raises(RefusedError) as caught:
        client.put(source)
    assert caught.value.code == "incomplete"
