"""The kernel's statistics of a connection match what was sent."""

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ftpkit.compare.tcp_info import (
    TcpInfo,
    congestion_controls,
    congestion_of,
    tcp_info,
    use_congestion,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both sockets of a connection over loopback."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        near = stack.enter_context(socket.create_connection(listener.getsockname(), 10.0))
        far = stack.enter_context(listener.accept()[0])
        far.settimeout(10.0)
        yield near, far


def test_bytes_are_counted(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    # The handshake counts as a byte that was acknowledged.
    before = tcp_info(near)
    assert before is not None
    assert before.sent == 0
    near.sendall(bytes(5000))
    got = 0
    while got < 5000:
        got += len(far.recv(5000))
    # What comes back brings the acknowledgement with it.
    far.sendall(b"!")
    assert near.recv(1) == b"!"
    after = tcp_info(near)
    assert after is not None
    assert after == TcpInfo(before.acked + 5000, 5000 + after.resent, after.resent)


def test_a_congestion_control_can_be_chosen(pair: tuple[socket.socket, socket.socket]) -> None:
    near, _ = pair
    default, *others = congestion_controls()
    assert congestion_of(near) == default
    for name in others:
        use_congestion(near, name)
        assert congestion_of(near) == name
    with pytest.raises(OSError, match="No such file"):
        use_congestion(near, "none")


def test_other_sockets_have_no_statistics() -> None:
    left, right = socket.socketpair(socket.AF_UNIX)
    with left, right:
        assert tcp_info(left) is None
        assert congestion_of(left) is None
