"""Messages between the processes of one server, with descriptors."""

import os
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftpkit.errors import ConnectionLostError
from ftpkit.osapi import sockets as os_sockets
from ftpkit.server.workers.ipc import IpcChannel, close_all

pytestmark = pytest.mark.skipif(
    not os_sockets.HAS_FD_PASSING, reason="no passing of descriptors on this system"
)

Ends = tuple[IpcChannel, IpcChannel]


@pytest.fixture
def ends() -> Iterator[Ends]:
    here, there = map(IpcChannel, socket.socketpair())
    yield here, there
    here.close()
    there.close()


def test_messages_keep_their_order_their_bodies_and_their_descriptors(
    ends: Ends, tmp_path: Path
) -> None:
    here, there = ends
    bodies = [os.urandom(size) for size in (0, 1, 70_000, 0, 300_000)]
    files = [os.open(tmp_path / str(at), os.O_RDWR | os.O_CREAT) for at in range(3)]
    with_files = {1: files[:1], 2: [], 4: files[1:]}

    def send() -> None:
        for at, body in enumerate(bodies):
            here.send(body, with_files.get(at, []), op="x", at=at)

    sending = threading.Thread(target=send)
    sending.start()
    for at, sent in enumerate(bodies):
        header, body, fds = there.receive()
        assert (header["op"], header["at"], body) == ("x", at, sent)
        expected = with_files.get(at, [])
        assert [os.fstat(fd).st_ino for fd in fds] == [os.fstat(fd).st_ino for fd in expected]
        assert not any(map(os.get_inheritable, fds))
        close_all(fds)
    sending.join()
    close_all(files)


def test_threads_can_send_concurrently(ends: Ends) -> None:
    here, there = ends

    def send() -> None:
        for _ in range(50):
            here.send(b"x" * 5000, op="x")

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        assert there.receive()[1] == b"x" * 5000
    for thread in threads:
        thread.join()


def test_try_send_does_not_block(ends: Ends) -> None:
    here, there = ends
    count = 0
    while here.try_send(op="x", at=count):
        count += 1
    for at in range(count):
        assert there.receive()[0]["at"] == at
    with here._sending:
        assert not here.try_send(op="x")
    assert here.try_send(op="y")
    assert there.receive()[0]["op"] == "y"
    there.close()
    with pytest.raises(ConnectionLostError):
        here.try_send(op="x")


def test_closing_one_side_ends_the_other(ends: Ends) -> None:
    here, there = ends
    here.send(op="last")
    here.close()
    assert there.receive()[0]["op"] == "last"
    with pytest.raises(ConnectionLostError):
        there.receive()
    with pytest.raises(ConnectionLostError, match="has ended"):
        there.send(op="x")


@pytest.mark.parametrize("kept", [3, 8, -1])
def test_a_truncated_message_is_not_received(kept: int) -> None:
    raw, sock = socket.socketpair()
    there, sink = IpcChannel(sock), socket.socketpair()
    IpcChannel(sink[0]).send(b"body", op="x")
    raw.sendall(sink[1].recv(1000)[:kept])
    raw.close()
    with pytest.raises(ConnectionLostError):
        there.receive()
    there.close()
    for each in sink:
        each.close()


def test_descriptors_over_the_limit_are_missing_in_one_message_alone(ends: Ends) -> None:
    here, there = ends
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for at in range(2):
        here.send(fds=[0], op="x", at=at)
    spare = os.dup(0)
    os.close(spare)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
        received = there.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (received[0]["at"], received[2]) == (0, [])
    header, _, fds = there.receive()
    assert (header["at"], len(fds)) == (1, 1)
    close_all(fds)


@pytest.mark.skipif(not os_sockets._HAS_TIMEO, reason="no SO_SNDTIMEO on this system")
def test_a_peer_that_does_not_read_times_out(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    here, _ = ends
    os_sockets.set_send_timeout(here._sock, 0.05)
    with pytest.raises(ConnectionLostError, match="has ended"):
        here.send(bytes(10_000_000), op="x")
    with pytest.raises(ConnectionLostError):
        here.receive()
