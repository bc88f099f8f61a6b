"""A TLS connection forwarded to the process that continues the session."""

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

pytestmark = pytest.mark.skipif(not os_sockets.HAS_FD_PASSING, reason="needs SCM_RIGHTS")

PATIENT_S: Final = 30.0
SERVER: Final = Identity.make().context()


class ProxiedClient:
    """A TLS client, and the socket to which its bytes are forwarded."""

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
        proxy_end, self.inner = socket.socketpair()
        self.inner.settimeout(PATIENT_S)
        self.raised: list[ConnectionLostError] = []
        self.thread = threading.Thread(target=self._proxy, args=(proxy_end,))
        self.thread.start()

    def _proxy(self, proxy_end: socket.socket) -> None:
        with proxy_end:
            try:
                self.stream.proxy_to(proxy_end)
            except ConnectionLostError as error:
                self.raised.append(error)
        self.stream.lingering_close(PATIENT_S)


@pytest.fixture
def proxied() -> Iterator[ProxiedClient]:
    proxied = ProxiedClient()
    yield proxied
    proxied.inner.close()
    proxied.client.close()
    proxied.thread.join(PATIENT_S)
    assert not proxied.thread.is_alive()


def received(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (piece := sock.recv(size - len(data))):
        data += piece
    return bytes(data)


def test_bytes_are_forwarded_both_ways(proxied: ProxiedClient) -> None:
    for data in (b"a", b"bc" * 20_000):
        proxied.client.sendall(data)
        assert received(proxied.inner, len(data)) == data
        proxied.inner.sendall(data[::-1])
        assert received(proxied.client, len(data)) == data[::-1]


def test_the_directions_do_not_wait_for_each_other(proxied: ProxiedClient) -> None:
    data = random.Random(1).randbytes(3_000_000)
    sending = threading.Thread(target=proxied.inner.sendall, args=(data,))
    sending.start()
    # All buffers are full until the client reads.
    first = proxied.client.recv(1)
    proxied.client.sendall(b"meanwhile")
    assert received(proxied.client, len(data) - 1) == data[1:]
    sending.join(PATIENT_S)
    assert received(proxied.inner, 9) == b"meanwhile"
    assert first == data[:1]


def test_the_end_of_the_client_is_forwarded_and_a_reply_still_reaches_it(
    proxied: ProxiedClient,
) -> None:
    proxied.client.sendall(b"the last")
    # Of the socket only: SSLSocket.shutdown would end TLS.
    socket.socket.shutdown(proxied.client, socket.SHUT_WR)
    assert received(proxied.inner, 100) == b"the last"
    proxied.inner.sendall(b"answer")
    proxied.inner.close()
    assert received(proxied.client, 100) == b"answer"


def test_bytes_before_the_end_of_the_inner_socket_are_forwarded(proxied: ProxiedClient) -> None:
    proxied.client.sendall(b"never read")
    proxied.inner.sendall(b"x" * 300_000)
    proxied.inner.close()
    assert received(proxied.client, 400_000) == b"x" * 300_000


def test_a_lost_client_ends_the_inner_socket(proxied: ProxiedClient) -> None:
    proxied.stream.shutdown()
    assert received(proxied.inner, 1) == b""


def test_waiting_uses_no_processor_time(proxied: ProxiedClient) -> None:
    proxied.client.sendall(b"x")
    assert received(proxied.inner, 1) == b"x"
    socket.socket.shutdown(proxied.client, socket.SHUT_WR)
    assert received(proxied.inner, 1) == b""
    before = time.process_time()
    assert not os_sockets.wait_readable(proxied.client, 0.3)
    assert time.process_time() - before < 0.2
