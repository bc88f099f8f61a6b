"""FrameStream over a real socket pair: splitting, ends, timeouts and rate limits."""

import errno
import math
import os
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftpkit.errors import (
    ConnectionLostError,
    EndOfStreamError,
    ProtocolError,
    SourceChangedError,
    StallTimeoutError,
    TruncatedError,
)
from ftpkit.net import frame_stream
from ftpkit.net.frame_stream import PIECE, SMALL, FrameStream
from ftpkit.net.tls_identity import Identity
from ftpkit.net.token_bucket import Limiter, TokenBucket
from ftpkit.osapi import sockets as os_sockets
from ftpkit.protocol.frame import Header, encode_header

PATIENT_S = 30.0
SHORT_S = 0.05


@pytest.fixture(autouse=True, params=["linux", "plain", "linux, tls", "plain, tls"])
def system_calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test with Linux's system calls and without, over TCP and over TLS."""
    monkeypatch.setattr(Pair, "tls", request.param.endswith("tls"))
    if request.param.startswith("plain"):
        for name in ("MSG_MORE", "MSG_WAITALL"):
            monkeypatch.setattr(os_sockets, name, 0)
        for name in ("sendfile", "preadv", "pwrite"):
            monkeypatch.delattr(os, name, raising=False)
        monkeypatch.setattr(os_sockets, "_HAS_TIMEO", False)


SERVER = Identity.make().context()
CLIENT = ssl.create_default_context()
CLIENT.check_hostname = False
CLIENT.verify_mode = ssl.CERT_NONE


class Pair:
    """A stream and the socket of its peer, which is an SSLSocket if ``tls``."""

    tls = False

    def __init__(
        self,
        *,
        stall_timeout_s: float = PATIENT_S,
        idle_timeout_s: float | None = None,
        limiter: Limiter | None = None,
    ) -> None:
        ours, self.peer = socket.socketpair()
        self.peer.settimeout(PATIENT_S)
        self.stream = FrameStream(
            ours, stall_timeout_s=stall_timeout_s, idle_timeout_s=idle_timeout_s, limiter=limiter
        )
        if self.tls:
            thread = threading.Thread(target=self.stream.start_tls, args=(SERVER, PATIENT_S))
            thread.start()
            self.peer = CLIENT.wrap_socket(self.peer)
            thread.join()

    def __enter__(self) -> "Pair":
        return self

    def __exit__(self, *exc: object) -> None:
        self.stream.close()
        self.peer.close()

    def received(self) -> bytes:
        """Return all that the stream sends until it closes."""
        data = bytearray()
        while piece := self.peer.recv(1 << 20):
            data += piece
        return bytes(data)


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair() as pair:
        yield pair


def frame(body: bytes = b"", **header: object) -> bytes:
    return encode_header({**header, "size": len(body)} if body else header) + body


FRAMES = [(1, b""), (2, b"a body"), (3, b""), (4, b"x" * 70), (5, b"{\0\0")]
CONVERSATION = b"".join(frame(body, n=n) for n, body in FRAMES)


def read_all(stream: FrameStream) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    while True:
        try:
            header: Header = stream.read_header()
        except EndOfStreamError:
            return found
        found.append((header["n"], stream.read_body()))


def feed(peer: socket.socket, pieces: list[bytes]) -> threading.Thread:
    """Send each piece separately, then shut down writing."""

    def run() -> None:
        for piece in pieces:
            peer.sendall(piece)
        peer.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 50, len(CONVERSATION)])
def test_frames_in_pieces_of_any_size_are_read_whole(pair: Pair, size: int) -> None:
    pieces = [CONVERSATION[at : at + size] for at in range(0, len(CONVERSATION), size)]
    thread = feed(pair.peer, pieces)
    assert read_all(pair.stream) == FRAMES
    thread.join()


def test_frames_split_at_any_byte_are_read_whole() -> None:
    for at in range(1, len(CONVERSATION)):
        with Pair() as pair:
            pair.peer.sendall(CONVERSATION[:at])
            thread = feed(pair.peer, [CONVERSATION[at:]])
            assert read_all(pair.stream) == FRAMES
            thread.join()


def test_an_end_between_frames_is_the_end_and_any_other_a_truncation() -> None:
    borders, at = {0}, 0
    for n, body in FRAMES:
        at += len(frame(body, n=n))
        borders.add(at)
    for at in range(len(CONVERSATION) + 1):
        with Pair() as pair:
            pair.peer.sendall(CONVERSATION[:at])
            pair.peer.shutdown(socket.SHUT_WR)
            if at in borders:
                assert len(read_all(pair.stream)) == sorted(borders).index(at)
            else:
                with pytest.raises(TruncatedError):
                    read_all(pair.stream)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.binary(max_size=300), min_size=1, max_size=6),
    st.lists(st.integers(1, 400), max_size=10),
    st.integers(1, 500),
)
def test_any_bodies_in_any_pieces_into_any_buffer(
    bodies: list[bytes], cuts: list[int], buffer_size: int
) -> None:
    rest, pieces = b"".join(frame(body) for body in bodies), []
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    with Pair() as pair:
        thread = feed(pair.peer, [*pieces, rest])
        for body in bodies:
            pair.stream.read_header()
            assert pair.stream.left == len(body)
            found, buffer = bytearray(), memoryview(bytearray(buffer_size))
            while count := pair.stream.read_into(buffer):
                found += buffer[:count]
            assert bytes(found) == body
            assert pair.stream.left == 0
        thread.join()


def test_a_large_body_goes_into_the_buffer_and_the_next_frame_stays_whole(pair: Pair) -> None:
    body = os.urandom(3 * PIECE + 5)
    thread = feed(pair.peer, [frame(body, n=1) + frame(n=2)])
    assert pair.stream.read_header() == {"n": 1, "size": len(body)}
    found, buffer = bytearray(), memoryview(bytearray(PIECE))
    while count := pair.stream.read_into(buffer):
        found += buffer[:count]
    assert found == body
    assert pair.stream.read_header() == {"n": 2}
    thread.join()


def test_a_skipped_body_leaves_the_next_frame_whole(pair: Pair) -> None:
    thread = feed(pair.peer, [frame(bytes(300_000), n=1) + frame(b"two", n=2)])
    pair.stream.read_header()
    pair.stream.read_into(memoryview(bytearray(7)))
    pair.stream.skip_body()
    assert pair.stream.read_header()["n"] == 2
    assert pair.stream.read_body() == b"two"
    thread.join()


def test_many_frames_received_together_need_no_further_bytes(pair: Pair) -> None:
    pair.peer.sendall(b"".join(frame(n=n) for n in range(200)))
    assert [pair.stream.read_header()["n"] for _ in range(200)] == list(range(200))


def test_a_declared_length_allocates_nothing(pair: Pair) -> None:
    pair.peer.sendall(encode_header({"size": 2**63 - 1}))
    pair.peer.shutdown(socket.SHUT_WR)
    assert pair.stream.read_header()["size"] == pair.stream.left == 2**63 - 1
    with pytest.raises(TruncatedError):
        pair.stream.skip_body()


def test_bytes_that_are_no_frame_are_a_protocol_error(pair: Pair) -> None:
    pair.peer.sendall(b"GET / HTTP/1.1\r\n")
    with pytest.raises(ProtocolError, match="ftpkit"):
        pair.stream.read_header()


# Time


def test_silence_inside_a_header_is_a_stall() -> None:
    with Pair(stall_timeout_s=SHORT_S, idle_timeout_s=PATIENT_S) as pair:
        pair.peer.sendall(CONVERSATION[:3])
        with pytest.raises(StallTimeoutError):
            pair.stream.read_header()


def test_silence_inside_a_body_is_a_stall() -> None:
    with Pair(stall_timeout_s=SHORT_S, idle_timeout_s=PATIENT_S) as pair:
        pair.peer.sendall(encode_header({"size": 10}) + b"12345")
        pair.stream.read_header()
        with pytest.raises(StallTimeoutError):
            pair.stream.read_into(memoryview(bytearray(10)))


def test_between_frames_the_idle_timeout_applies() -> None:
    with Pair(stall_timeout_s=SHORT_S, idle_timeout_s=4 * SHORT_S) as pair:
        with pytest.raises(StallTimeoutError):
            pair.stream.read_header()
        pair.peer.sendall(frame(n=1))
        assert pair.stream.read_header() == {"n": 1}


def test_an_idle_connection_outlives_many_stall_timeouts() -> None:
    with Pair(stall_timeout_s=0.005, idle_timeout_s=PATIENT_S) as pair:
        timer = threading.Timer(20 * 0.005, pair.peer.sendall, [frame(n=1)])
        timer.start()
        assert pair.stream.read_header() == {"n": 1}
        timer.join()


def test_a_peer_that_reads_nothing_loses_the_connection() -> None:
    with (
        Pair(stall_timeout_s=SHORT_S) as pair,
        pytest.raises(ConnectionLostError, match="took no byte"),
    ):
        pair.stream.send(bytes(64 * PIECE))


def test_a_peer_that_reads_nothing_of_a_file_loses_the_connection(big: int) -> None:
    with (
        Pair(stall_timeout_s=SHORT_S) as pair,
        pytest.raises(ConnectionLostError, match="took no byte"),
    ):
        pair.stream.send_range(frame(), big, 0, BIG)


def test_shutdown_ends_a_read_at_once(pair: Pair) -> None:
    errors = []

    def read() -> None:
        try:
            pair.stream.read_header()
        except ConnectionLostError as error:
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    pair.stream.shutdown()
    thread.join()
    assert len(errors) == 1


def test_a_closed_stream_raises_connection_lost_and_may_be_closed_again(pair: Pair) -> None:
    pair.stream.close()
    pair.stream.close()
    pair.stream.shutdown()
    with pytest.raises(ConnectionLostError):
        pair.stream.send(b"x")
    with pytest.raises(ConnectionLostError):
        pair.stream.read_header()


def test_a_peer_that_has_closed_is_a_lost_connection(pair: Pair) -> None:
    pair.peer.close()
    with pytest.raises(ConnectionLostError):
        pair.stream.send(bytes(8 * PIECE))


# Sending

BIG = 8 * PIECE + 11


def pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@pytest.fixture
def big(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "big").write_bytes(pattern(BIG))
    fd = os.open(tmp_path / "big", os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("sizes", [[0], [1, 2], [SMALL], [10, SMALL], [5, 3 * PIECE, 7]])
def test_all_parts_are_sent_in_order(pair: Pair, sizes: list[int]) -> None:
    parts = [pattern(size) for size in sizes]

    def send() -> None:
        pair.stream.send(*parts)
        pair.stream.close()

    thread = threading.Thread(target=send)
    thread.start()
    assert pair.received() == b"".join(parts)
    thread.join()


@pytest.mark.pairwise
@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize(
    ("offset", "count"),
    [
        (0, 0),
        (0, 1),
        (7, SMALL),
        (7, SMALL + 1),
        (0, BIG),
        (BIG - 1, 1),
        (BIG, 0),
        (PIECE, 2 * PIECE),
    ],
)
def test_a_range_of_a_file_follows_its_header(
    big: int, offset: int, count: int, limited: bool
) -> None:
    limiter = TokenBucket(1e12) if limited else None
    with Pair(limiter=limiter) as pair:
        moved: list[int] = []
        header = encode_header({"size": count})

        def send() -> None:
            pair.stream.send_range(header, big, offset, count, moved.append)
            pair.stream.close()

        thread = threading.Thread(target=send)
        thread.start()
        assert pair.received() == header + pattern(BIG)[offset : offset + count]
        thread.join()
        assert sum(moved) == count


@pytest.mark.parametrize("size", [0, SMALL, SMALL + 1, 3 * PIECE])
def test_a_file_that_shrinks_while_it_is_sent_is_an_error(big: int, size: int) -> None:
    os.ftruncate(big, max(0, size - 1))
    with Pair() as pair:
        errors = []

        def send() -> None:
            try:
                pair.stream.send_range(encode_header({"size": max(size, 1)}), big, 0, max(size, 1))
            except SourceChangedError as error:
                errors.append(error)
            pair.stream.close()

        thread = threading.Thread(target=send)
        thread.start()
        pair.received()
        thread.join()
        assert len(errors) == 1


def test_a_limiter_counts_reads_and_sends(big: int) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    limiter = TokenBucket(1e6, clock=lambda: now[0], sleep=sleep)
    with Pair(limiter=limiter) as pair:
        thread = feed(pair.peer, [frame(bytes(1_000_000))])
        pair.stream.read_header()
        pair.stream.skip_body()
        thread.join()
        assert now[0] == pytest.approx(1.0, abs=0.1)
        thread = threading.Thread(target=pair.stream.send_range, args=(b"", big, 0, 1_000_000))
        thread.start()
        left = 1_000_000
        while left:
            left -= len(pair.peer.recv(left))
        thread.join()
        assert now[0] == pytest.approx(2.0, abs=0.1)


class GatedLimiter:
    """Grants quanta of ``most`` bytes, each once the test releases ``granted``."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.acquired = threading.Semaphore(0)
        self.granted = threading.Semaphore(0)
        self.released = threading.Semaphore(0)
        self.moved: list[int] = []

    def acquire(self) -> int:
        self.acquired.release()
        assert self.granted.acquire(timeout=PATIENT_S)
        return self.most

    def release(self, moved: int) -> None:
        self.moved.append(moved)
        self.released.release()


@pytest.mark.parametrize(("gather_s", "pieces"), [(math.inf, [5, 0]), (0.0, [3, 2, 0])])
def test_a_quantum_is_acquired_only_after_bytes_have_arrived(
    gather_s: float, pieces: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame_stream, "_GATHER_S", gather_s)
    limiter = GatedLimiter(3)
    with Pair(limiter=limiter) as pair:
        pair.peer.sendall(encode_header({"size": 5}))
        pair.stream.read_header()
        view, body = memoryview(bytearray(8)), b""
        counts: list[int] = []

        def read() -> None:
            nonlocal body
            while not counts or counts[-1]:
                counts.append(pair.stream.read_into(view))
                body += bytes(view[: counts[-1]])

        thread = threading.Thread(target=read)
        thread.start()
        assert not limiter.acquired.acquire(timeout=0.05)
        pair.peer.sendall(b"12345")
        limiter.granted.release(2)
        thread.join()
        assert (body, counts, limiter.moved) == (b"12345", pieces, [3, 2])


def test_a_quantum_also_reads_what_arrives_meanwhile() -> None:
    limiter = GatedLimiter(4)
    with Pair(limiter=limiter) as pair:
        pair.peer.sendall(encode_header({"size": 5}) + b"12")
        pair.stream.read_header()
        pair.peer.sendall(b"345")
        limiter.granted.release(2)
        assert pair.stream.read_body() == b"12345"
        assert limiter.moved == [4, 1]


def test_bytes_read_ahead_with_the_header_need_a_quantum_too() -> None:
    limiter = GatedLimiter(3)
    with Pair(limiter=limiter) as pair:
        pair.peer.sendall(frame(b"12345"))
        pair.stream.read_header()
        limiter.granted.release(2)
        assert pair.stream.read_body() == b"12345"
        assert limiter.moved == [3, 2]


@pytest.mark.parametrize("source", ["file", "memory"])
def test_no_quantum_is_held_while_the_peer_reads_nothing(big: int, source: str) -> None:
    limiter = GatedLimiter(BIG)
    limiter.granted.release(1_000_000)
    body, counts = memoryview(pattern(BIG)), list[int]()
    with Pair(limiter=limiter) as pair:

        def send() -> None:
            if source == "file":
                pair.stream.send_range(frame(), big, 0, BIG, counts.append)
            else:
                pair.stream.send_body(frame(), body, counts.append)

        thread = threading.Thread(target=send)
        thread.start()
        # The quantum exceeds the kernel's buffers, and no byte was read.
        assert limiter.released.acquire(timeout=PATIENT_S)
        assert thread.is_alive()
        left = len(frame()) + BIG
        while left:
            left -= len(pair.peer.recv(left))
        thread.join()
        assert sum(limiter.moved) == sum(counts) == BIG


@pytest.mark.parametrize("source", ["up", "down"])
def test_a_quantum_is_released_when_the_connection_is_lost(big: int, source: str) -> None:
    limiter = GatedLimiter(BIG)
    limiter.granted.release(1_000_000)
    with Pair(limiter=limiter) as pair:
        pair.peer.sendall(encode_header({"size": BIG}) + b"some")
        pair.peer.close()
        pair.stream.read_header()
        with pytest.raises(ConnectionLostError):
            pair.stream.skip_body() if source == "up" else pair.stream.send_range(b"", big, 0, BIG)
        acquired = 0
        while limiter.acquired.acquire(blocking=False):
            acquired += 1
        assert len(limiter.moved) == acquired


# TCP alone


@pytest.fixture
def tcp() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    peer.settimeout(PATIENT_S)
    with ours, peer:
        yield ours, peer


def test_a_lingering_close_lets_the_peer_read_the_last_reply(
    tcp: tuple[socket.socket, socket.socket],
) -> None:
    ours, peer = tcp
    stream = FrameStream(ours, stall_timeout_s=PATIENT_S)
    peer.sendall(bytes(200_000))
    stream.send(frame(n=1))
    thread = threading.Thread(target=stream.lingering_close, args=(PATIENT_S,))
    thread.start()
    # These are in flight when the reply is sent: a plain close would reset the connection.
    for _ in range(20):
        peer.sendall(bytes(100_000))
    reply = bytearray()
    while piece := peer.recv(1000):
        reply += piece
    assert bytes(reply) == frame(n=1)
    peer.close()
    thread.join()


def test_a_lingering_close_ends_at_its_time_limit(
    tcp: tuple[socket.socket, socket.socket],
) -> None:
    ours, peer = tcp
    FrameStream(ours, stall_timeout_s=PATIENT_S).lingering_close(SHORT_S)
    assert ours.fileno() == -1
    assert peer.recv(1) == b""


def test_a_reset_is_a_lost_connection(tcp: tuple[socket.socket, socket.socket]) -> None:
    ours, peer = tcp
    stream = FrameStream(ours, stall_timeout_s=PATIENT_S)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    with pytest.raises(ConnectionLostError, match="connection lost") as caught:
        stream.read_header()
    assert not isinstance(caught.value, EndOfStreamError)


@pytest.mark.parametrize("limited", [False, True])
def test_a_header_without_a_body_is_not_held_back(
    tcp: tuple[socket.socket, socket.socket], big: int, limited: bool
) -> None:
    fcntl = pytest.importorskip("fcntl", reason="cannot count unsent bytes")
    ours, _ = tcp
    stream = FrameStream(
        ours, stall_timeout_s=PATIENT_S, limiter=TokenBucket(1e9) if limited else None
    )
    stream.send_range(frame(n=1), big, 0, 0)
    siocoutqnsd = 0x894B  # how many bytes the kernel has not sent yet (Linux)
    try:
        answer = fcntl.ioctl(ours.fileno(), siocoutqnsd, struct.pack("i", 0))
    except OSError as error:
        pytest.skip(f"cannot count unsent bytes: {errno.errorcode[error.errno or 0]}")
    assert struct.unpack("i", answer) == (0,)
