"""Datagrams over real sockets, with and without segmentation, and the loop of a session."""

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, cast

import pytest

from ftpkit.errors import ConnectionLostError, ProtocolError
from ftpkit.net.cipher import DatagramCipher
from ftpkit.net.udp_socket import DatagramSocket, drive_session
from ftpkit.osapi import sockets as os_sockets
from ftpkit.protocol.udp.packet import OVERHEAD, Datagram, Header, Kind, pack_header

WAIT_S = 20.0
HEADERS = {socket.AF_INET: 28, socket.AF_INET6: 48}
SEGMENTS = os_sockets.HAS_UDP_SEGMENTS
KEY = bytes(range(16))

Pair = tuple[DatagramSocket, DatagramSocket]


class Counting(socket.socket):
    """Counts calls; one that sends several datagrams fails with the errno ``refusal``."""

    refusal: int | None = None
    sent = 0
    received = 0

    def sendmsg(self, buffers: Any, ancdata: Any = (), *rest: Any) -> int:
        if ancdata and self.refusal is not None:
            raise OSError(self.refusal, os.strerror(self.refusal))
        self.sent += 1
        return super().sendmsg(buffers, ancdata, *rest)

    def recvmsg_into(self, *args: Any) -> Any:
        self.received += 1
        return super().recvmsg_into(*args)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def localhost(family: int) -> str:
    return "::1" if family == socket.AF_INET6 else "127.0.0.1"


def sockets(stack: ExitStack, family: int = socket.AF_INET) -> tuple[Counting, Counting]:
    """Return two sockets that are connected to each other."""
    near, far = (stack.enter_context(Counting(family, socket.SOCK_DGRAM)) for _ in range(2))
    try:
        for sock in (near, far):
            sock.bind((localhost(family), 0))
    except OSError:
        pytest.skip("there is no such address here")
    near.connect(far.getsockname())
    far.connect(near.getsockname())
    return near, far


def set_segments(monkeypatch: pytest.MonkeyPatch, on: bool) -> None:
    """Make new sockets use UDP segmentation or not."""
    if on and not SEGMENTS:
        pytest.skip("UDP segmentation is not supported")
    monkeypatch.setattr(os_sockets, "HAS_UDP_SEGMENTS", on)


def split(datagram: bytes) -> tuple[bytes, bytes]:
    return datagram[:17], datagram[17:]


def random_datagrams(*lengths: int) -> list[bytes]:
    """Return random datagrams of these lengths."""
    return [os.urandom(length) for length in lengths]


def received(sock: DatagramSocket, count: int) -> list[bytes]:
    """Return ``count`` datagrams, and check that there are no more."""
    got: list[bytes] = []
    while len(got) < count:
        assert sock.wait(WAIT_S), f"only {len(got)} of {count} arrived"
        got += [bytes(raw) for raw, _ in sock.receive()]
    assert not sock.wait(0)
    return got


LENGTHS = {
    "one": [1000],
    "equal": [1200] * 20,
    "last shorter": [1200] * 5 + [7],
    "growing": [100, 200, 300, 400],
    "shrinking": [400, 300, 200, 100],
    "mixed": [1472, 1472, 1232, 1232, 60, 1472, 60, 60, 1472],
    "more than a call takes": [500] * 150,
    "large": [60_000, 60_000, 33_000, 100],
    "two to a call": [32_500, 32_500, 32_500],
}


@pytest.mark.pairwise
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["v4", "v6"])
@pytest.mark.parametrize("sending", [True, False], ids=["segments", "single"])
@pytest.mark.parametrize("joining", [True, False], ids=["joined", "apart"])
@pytest.mark.parametrize("name", LENGTHS)
def test_all_datagrams_arrive_as_they_were_sent(
    stack: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    joining: bool,
    sending: bool,
    family: int,
) -> None:
    near, far = sockets(stack, family)
    set_segments(monkeypatch, sending)
    sender = DatagramSocket(near)
    set_segments(monkeypatch, joining)
    receiver = DatagramSocket(far)
    datagrams = random_datagrams(*LENGTHS[name])
    sender.send([split(datagram) for datagram in datagrams])
    assert received(receiver, len(datagrams)) == datagrams


@pytest.mark.skipif(not SEGMENTS, reason="UDP segmentation is not supported")
def test_one_call_sends_many_datagrams(stack: ExitStack) -> None:
    near, far = sockets(stack)
    sender, receiver = DatagramSocket(near), DatagramSocket(far)
    sender.send([split(datagram) for datagram in random_datagrams(*[1200] * 20)])
    received(receiver, 20)
    assert near.sent == 1
    assert far.received < 20


@pytest.mark.skipif(not SEGMENTS, reason="UDP segmentation is not supported")
@pytest.mark.parametrize("refusal", [errno.EIO, errno.EINVAL, errno.EOPNOTSUPP])
def test_a_device_without_segmentation_gets_single_datagrams(
    stack: ExitStack, refusal: int
) -> None:
    near, far = sockets(stack)
    near.refusal = refusal
    sender, receiver = DatagramSocket(near), DatagramSocket(far)
    for _ in range(2):
        datagrams = random_datagrams(1200, 1200, 1200, 5)
        sender.send([split(datagram) for datagram in datagrams])
        assert received(receiver, 4) == datagrams
    near.refusal = None
    near.sent = 0
    sender.send([split(datagram) for datagram in random_datagrams(10, 10)])
    assert near.sent == 2, "it tried segmentation again"


@pytest.mark.skipif(not SEGMENTS, reason="UDP segmentation is not supported")
def test_a_full_queue_is_a_loss_and_segmentation_stays_on(stack: ExitStack) -> None:
    near, far = sockets(stack)
    near.refusal = errno.ENOBUFS
    sender, receiver = DatagramSocket(near), DatagramSocket(far)
    sender.send([split(datagram) for datagram in random_datagrams(10, 10)])
    near.refusal = None
    datagrams = random_datagrams(10, 10)
    sender.send([split(datagram) for datagram in datagrams])
    assert received(receiver, 2) == datagrams
    assert near.sent == 1


@pytest.mark.parametrize("sending", [True, False], ids=["segments", "single"])
def test_only_datagrams_that_are_too_large_are_lost(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, sending: bool
) -> None:
    set_segments(monkeypatch, sending)
    near, far = sockets(stack)
    sender, receiver = DatagramSocket(near), DatagramSocket(far)
    small, huge = random_datagrams(900, 900), random_datagrams(66_000, 70_000, 200_000, 200_000)
    sender.send([split(d) for d in (huge[0], small[0], huge[1], small[1], huge[2], huge[3])])
    assert received(receiver, 2) == small
    sender.send([split(huge[1])])
    assert not receiver.wait(0)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["v4", "v6"])
def test_sizes_are_what_the_path_may_carry(stack: ExitStack, family: int) -> None:
    near, _ = sockets(stack, family)
    headers = HEADERS[family]  # type: ignore[index]
    sizes = DatagramSocket(near).sizes()
    assert sizes == sorted(set(sizes), reverse=True)
    assert sizes[-1] == 1232
    assert 1500 - headers in sizes
    mtu = Path("/sys/class/net/lo/mtu")
    if mtu.exists():
        assert sizes[0] == min(int(mtu.read_text()), 65535) - headers


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["v4", "v6"])
def test_each_size_can_be_sent(stack: ExitStack, family: int) -> None:
    near, far = sockets(stack, family)
    sender, receiver = DatagramSocket(near), DatagramSocket(far)
    datagrams = random_datagrams(*sender.sizes())
    for datagram in datagrams:
        sender.send([split(datagram)])
    assert received(receiver, len(datagrams)) == datagrams


def test_a_missing_listener_is_a_loss(stack: ExitStack) -> None:
    near = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    near.bind(("127.0.0.1", 0))
    sender = DatagramSocket(near)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = reserved.getsockname()
    sender.connect(address)
    for _ in range(3):
        sender.send([split(datagram) for datagram in random_datagrams(100)])
        assert sender.wait(WAIT_S), "the ICMP error did not arrive"
        assert list(sender.receive()) == []
    far = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    far.bind(address)
    receiver = DatagramSocket(far)
    datagrams = random_datagrams(100, 100)
    sender.send([split(datagram) for datagram in datagrams])
    assert received(receiver, 2) == datagrams


def test_an_unconnected_socket_sends_to_an_address(
    stack: ExitStack,
) -> None:
    near, far = (stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(2))
    for sock in (near, far):
        sock.bind(("127.0.0.1", 0))
    sender, receiver = DatagramSocket(near), DatagramSocket(far)
    sender.send_to((b"head", b"tail"), far.getsockname())
    sender.send_to((b"huge", bytes(70_000)), far.getsockname())
    assert receiver.wait(WAIT_S)
    got = [(bytes(raw), address) for raw, address in receiver.receive()]
    assert got == [(b"headtail", near.getsockname())]


def test_injected_datagrams_are_received_first_and_are_limited(stack: ExitStack) -> None:
    near, far = sockets(stack)
    sender, receiver = DatagramSocket(near), DatagramSocket(far)
    sender.send([split(b"from the network")])
    for number in range(1000):
        receiver.inject(str(number).encode(), "elsewhere")
    assert receiver.wait(0)
    got = [(bytes(raw), address) for raw, address in receiver.receive()]
    assert got.pop()[0] == b"from the network"
    assert {address for _, address in got} == {"elsewhere"}
    assert got[-1][0] == b"999"
    assert len(got) < 100


def test_shutdown_ends_a_wait(stack: ExitStack) -> None:
    _, far = sockets(stack)
    receiver = DatagramSocket(far)
    woken = threading.Event()

    def wait() -> None:
        receiver.wait(3 * WAIT_S)
        woken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    receiver.shutdown()
    assert woken.wait(WAIT_S)
    thread.join()
    assert list(receiver.receive()) == []
    with pytest.raises(ConnectionLostError):
        receiver.send([split(b"x" * 100)])


def test_a_closed_socket_raises_connection_lost(stack: ExitStack) -> None:
    near, _ = sockets(stack)
    sock = DatagramSocket(near)
    sock.close()
    sock.close()
    with pytest.raises(ConnectionLostError):
        sock.send([split(b"x" * 100)])
    with pytest.raises(ConnectionLostError):
        list(sock.receive())


def test_one_receive_is_limited(stack: ExitStack) -> None:
    """Otherwise a flood would keep its receiver from sending."""
    near, far = sockets(stack)
    sender, receiver = DatagramSocket(near), DatagramSocket(far)
    for _ in range(200):
        sender.send([split(b"x" * 100)])
    assert receiver.wait(WAIT_S)
    assert 0 < len(list(receiver.receive())) < 200
    assert receiver.wait(0)


# drive_session


class EchoSession:
    """Sends ``count`` datagrams and replies to each that arrives; keeps what arrived."""

    def __init__(self, count: int, failure: Exception | None = None) -> None:
        self._left, self._failure = count, failure
        self._answers: list[Datagram] = []
        self.number = 0
        self.received_payloads: list[tuple[Header, bytes]] = []
        self.times: list[float] = []

    def receive(self, header: Header, payload: bytes | memoryview, now: float) -> None:
        if self._failure is not None:
            raise self._failure
        self.times.append(now)
        self.received_payloads.append((header, bytes(payload)))
        if header.kind == Kind.DATA:
            self._answers.append(self._datagram(Kind.ACK, b"echo " + bytes(payload)))

    def datagrams_to_send(self, now: float) -> list[Datagram]:
        self.times.append(now)
        answers, self._answers = self._answers, []
        count, self._left = self._left, 0
        return answers + [self._datagram(Kind.DATA, b"%d" % number) for number in range(count)]

    def next_event(self, now: float) -> float:
        return now if self._answers else now + 2 * WAIT_S

    def _datagram(self, kind: Kind, payload: bytes) -> Datagram:
        self.number += 1
        return Datagram(pack_header(1, self.number, kind), payload)


def driven(
    sock: DatagramSocket, session: EchoSession, should_continue: Callable[[float], bool]
) -> tuple[threading.Thread, list[BaseException]]:
    """Drive ``session`` in a thread; return it and a list of what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            drive_session(sock, DatagramCipher(KEY), session, should_continue=should_continue)
        except Exception as error:  # noqa: BLE001  the test looks at it
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


@pytest.mark.parametrize("sending", [True, False], ids=["segments", "single"])
def test_two_sessions_exchange_datagrams_and_ignore_forged_ones(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, sending: bool
) -> None:
    set_segments(monkeypatch, sending)
    near, far = sockets(stack)
    sock, other = DatagramSocket(near), DatagramSocket(far)
    # These arrive first, and one is encrypted with another key.
    (forged,) = DatagramCipher(bytes(16)).encrypt(Datagram(pack_header(1, 9, Kind.DATA), b"forged"))
    for raw in (b"".join(forged), b"", b"x", bytes(OVERHEAD), os.urandom(1000)):
        near.send(raw)
        far.send(raw)
    asking, answering = EchoSession(40), EchoSession(0)
    done = threading.Event()
    thread, raised = driven(other, answering, lambda now: not done.is_set())
    drive_session(
        sock,
        DatagramCipher(KEY),
        asking,
        should_continue=lambda now: len(asking.received_payloads) < 40,
    )
    done.set()
    other.shutdown()
    thread.join()
    assert raised == []
    assert [payload for _, payload in answering.received_payloads] == [b"%d" % n for n in range(40)]
    assert [payload for _, payload in asking.received_payloads] == [
        b"echo %d" % n for n in range(40)
    ]
    assert asking.times == sorted(asking.times)


def test_an_invalid_authentic_datagram_ends_the_loop(stack: ExitStack) -> None:
    near, far = sockets(stack)
    sock, other = DatagramSocket(near), DatagramSocket(far)
    other.send(DatagramCipher(KEY).encrypt(Datagram(pack_header(1, 1, Kind.DATA), b"nonsense")))
    with pytest.raises(ProtocolError, match="nonsense"):
        drive_session(
            sock,
            DatagramCipher(KEY),
            EchoSession(0, ProtocolError("nonsense")),
            should_continue=lambda now: True,
        )


def test_the_loop_ends_with_its_socket(stack: ExitStack) -> None:
    near, _ = sockets(stack)
    sock = DatagramSocket(near)
    with closing(sock):
        sock.shutdown()
        with pytest.raises(ConnectionLostError):
            drive_session(
                sock, DatagramCipher(KEY), EchoSession(3), should_continue=lambda now: True
            )


def test_a_memory_view_is_encrypted_in_place(stack: ExitStack) -> None:
    """A payload is encrypted without a copy before."""
    near, far = sockets(stack)
    sock, other = DatagramSocket(near), DatagramSocket(far)
    body = memoryview(bytearray(b"0123456789"))
    sock.send(DatagramCipher(KEY).encrypt(Datagram(pack_header(1, 1, Kind.DATA), body[2:5])))
    assert other.wait(WAIT_S)
    opened = [DatagramCipher(KEY).decrypt(raw) for raw, _ in other.receive()]
    assert [cast(tuple[Header, bytes], each)[1] for each in opened] == [b"234"]


def test_sending_nothing_makes_no_call(stack: ExitStack) -> None:
    near, _ = sockets(stack)
    nothing: Sequence[tuple[bytes, bytes]] = []
    DatagramSocket(near).send(nothing)
    assert near.sent == 0
