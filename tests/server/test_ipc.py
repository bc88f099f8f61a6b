"""Messages between the processes of one server, and the descriptors that travel with them."""

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
    not os_sockets.HAS_FD_PASSING, reason="connections cannot be handed to another process"
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

    def talk() -> None:
        for at, body in enumerate(bodies):
            here.send(body, with_files.get(at, []), op="x", at=at)

    talking = threading.Thread(target=talk)
    talking.start()
    for at, sent in enumerate(bodies):
        header, body, fds = there.receive()
        assert (header["op"], header["at"], body) == ("x", at, sent)
        expected = with_files.get(at, [])
        assert [os.fstat(fd).st_ino for fd in fds] == [os.fstat(fd).st_ino for fd in expected]
        assert not any(map(os.get_inheritable, fds))
        close_all(fds)
    talking.join()
    close_all(files)


def test_threads_may_send_at_once(ends: Ends) -> None:
    here, there = ends

    def talk() -> None:
        for _ in range(50):
            here.send(b"x" * 5000, op="x")

    threads = [threading.Thread(target=talk) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        assert there.receive()[1] == b"x" * 5000
    for thread in threads:
        thread.join()


def test_an_offer_waits_for_nobody(ends: Ends) -> None:
    here, there = ends
    count = 0
    while here.offer(op="x", at=count):
        count += 1
    for at in range(count):
        assert there.receive()[0]["at"] == at
    with here._sending:
        assert not here.offer(op="x")
    assert here.offer(op="y")
    assert there.receive()[0]["op"] == "y"
    there.close()
    with pytest.raises(ConnectionLostError):
        here.offer(op="x")


def test_the_end_of_one_side_is_told_to_the_other(ends: Ends) -> None:
    here, there = ends
    here.send(op="last")
    here.close()
    assert there.receive()[0]["op"] == "last"
    with pytest.raises(ConnectionLostError):
        there.receive()
    with pytest.raises(ConnectionLostError, match="is gone"):
        there.send(op="x")


@pytest.mark.parametrize("kept", [3, 8, -1])
def test_a_message_that_is_cut_is_none(kept: int) -> None:
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


def test_descriptors_that_cannot_be_opened_are_missed_by_their_message_alone(ends: Ends) -> None:
    here, there = ends
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for at in range(2):
        here.send(fds=[0], op="x", at=at)
    spare = os.dup(0)
    os.close(spare)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
        lost = there.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (lost[0]["at"], lost[2]) == (0, [])
    header, _, fds = there.receive()
    assert (header["at"], len(fds)) == (1, 1)
    close_all(fds)


@pytest.mark.skipif(not os_sockets._HAS_TIMEO, reason="sending has no time limit here")
def test_who_takes_nothing_is_given_up(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    here, _ = ends
    os_sockets.set_send_timeout(here._sock, 0.05)
    with pytest.raises(ConnectionLostError, match="is gone"):
        here.send(bytes(10_000_000), op="x")
    with pytest.raises(ConnectionLostError):
        here.receive()
