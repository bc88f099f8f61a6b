"""Quotas of tokens over real connections, with one server process and with several."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import blake3
import pytest

from ftpkit import Server
from ftpkit.osapi import sockets as os_sockets
from ftpkit.server.workers.supervisor import Supervisor
from ftpkit.server.workers.worker import WorkerConfig
from ftpkit.tokens import Grant, Tokens
from tests.support.logs import Log
from tests.support.raw import Raw, Reply, frame

BLOCK = 64 * 1024
QUOTA = 2 * BLOCK
WAIT_S = 20.0
DATA = random.Random(8).randbytes(2 * BLOCK)


@pytest.fixture(autouse=True, scope="module")
def _tracker() -> None:
    """Start the resource tracker, which multiprocessing keeps until this process ends."""
    resource_tracker.ensure_running()


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    tokens = Tokens(tmp_path / "tokens.json")
    tokens.add(Grant(user="ada", under="home/ada", quota=QUOTA, connections=2), "a")
    tokens.add(Grant(user="owner"), "o")
    return tokens


WORKERS = pytest.param(
    "workers",
    marks=pytest.mark.skipif(
        not os_sockets.HAS_FD_PASSING, reason="no passing of descriptors on this system"
    ),
)


@pytest.fixture(params=["one", WORKERS])
def server(
    request: pytest.FixtureRequest, root: Path, tokens: Tokens, tmp_path: Path
) -> Iterator[Server | Supervisor]:
    server: Server | Supervisor
    if request.param == "one":
        server = Server(root, port=0, tokens=tokens)
    else:
        server = Supervisor(
            root, WorkerConfig(workers=2, tokens=str(tmp_path / "tokens.json")), port=0
        )
    server.start()
    yield server
    server.stop(0.0)


Connect = Callable[[str], Raw]


@pytest.fixture
def connect(server: Server | Supervisor) -> Iterator[Connect]:
    """Open authenticated raw connections, which the end of the test closes."""
    with ExitStack() as stack:

        def connect(token: str) -> Raw:
            raw = stack.enter_context(Raw(server.address))
            raw.granted("auth", token=token)
            return raw

        yield connect


def put(raw: Raw, name: str, size: int, **keys: Any) -> Reply:
    return raw.ask("put", DATA[:size], name=name, **keys)


def begin(raw: Raw, name: str, total: int | None) -> Reply:
    return raw.ask("begin", name=name, total=total, block=BLOCK)


def write(raw: Raw, upload: str, offset: int, size: int = BLOCK) -> Reply:
    body = DATA[:size]
    digest = f"blake3:{blake3.blake3(body).hexdigest()}"
    return raw.ask("write", body, upload=upload, offset=offset, digest=digest)


def unfinished(root: Path) -> list[str]:
    private = root / ".ftpkit"
    return [
        str(path.relative_to(private))
        for part in ("staging", "uploads")
        for path in (private / part).rglob("*")
        if path.is_file()
    ]


def test_a_quota_is_filled_to_the_byte_over_any_connection(connect: Connect, root: Path) -> None:
    one, two = connect("a"), connect("a")
    assert put(one, "f", BLOCK).ok
    reply = put(two, "g", BLOCK + 1)
    assert reply.code == "quota-exceeded"
    assert "home" not in reply["message"]
    assert begin(two, "g", BLOCK + 1).code == "quota-exceeded"
    assert unfinished(root) == []
    assert put(two, "g", BLOCK).ok
    assert put(one, "h", 1).code == "quota-exceeded"
    two.granted("delete", name="f")
    assert put(one, "h", BLOCK).ok


def test_files_of_other_users_count_but_do_not_limit_them(connect: Connect) -> None:
    ada, owner = connect("a"), connect("o")
    assert put(ada, "f", 1).ok
    for number in range(3):
        assert put(owner, f"home/ada/{number}", BLOCK).ok
    assert put(ada, "g", 1).code == "quota-exceeded"
    owner.granted("rename", name="home/ada/0", to="0")
    owner.granted("rename", name="home/ada/1", to="1")
    assert put(ada, "g", BLOCK - 1).ok
    assert put(ada, "h", 1).code == "quota-exceeded"
    owner.granted("rename", name="0", to="home/ada/0")
    assert put(ada, "h", 1).code == "quota-exceeded"


def begin_put(raw: Raw, root: Path) -> None:
    """Send the start of a put that reserves the whole quota, and wait for its file."""
    raw.sock.sendall(frame({"op": "put", "name": "cut", "size": QUOTA}, DATA[:100]))
    deadline = time.monotonic() + WAIT_S
    while not unfinished(root) and time.monotonic() < deadline:
        pass


def test_an_interrupted_put_frees_its_bytes(
    connect: Connect, server: Server | Supervisor, root: Path
) -> None:
    cut, other = connect("a"), connect("a")
    begin_put(cut, root)
    assert put(other, "f", 1).code == "quota-exceeded"
    cut.close()
    assert server.connection_limiter.wait_for(lambda count: count == 1, WAIT_S)
    assert unfinished(root) == []
    assert put(other, "g", QUOTA).ok


def test_an_upload_is_begun_continued_and_aborted(connect: Connect, root: Path) -> None:
    one, two = connect("a"), connect("a")
    upload = begin(one, "f", QUOTA)["upload"]
    assert put(two, "g", 1).code == "quota-exceeded"
    assert begin(two, "f", QUOTA)["upload"] == upload
    assert write(two, upload, 0).ok
    two.granted("abort", upload=upload)
    assert put(one, "g", QUOTA).ok
    assert unfinished(root) == []


def test_an_upload_of_unknown_length_reserves_each_block(connect: Connect) -> None:
    one, two = connect("a"), connect("a")
    upload = begin(one, "f", None)["upload"]
    assert write(one, upload, 0).ok
    assert put(two, "g", 10).ok
    assert write(two, upload, BLOCK).code == "quota-exceeded"
    assert write(two, upload, BLOCK, BLOCK - 10).ok
    assert write(one, upload, 0).ok
    assert two.granted("commit", upload=upload, total=QUOTA - 10)["total"] == QUOTA - 10
    assert put(one, "h", 1).code == "quota-exceeded"


@pytest.mark.parametrize("server", [WORKERS], indirect=True)
def test_the_bytes_of_a_killed_worker_are_freed(
    connect: Connect, server: Supervisor, root: Path, log: Log
) -> None:
    one, two = connect("a"), connect("a")
    begin_put(one, root)
    assert put(two, "f", 1).code == "quota-exceeded"
    first = next(held.process.pid for held in server._processes._running.values())
    assert first is not None
    os.kill(first, signal.SIGKILL)
    log.wait_for("worker died")
    assert put(two, "g", QUOTA).ok
    connect("a").granted("ping")


def test_connections_of_a_token_are_counted_over_all_processes(
    connect: Connect, server: Server | Supervisor
) -> None:
    one, two = connect("a"), connect("a")
    upload = begin(one, "f", QUOTA)["upload"]
    assert write(two, upload, 0).ok  # in the worker that has the upload
    with Raw(server.address) as third:
        assert third.refused("auth", token="a") == "too-many-connections"
    two.close()
    server.connection_limiter.wait_for(lambda count: count == 1, WAIT_S)
    connect("a").granted("ping")
