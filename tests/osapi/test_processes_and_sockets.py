"""Processes and sockets, with the calls of this system and, in a run of its own, with fallbacks."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftpkit.osapi import process as os_process
from ftpkit.osapi import sockets as os_sockets


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets."""
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def test_a_process_is_running_until_it_is_reaped() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert os_process.is_running(child.pid)
    child.communicate()
    assert not os_process.is_running(child.pid)
    assert os_process.is_running(os.getpid())


def test_there_is_at_least_one_core() -> None:
    assert os_process.cores() >= 1


def test_a_wait_ends_with_the_data_or_the_time(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    assert os_sockets.wait_writable(one, 1.0)
    started = time.monotonic()
    assert not os_sockets.wait_readable(one, 0.05)
    assert time.monotonic() - started >= 0.04
    other.sendall(b"x")
    assert os_sockets.wait_readable(one, 10.0)


def test_what_would_block_raises_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    one.settimeout(5.0)
    with pytest.raises(BlockingIOError):
        os_sockets.receive_now(one, memoryview(bytearray(10)))
    other.sendall(b"abc")
    buffer = memoryview(bytearray(10))
    assert os_sockets.wait_readable(one, 10.0)
    assert bytes(buffer[: os_sockets.receive_now(one, buffer)]) == b"abc"


def test_a_silent_peer_ends_a_read(pair: tuple[socket.socket, socket.socket]) -> None:
    one, _ = pair
    os_sockets.set_socket_timeout(one, 0.05)
    with pytest.raises((BlockingIOError, TimeoutError)):
        one.recv(1)


def test_a_file_is_sent_from_an_offset(
    pair: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    one, other = pair
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        assert os_sockets.send_file_now(one, file.fileno(), 3, 4) == 4
    assert other.recv(10) == b"3456"
