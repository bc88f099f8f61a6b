"""Too many clients, too slow clients, and clients that ask for more than they take."""

import contextlib
import os
import resource
import select
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftpkit.client import Client
from ftpkit.errors import Code, ConnectionLostError, RefusedError
from ftpkit.protocol.digest import digest_of as b3
from ftpkit.protocol.frame import encode_header
from ftpkit.server import Server
from tests.faults.conftest import MIB, Eager, Serve, left_over, noise, quiet
from tests.faults.crowd import Crowd, Raw
from tests.faults.processes import Served
from tests.faults.relay import WAIT_S

Counted = Callable[[int], bool]


def until(condition: Callable[[], bool], what: str) -> None:
    """Poll for a state of another process that cannot be waited for."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        threading.Event().wait(0.02)


# How many


@pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_address"])
def test_a_client_over_the_limit_is_refused_and_connects_later(serve: Serve, limit: str) -> None:
    server = serve(**{limit: 3})
    members = [Raw(server.address) for _ in range(3)]
    for member in members:
        assert member.ask(op="ping")["ok"]
    with Raw(server.address) as raw:
        refusal = raw.heard()
        assert (refusal["code"], refusal["close"]) == (Code.TOO_MANY_CONNECTIONS, True)
        assert raw.ends()
    with Eager(server.address) as client, pytest.raises(RefusedError) as refused:
        client.ping()
    assert refused.value.code is Code.TOO_MANY_CONNECTIONS
    members.pop().close()
    server.connection_limiter.wait_for(lambda count: count < 3)
    with Eager(server.address) as client:
        client.ping()
    for member in members:
        member.close()
    quiet(server)


def test_a_put_waits_for_a_place(serve: Serve, root: Path, here: Path) -> None:
    server = serve(max_connections=1)
    (here / "file").write_bytes(b"patience")
    with Raw(server.address) as member, Eager(server.address, retry_for_s=WAIT_S) as client:
        assert member.ask(op="ping")["ok"]
        client.put(here / "file", on_retry=lambda error, delay: member.close())
    assert (root / "file").read_bytes() == b"patience"


def test_a_connection_without_a_thread_is_not_counted(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(max_connections=1)
    begin = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if "process_request_thread" in thread.name:
            raise RuntimeError("can't start new thread")
        begin(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with Raw(server.address) as raw:
            assert raw.ends()
    quiet(server)
    with Eager(server.address) as client:
        client.ping()


# How slow


def test_a_header_sent_byte_by_byte_ends_by_the_stall_timeout(serve: Serve) -> None:
    server = serve(stall_timeout_s=0.5)
    with Raw(server.address) as raw:
        since = time.monotonic()
        header = encode_header({"op": "ping", "id": "x" * 1000})
        with contextlib.suppress(OSError):
            for at in range(len(header)):
                raw.sock.sendall(header[at : at + 1])
                # Faster than the timeout: no single read of the server stalls.
                if select.select([raw.sock], [], [], 0.05)[0]:
                    break
        refusal = raw.heard()
        assert refusal["code"] == Code.TIMEOUT
        assert 0.4 < time.monotonic() - since < 20
        assert raw.ends()


def test_a_stalled_body_is_interrupted_and_leaves_nothing(serve: Serve, root: Path) -> None:
    server = serve(stall_timeout_s=0.3)
    with Raw(server.address) as raw:
        raw.say(b"some", op="put", name="file", size=1000)
        assert raw.heard()["code"] == Code.TIMEOUT
        assert raw.ends()
    quiet(server)
    assert left_over(root) == []
    assert not (root / "file").exists()


def test_a_reader_that_stalls_is_ended_by_one_stall_timeout(serve: Serve, root: Path) -> None:
    server = serve(stall_timeout_s=2.0)
    with open(root / "large", "wb") as file:
        file.truncate(256 * MIB)
    with Raw(server.address) as raw:
        since = time.monotonic()
        raw.say(op="get", name="large")
        assert raw.heard()["ok"]
        quiet(server)
        assert 1.5 < time.monotonic() - since < 3.5


def test_a_reader_that_is_slow_is_not_ended(serve: Serve, root: Path) -> None:
    server = serve(stall_timeout_s=1.0)
    with open(root / "large", "wb") as file:
        file.truncate(32 * MIB)
    with Raw(server.address, receive_buffer=64 * 1024) as raw:
        raw.say(op="get", name="large")
        left, buffer = raw.heard()["size"], memoryview(bytearray(4 * MIB))
        while left:
            threading.Event().wait(0.4)
            count = raw.stream.read_into(buffer[:left])
            left -= count


def test_a_silent_connection_is_ended_by_the_idle_timeout(serve: Serve) -> None:
    server = serve(stall_timeout_s=0.1, idle_timeout_s=0.6)
    with Raw(server.address) as raw:
        since = time.monotonic()
        assert raw.ask(op="ping")["ok"]
        assert raw.heard()["code"] == Code.TIMEOUT
        assert time.monotonic() - since > 0.5
        assert raw.ends()


@pytest.fixture(
    params=[300, pytest.param(1000, marks=pytest.mark.slow)], ids=lambda count: f"{count} of them"
)
def count(request: Any) -> int:
    return int(request.param)


def test_idle_and_half_open_connections_leave_others_alone(
    tmp_path: Path, here: Path, count: int
) -> None:
    root = tmp_path / "root"
    (here / "large").write_bytes(body := noise(32 * MIB, 1))
    options = ("--max-connections-per-address", "2000", "--max-connections", "2000")
    with Served(root, options) as server:
        with Crowd(server.address, count), Client(server.address) as client:
            client.put(here / "large")
            client.get("large", here / "got")
            client.ping()
        assert (here / "got").read_bytes() == body
        assert (root / "large").read_bytes() == body
        until(lambda: left_over(root) == [], "puts that were not finished leave files")


def test_unfinished_bodies_cost_little_memory_and_no_disk_space(tmp_path: Path) -> None:
    with Served(tmp_path / "root", ("--no-fsync",)) as server:
        with Raw(server.address) as raw:
            assert raw.ask(b"body", op="put", name="file", size=4)["ok"]
        before = server.memory()
        with contextlib.ExitStack() as stack:
            for at in range(300):
                raw = stack.enter_context(Raw(server.address))
                raw.say(b"some", op="put", name=f"file {at}", size=MIB)
            staging = tmp_path / "root" / ".ftpkit" / "staging"
            until(lambda: len(list(staging.iterdir())) == 300, "300 bodies begin")
            assert server.memory() - before < 300 * 100 * 1024
        until(lambda: server.threads() <= 4, "threads of ended conversations")
        assert server.memory() - before < 300 * 50 * 1024


# How often


@pytest.mark.parametrize("conversations", [2000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_short_connections_leak_nothing(tmp_path: Path, conversations: int) -> None:
    with Served(tmp_path / "root") as server:

        def converse(often: int) -> None:
            for at in range(often):
                with Raw(server.address) as raw:
                    assert raw.ask(op="ping")["ok"]
                    if at % 50 == 0:
                        assert raw.ask(b"body", op="put", name="file", size=4)["ok"]

        converse(200)
        until(lambda: server.threads() <= 4, "threads of ended conversations")
        threads, descriptors, memory = server.threads(), server.descriptors(), server.memory()
        converse(conversations)
        until(lambda: server.threads() <= threads, "threads of ended conversations")
        until(lambda: server.descriptors() <= descriptors, "descriptors are left")
        assert server.memory() <= memory + 4 * MIB


def test_a_client_that_takes_no_replies_is_not_read_from(tmp_path: Path) -> None:
    with Served(tmp_path / "root") as server, Raw(server.address, receive_buffer=4096) as raw:
        assert raw.ask(op="ping")["ok"]
        before = server.memory()
        ping = [encode_header({"op": "ping", "id": f"{at:01000}"}) for at in range(20_000)]
        waiting, sent = memoryview(b"".join(ping)), 0
        whole = len(waiting)
        # The server has stopped reading when it takes nothing for a while.
        while select.select([], [raw.sock], [], 1.0)[1]:
            sent += raw.sock.send(waiting[sent : sent + MIB], socket.MSG_DONTWAIT)
        assert sent < whole
        assert server.memory() <= before + 8 * MIB
        rest = threading.Thread(target=raw.sock.sendall, args=[waiting[sent:]])
        rest.start()
        for at in range(20_000):
            assert raw.heard() == {"ok": True, "id": f"{at:01000}"}
        rest.join()
        assert server.memory() <= before + 8 * MIB


# More connections than descriptors


def test_a_server_without_descriptors_survives_and_serves_afterwards(
    tmp_path: Path, here: Path
) -> None:
    (here / "file").write_bytes(body := noise(3 * MIB, 2))
    with Served(tmp_path / "root", fds=64) as server:
        with contextlib.ExitStack() as stack:
            for _ in range(200):
                stack.enter_context(Raw(server.address))
            until(lambda: server.descriptors() >= 60, "the server still has descriptors")
            # A connection that was accepted gets a reply or a refusal.
            used = server.cpu_s()
            since = time.monotonic()
            with contextlib.suppress(ConnectionLostError):
                Client(server.address, timeout_s=0.5).ping()
            threading.Event().wait(1.0)
            assert server.cpu_s() - used < 0.5 * (time.monotonic() - since)
            assert server.process.poll() is None
        with Eager(server.address, retry_for_s=WAIT_S) as client:
            client.put(here / "file")
        assert (tmp_path / "root" / "file").read_bytes() == body
        server.ask_to_end()
        assert server.ended()[0] == 0


def test_one_connection_does_not_take_all_descriptors(tmp_path: Path) -> None:
    block = 64 * 1024
    data = noise(2 * block, 3)
    first, second = data[:block], data[block:]
    with Served(tmp_path / "root", ("--no-fsync",), fds=128) as server:
        with Raw(server.address) as raw, Raw(server.address) as other:
            before = server.descriptors()
            uploads = []
            for at in range(100):
                begun = raw.ask(op="begin", name=f"f{at}", total=2 * block, block=block)
                assert begun["ok"], begun
                uploads.append(begun["upload"])
                keys = {"op": "write", "upload": uploads[-1], "size": block}
                assert raw.ask(first, **keys, offset=0, digest=b3(first))["ok"]
            assert server.descriptors() - before <= 16 * 3
            assert other.ask(b"body", op="put", name="other", size=4)["ok"]
            # The uploads that were closed meanwhile continue.
            for upload in uploads:
                keys = {"op": "write", "upload": upload, "size": block}
                assert raw.ask(second, **keys, offset=block, digest=b3(second))["ok"]
                assert raw.ask(op="commit", upload=upload, total=2 * block)["ok"]
        until(lambda: server.descriptors() <= before, "descriptors are left")
    assert all((tmp_path / "root" / f"f{at}").read_bytes() == data for at in range(100))


def test_one_user_does_not_take_all_descriptors(tmp_path: Path) -> None:
    with (
        Served(tmp_path / "root", ("--no-fsync",), fds=128) as server,
        contextlib.ExitStack() as stack,
    ):
        codes = []
        for at in range(40):
            raw = stack.enter_context(Raw(server.address))
            reply = raw.ask(op="begin", name=f"f{at}", total=2 * MIB, block=MIB)
            codes.append(reply.get("code", "ok"))
        # A half of 128 descriptors for uploads, a half of these for one user, three for each.
        assert codes == ["ok"] * 10 + [Code.BUSY] * 30
        assert raw.ask(b"body", op="put", name="other", size=4)["ok"]


def test_a_server_whose_spare_descriptor_is_gone_does_not_spin(server: Server) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    raw = socket.socket()
    spares = [listener._spare for listener in server._listeners._listeners]
    with contextlib.ExitStack() as stack:
        stack.callback(raw.close)
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (raw.fileno() + 20, hard))
        for spare in spares:
            spare.close()
        with contextlib.suppress(OSError):
            while True:
                fd = os.dup(0)
                stack.callback(os.close, fd)
        raw.connect(server.address)
        used = time.process_time()
        threading.Event().wait(0.5)
        assert time.process_time() - used < 0.2
    with Eager(server.address, retry_for_s=WAIT_S) as client:
        client.ping()


def test_a_client_works_in_a_process_with_thousands_of_descriptors(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(1100):
            stack.enter_context(socket.socket())
        with Client(server.address) as client:
            client.ping()
            client.ping()
