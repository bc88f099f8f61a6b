"""Datagrams over real sockets: whole, in order of sending, whatever the system can or cannot do."""

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
    """Counts the calls, and refuses those that send several datagrams with ``refusal``."""

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
    """Two sockets that are connected with each other."""
    near, far = (stack.enter_context(Counting(family, socket.SOCK_DGRAM)) for _ in range(2))
    try:
        for sock in (near, far):
            sock.bind((localhost(family), 0))
    except OSError:
        pytest.skip("there is no such address here")
    near.connect(far.getsockname())
    far.connect(near.getsockname())
    return near, far


def switched(monkeypatch: pytest.MonkeyPatch, on: bool) -> None:
    """Let the sockets that are made now use the system's segments, or not."""
    if on and not SEGMENTS:
        pytest.skip("this system does not send many datagrams in a call")
    monkeypatch.setattr(os_sockets, "HAS_UDP_SEGMENTS", on)


def cut(datagram: bytes) -> tuple[bytes, bytes]:
    return datagram[:17], datagram[17:]


def row(*lengths: int) -> list[bytes]:
    """Datagrams of these lengths, no two alike."""
    return [os.urandom(length) for length in lengths]


def received(sock: DatagramSocket, count: int) -> list[bytes]:
    """Wait for ``count`` datagrams, and make sure that no further one is there."""
    got: list[bytes] = []
    while len(got) < count:
        assert sock.wait(WAIT_S), f"only {len(got)} of {count} arrived"
        got += [bytes(raw) for raw, _ in sock.receive()]
    assert not sock.wait(0)
    return got


ROWS = {
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


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["v4", "v6"])
@pytest.mark.parametrize("sending", [True, False], ids=["segments", "single"])
@pytest.mark.parametrize("joining", [True, False], ids=["joined", "apart"])
@pytest.mark.parametrize("name", ROWS)
def test_all_arrive_as_they_were_sent(
    stack: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    joining: bool,
    sending: bool,
    family: int,
) -> None:
    near, far = sockets(stack, family)
    switched(monkeypatch, sending)
    sender = DatagramSocket(near)
    switched(monkeypatch, joining)
    receiver = DatagramSocket(far)
    datagrams = row(*ROWS[name])
    sender.send([cut(datagram) for datagram in datagrams])
    assert received(receiver, len(datagrams)) == datagrams


@pytest.mark.skipif(not SEGMENTS, reason="this system does not send many datagrams in a call")
def test_many_leave_and_arrive_in_one_call(stack: ExitStack) -> None:
    near, far = sockets(stack)
    sender, receiver = DatagramSocket(near), DatagramSocket(far)
    sender.send([cut(datagram) for datagram in row(*[1200] * 20)])
    received(receiver, 20)
    assert near.sent == 1
    assert far.received < 20


@pytest.mark.skipif(not SEGMENTS, reason="this system does not send many datagrams in a call")
@pytest.mark.parametrize("refusal", [errno.EIO, errno.EINVAL, errno.EOPNOTSUPP])
def test_a_device_that_cannot_cut_gets_them_one_by_one(stack: ExitStack, refusal: int) -> None:
    near, far = sockets(stack)
    near.refusal = refusal
    sender, receiver = DatagramSocket(near), DatagramSocket(far)
    for _ in range(2):
        datagrams = row(1200, 1200, 1200, 5)
        sender.send([cut(datagram) for datagram in datagrams])
        assert received(receiver, 4) == datagrams
    near.refusal = None
    near.sent = 0
    sender.send([cut(datagram) for datagram in row(10, 10)])
    assert near.sent == 2, "it tried again what it was refused"


@pytest.mark.skipif(not SEGMENTS, reason="this system does not send many datagrams in a call")
def test_no_room_for_many_is_a_loss_and_no_reason_to_stop_it(stack: ExitStack) -> None:
    near, far = sockets(stack)
    near.refusal = errno.ENOBUFS
    sender, receiver = DatagramSocket(near), DatagramSocket(far)
    sender.send([cut(datagram) for datagram in row(10, 10)])
    near.refusal = None
    datagrams = row(10, 10)
    sender.send([cut(datagram) for datagram in datagrams])
    assert received(receiver, 2) == datagrams
    assert near.sent == 1


@pytest.mark.parametrize("sending", [True, False], ids=["segments", "single"])
def test_what_is_too_large_is_lost_and_nothing_else(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, sending: bool
) -> None:
    switched(monkeypatch, sending)
    near, far = sockets(stack)
    sender, receiver = DatagramSocket(near), DatagramSocket(far)
    small, huge = row(900, 900), row(66_000, 70_000, 200_000, 200_000)
    sender.send([cut(d) for d in (huge[0], small[0], huge[1], small[1], huge[2], huge[3])])
    assert received(receiver, 2) == small
    sender.send([cut(huge[1])])
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
    datagrams = row(*sender.sizes())
    for datagram in datagrams:
        sender.send([cut(datagram)])
    assert received(receiver, len(datagrams)) == datagrams


def test_nobody_there_is_a_loss_and_may_change(stack: ExitStack) -> None:
    near = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    near.bind(("127.0.0.1", 0))
    sender = DatagramSocket(near)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = reserved.getsockname()
    sender.connect(address)
    for _ in range(3):
        sender.send([cut(datagram) for datagram in row(100)])
        assert sender.wait(WAIT_S), "the refusal was not heard"
        assert list(sender.receive()) == []
    far = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    far.bind(address)
    receiver = DatagramSocket(far)
    datagrams = row(100, 100)
    sender.send([cut(datagram) for datagram in datagrams])
    assert received(receiver, 2) == datagrams


def test_one_datagram_to_an_address_from_a_socket_that_is_not_connected(
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


def test_what_is_handed_over_arrives_first_and_not_without_limit(stack: ExitStack) -> None:
    near, far = sockets(stack)
    sender, receiver = DatagramSocket(near), DatagramSocket(far)
    sender.send([cut(b"from the network")])
    for number in range(1000):
        receiver.inject(str(number).encode(), "elsewhere")
    assert receiver.wait(0)
    got = [(bytes(raw), address) for raw, address in receiver.receive()]
    assert got.pop()[0] == b"from the network"
    assert {address for _, address in got} == {"elsewhere"}
    assert got[-1][0] == b"999"
    assert len(got) < 100


def test_whoever_waits_is_woken_up(stack: ExitStack) -> None:
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
        receiver.send([cut(b"x" * 100)])


def test_a_closed_socket_is_no_link(stack: ExitStack) -> None:
    near, _ = sockets(stack)
    sock = DatagramSocket(near)
    sock.close()
    sock.close()
    with pytest.raises(ConnectionLostError):
        sock.send([cut(b"x" * 100)])
    with pytest.raises(ConnectionLostError):
        list(sock.receive())


def test_too_many_at_once_are_taken_in_portions(stack: ExitStack) -> None:
    """Otherwise a flood would keep its receiver from ever sending."""
    near, far = sockets(stack)
    sender, receiver = DatagramSocket(near), DatagramSocket(far)
    for _ in range(200):
        sender.send([cut(b"x" * 100)])
    assert receiver.wait(WAIT_S)
    assert 0 < len(list(receiver.receive())) < 200
    assert receiver.wait(0)


# The loop


class Talker:
    """Sends ``count`` datagrams, and answers each that arrives; keeps what arrived."""

    def __init__(self, count: int, failure: Exception | None = None) -> None:
        self._left, self._failure = count, failure
        self._answers: list[Datagram] = []
        self.number = 0
        self.heard: list[tuple[Header, bytes]] = []
        self.times: list[float] = []

    def receive(self, header: Header, payload: bytes | memoryview, now: float) -> None:
        if self._failure is not None:
            raise self._failure
        self.times.append(now)
        self.heard.append((header, bytes(payload)))
        if header.kind == Kind.DATA:
            self._answers.append(self._datagram(Kind.ACK, b"heard " + bytes(payload)))

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


def carried(
    sock: DatagramSocket, end: Talker, while_: Callable[[float], bool]
) -> tuple[threading.Thread, list[BaseException]]:
    """Carry in a thread, and keep what was raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            drive_session(sock, DatagramCipher(KEY), end, while_=while_)
        except Exception as error:  # noqa: BLE001  the test looks at it
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


@pytest.mark.parametrize("sending", [True, False], ids=["segments", "single"])
def test_two_ends_talk_and_forged_datagrams_say_nothing(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, sending: bool
) -> None:
    switched(monkeypatch, sending)
    near, far = sockets(stack)
    sock, other = DatagramSocket(near), DatagramSocket(far)
    # They wait there before anything else, and one has another key.
    (forged,) = DatagramCipher(bytes(16)).encrypt(Datagram(pack_header(1, 9, Kind.DATA), b"forged"))
    for raw in (b"".join(forged), b"", b"x", bytes(OVERHEAD), os.urandom(1000)):
        near.send(raw)
        far.send(raw)
    asking, answering = Talker(40), Talker(0)
    done = threading.Event()
    thread, raised = carried(other, answering, lambda now: not done.is_set())
    drive_session(sock, DatagramCipher(KEY), asking, while_=lambda now: len(asking.heard) < 40)
    done.set()
    other.shutdown()
    thread.join()
    assert raised == []
    assert [payload for _, payload in answering.heard] == [b"%d" % n for n in range(40)]
    assert [payload for _, payload in asking.heard] == [b"heard %d" % n for n in range(40)]
    assert asking.times == sorted(asking.times)


def test_nonsense_of_who_holds_the_key_ends_the_loop(stack: ExitStack) -> None:
    near, far = sockets(stack)
    sock, other = DatagramSocket(near), DatagramSocket(far)
    other.send(DatagramCipher(KEY).encrypt(Datagram(pack_header(1, 1, Kind.DATA), b"nonsense")))
    with pytest.raises(ProtocolError, match="nonsense"):
        drive_session(
            sock, DatagramCipher(KEY), Talker(0, ProtocolError("nonsense")), while_=lambda now: True
        )


def test_the_loop_ends_where_the_socket_does(stack: ExitStack) -> None:
    near, _ = sockets(stack)
    sock = DatagramSocket(near)
    with closing(sock):
        sock.shutdown()
        with pytest.raises(ConnectionLostError):
            drive_session(sock, DatagramCipher(KEY), Talker(3), while_=lambda now: True)


def test_ends_that_take_memory_views_are_enough(stack: ExitStack) -> None:
    """A payload is sealed from where it lies, without a copy before."""
    near, far = sockets(stack)
    sock, other = DatagramSocket(near), DatagramSocket(far)
    body = memoryview(bytearray(b"0123456789"))
    sock.send(DatagramCipher(KEY).encrypt(Datagram(pack_header(1, 1, Kind.DATA), body[2:5])))
    assert other.wait(WAIT_S)
    opened = [DatagramCipher(KEY).decrypt(raw) for raw, _ in other.receive()]
    assert [cast(tuple[Header, bytes], each)[1] for each in opened] == [b"234"]


def test_no_parts_are_no_call(stack: ExitStack) -> None:
    near, _ = sockets(stack)
    nothing: Sequence[tuple[bytes, bytes]] = []
    DatagramSocket(near).send(nothing)
    assert near.sent == 0
