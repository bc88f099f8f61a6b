"""A server in this process, a relay before it, and the fate of everything that they started."""

import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ftpkit.client import Client
from ftpkit.client.retry import Backoff
from ftpkit.server import Server
from ftpkit.server.limits import Limits
from tests.faults.relay import Relay

MIB = 1024 * 1024


class Eager(Client):
    """A client that tries again without waiting, until ``retry_for_s`` is over."""

    def _backoff(self, sleep: Callable[[float], None]) -> Backoff:
        return Backoff(self._retry_for_s, sleep=lambda seconds: None)


Serve = Callable[..., Server]


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    """A test that leaves a thread or a descriptor behind has failed."""
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    yield
    for thread in threading.enumerate():
        if thread.name.startswith(("relay", "ftpkit", "Thread")) and thread.is_alive():
            thread.join(10)
            assert not thread.is_alive(), f"{thread.name} runs on"
    if before:
        assert len(os.listdir("/proc/self/fd")) <= len(before) + 2


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start servers that end with the test."""
    running: list[Server] = []

    def start(*, durable: bool = False, **limits: Any) -> Server:
        server = Server(
            tmp_path / "root",
            port=0,
            limits=Limits(**{"stall_timeout_s": 5.0, **limits}),
            durable=durable,
        )
        server.start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.stop(grace_s=0)


@pytest.fixture
def server(serve: Serve) -> Server:
    """A server that gives up on a silent peer after 5 s."""
    return serve()


@pytest.fixture
def relay(server: Server) -> Iterator[Relay]:
    """A relay before the server."""
    with Relay(server.address) as relay:
        yield relay


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What the server serves."""
    return tmp_path / "root"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory on the client's side."""
    path = tmp_path / "here"
    path.mkdir()
    return path


def quiet(server: Server) -> None:
    """Wait until there is no connection."""
    server.connection_limiter.wait_for(lambda count: count == 0)


def left_over(root: Path) -> list[str]:
    """Return what lies in the root's private directory beside answers and the lock."""
    private = root / ".ftpkit"
    return [str(path) for part in ("staging", "uploads") for path in (private / part).iterdir()]


def visible(root: Path) -> list[str]:
    """Return the names that are not the server's own."""
    return sorted(name for name in os.listdir(root) if name != ".ftpkit")


def settled(path: Path, data: bytes, seed: int = 0) -> Path:
    """Write a file whose mtime depends on ``seed`` alone."""
    path.write_bytes(data)
    os.utime(path, (1_600_000_000 + seed, 1_600_000_000 + seed))
    return path


def noise(size: int, seed: int) -> bytes:
    """Return bytes that are the same for the same seed."""
    return random.Random(seed).randbytes(size)
