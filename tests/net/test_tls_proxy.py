"""A conversation over TLS whose bytes are carried to whoever goes on with it."""

import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Final

import pytest

from ftpkit.errors import ConnectionLostError
from ftpkit.net.frame_stream import FrameStream
from ftpkit.net.tls_identity import Identity
from ftpkit.osapi import sockets as os_sockets

pytestmark = pytest.mark.skipif(
    not os_sockets.HAS_FD_PASSING, reason="connections cannot be handed over"
)

PATIENT_S: Final = 30.0
SERVER: Final = Identity.make().context()


class Lent:
    """A client over TLS, and the socket at which its bytes come out."""

    def __init__(self) -> None:
        ours, peer = socket.socketpair()
        self.stream = FrameStream(ours, stall_timeout_s=PATIENT_S)
        thread = threading.Thread(target=self.stream.start_tls, args=(SERVER, PATIENT_S))
        thread.start()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        peer.settimeout(PATIENT_S)
        self.client = context.wrap_socket(peer)
        thread.join()
        inner, self.heir = socket.socketpair()
        self.heir.settimeout(PATIENT_S)
        self.raised: list[ConnectionLostError] = []
        self.thread = threading.Thread(target=self._lend, args=(inner,))
        self.thread.start()

    def _lend(self, inner: socket.socket) -> None:
        with inner:
            try:
                self.stream.proxy_to(inner)
            except ConnectionLostError as error:
                self.raised.append(error)
        self.stream.lingering_close(PATIENT_S)


@pytest.fixture
def lent() -> Iterator[Lent]:
    lent = Lent()
    yield lent
    lent.heir.close()
    lent.client.close()
    lent.thread.join(PATIENT_S)
    assert not lent.thread.is_alive()


def received(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (piece := sock.recv(size - len(data))):
        data += piece
    return bytes(data)


def test_what_each_says_reaches_the_other(lent: Lent) -> None:
    for said in (b"a", b"bc" * 20_000):
        lent.client.sendall(said)
        assert received(lent.heir, len(said)) == said
        lent.heir.sendall(said[::-1])
        assert received(lent.client, len(said)) == said[::-1]


def test_neither_way_waits_for_the_other(lent: Lent) -> None:
    said = random.Random(1).randbytes(3_000_000)
    saying = threading.Thread(target=lent.heir.sendall, args=(said,))
    saying.start()
    # So much is on its way that nobody can say more before the client listens.
    first = lent.client.recv(1)
    lent.client.sendall(b"meanwhile")
    assert received(lent.client, len(said) - 1) == said[1:]
    saying.join(PATIENT_S)
    assert received(lent.heir, 9) == b"meanwhile"
    assert first == said[:1]


def test_the_end_of_the_client_is_told_and_an_answer_still_reaches_it(lent: Lent) -> None:
    lent.client.sendall(b"the last")
    # Of the socket alone: an SSLSocket would forget its keys.
    socket.socket.shutdown(lent.client, socket.SHUT_WR)
    assert received(lent.heir, 100) == b"the last"
    lent.heir.sendall(b"answer")
    lent.heir.close()
    assert received(lent.client, 100) == b"answer"


def test_what_was_said_before_the_end_of_the_heir_arrives_and_then_its_end(lent: Lent) -> None:
    lent.client.sendall(b"never read")
    lent.heir.sendall(b"x" * 300_000)
    lent.heir.close()
    assert received(lent.client, 400_000) == b"x" * 300_000


def test_a_client_that_is_cut_off_ends_it_for_the_heir(lent: Lent) -> None:
    lent.stream.shutdown()
    assert received(lent.heir, 1) == b""


def test_it_waits_without_work(lent: Lent) -> None:
    lent.client.sendall(b"x")
    assert received(lent.heir, 1) == b"x"
    socket.socket.shutdown(lent.client, socket.SHUT_WR)
    assert received(lent.heir, 1) == b""
    before = time.process_time()
    assert not os_sockets.wait_readable(lent.client, 0.3)
    assert time.process_time() - before < 0.2
