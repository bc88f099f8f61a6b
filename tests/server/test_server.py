"""The server as a whole: connection limits, stops, timeouts, and its log."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import blake3
import pytest

import ftpkit
from ftpkit import Client, DirectoryStore, Server
from ftpkit.osapi import files as os_files
from ftpkit.server.limits import Limits
from ftpkit.server.listener import peer_name
from tests.support.inside import handler_of
from tests.support.leaks import Held, leaked_since
from tests.support.logs import Log
from tests.support.raw import Raw, frame
from tests.support.trees import published, staged

ROOT = Path(__file__).parents[2]
MIB = 1024 * 1024


def b3(data: bytes) -> str:
    return f"blake3:{blake3.blake3(data).hexdigest()}"


# Who may connect


def test_a_connection_over_the_limit_is_refused(root: Path, log: Log) -> None:
    with Server(root, port=0, limits=Limits(max_connections=2)) as server:
        with Raw(server.address) as one, Raw(server.address) as two:
            one.granted("ping")
            two.granted("ping")
            with Raw(server.address) as three:
                reply = three.receive()
                assert (reply.code, reply.closes) == ("too-many-connections", True)
                assert three.rest() == b""
            with Raw(server.address) as talker:
                with contextlib.suppress(ConnectionError):
                    talker.send({"op": "put", "name": "f", "size": MIB}, bytes(MIB))
                assert talker.receive().code == "too-many-connections"
            with Client(server.address) as client:
                with pytest.raises(ftpkit.FtpkitError) as caught:
                    client.ping()
                assert caught.value.code == "too-many-connections"
            one.granted("ping")
        log.wait_for("connection")
        log.wait_for("connection")
        # The connection is logged before it stops counting: a client that is too early is refused.
        while True:
            with Raw(server.address) as again:
                reply = again.ask("ping")
                if reply.ok:
                    break
                assert reply.code == "too-many-connections"


def test_connections_that_arrive_together_never_exceed_the_limit(root: Path) -> None:
    with (
        Server(root, port=0, limits=Limits(max_connections=3)) as server,
        contextlib.ExitStack() as stack,
    ):
        # All of them wait in the queue of the socket before the first has a thread.
        clients = [stack.enter_context(Raw(server.address)) for _ in range(40)]
        for client in clients:
            with contextlib.suppress(ConnectionError):
                client.send({"op": "ping"})
        codes = [client.receive().code for client in clients]
        assert codes.count(None) == 3
        assert codes.count("too-many-connections") == 37


def held_back(server: Server) -> threading.Event:
    """Handle accepted connections only when the returned event is set."""
    released, listeners = threading.Event(), server._listeners
    handle = listeners.handle

    def wait_and_handle(sock: socket.socket, address: tuple[Any, ...], index: int) -> None:
        assert released.wait(20.0)
        handle(sock, address, index)

    listeners.handle = wait_and_handle
    return released


def test_a_connection_counts_before_it_has_its_thread(root: Path) -> None:
    server = Server(root, port=0, limits=Limits(max_connections=2))
    released = held_back(server)
    with server, contextlib.ExitStack() as stack:
        lines = [stack.enter_context(Raw(server.address)) for _ in range(5)]
        for line in lines[2:]:
            assert line.receive().code == "too-many-connections"
        released.set()
        for line in lines[:2]:
            line.granted("ping")


def test_stop_waits_for_a_connection_that_has_just_been_accepted(root: Path) -> None:
    server = Server(root, port=0, limits=Limits(max_connections=1))
    released = held_back(server)
    server.start()
    with Raw(server.address) as line, Raw(server.address) as other:
        # Connections are accepted one by one: when this one is refused, the first is admitted.
        assert other.receive().code == "too-many-connections"
        stopper = threading.Thread(target=server.stop)
        stopper.start()
        stopper.join(0.2)
        assert stopper.is_alive(), "the store must not be closed under it"
        released.set()
        stopper.join(20.0)
        assert not stopper.is_alive()
        assert line.receive().code == "shutting-down"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", None, "*"])
def test_the_addresses_that_it_listens_on(root: Path, host: str | None) -> None:
    try:
        server = Server(root, host=host, port=0)
        server.start()
    except OSError:
        if host == "::1" and not socket.has_ipv6:
            pytest.skip("no IPv6 here")
        raise
    try:
        assert server.address == server.addresses[0]
        assert len({address.port for address in server.addresses}) == 1
        for address in server.addresses:
            target = {"::": "::1", "0.0.0.0": "127.0.0.1"}.get(address.host, address.host)
            with Raw((target, address.port)) as raw:
                raw.granted("ping")
            with Client(address._replace(host=target)) as client:
                client.ping()
        if host == "*":
            with Raw(("127.0.0.1", server.address.port)) as raw:
                raw.granted("ping")
    finally:
        server.stop()


@pytest.mark.parametrize("host", ["a..b", "a" * 70])
def test_an_invalid_host_name_is_an_os_error(root: Path, host: str) -> None:
    with pytest.raises(OSError, match="name"):
        Server(root, host=host, port=0).start()


def test_a_port_in_use_is_an_os_error(root: Path, tmp_path: Path) -> None:
    with Server(root, host="127.0.0.1", port=0) as server:
        second = Server(tmp_path / "other", host="127.0.0.1", port=server.address.port)
        with pytest.raises(OSError, match="in use"):
            second.start()
    second.start()
    second.stop()


@pytest.mark.parametrize("beneath", ["", "/below"])
def test_a_root_that_is_a_file_is_an_os_error(tmp_path: Path, beneath: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    server = Server(f"{tmp_path}/file{beneath}", port=0)
    with pytest.raises(OSError, match=r"exists|[Nn]ot a directory"):
        server.start()
    assert (tmp_path / "file").read_bytes() == b"x"


@pytest.mark.skipif(not os_files.HAS_LOCKS, reason="there are no locks on files")
def test_a_root_in_use_is_an_os_error(server: Server, root: Path) -> None:
    with pytest.raises(OSError, match="another ftpkit server"):
        Server(root, port=0).start()
    with Raw(server.address) as raw:
        raw.granted("ping")


def test_a_missing_root_is_created(tmp_path: Path) -> None:
    with Server(tmp_path / "a/b", port=0) as server, Raw(server.address) as raw:
        raw.granted("put", b"x", name="f")
    assert published(tmp_path / "a/b") == {"f": b"x"}


# How it stops


def test_stop_closes_idle_connections(root: Path) -> None:
    with contextlib.ExitStack() as stack:
        with Server(root, port=0) as server:
            lines = [stack.enter_context(Raw(server.address)) for _ in range(20)]
            for line in lines[:10]:
                line.granted("ping")
            address = server.address
        for line in lines[:10]:
            reply = line.receive()
            assert (reply.code, reply.closes) == ("shutting-down", True)
            assert line.rest() == b""
    with pytest.raises(ConnectionRefusedError):
        Raw(address)


def test_stop_waits_for_a_running_request(root: Path) -> None:
    server = Server(root, port=0)
    server.start()
    with Raw(server.address) as raw:
        raw.granted("ping")
        body = os.urandom(2 * MIB)
        raw.send({"op": "put", "name": "f", "size": len(body)}, body[:MIB])
        wait_for_staged(root)
        stopper = threading.Thread(target=server.stop)
        stopper.start()
        raw.sock.sendall(body[MIB:])
        assert raw.receive().ok
        raw.rest()
        stopper.join(20.0)
        assert not stopper.is_alive()
    assert published(root) == {"f": body}


def wait_for_staged(root: Path) -> None:
    """Return when the server has begun to receive a file."""
    while not staged(root):
        pass


@pytest.mark.parametrize("grace_s", [0.0, 0.05])
def test_stop_interrupts_a_request_after_the_grace_period(root: Path, grace_s: float) -> None:
    server = Server(root, port=0)
    server.start()
    with Raw(server.address) as raw:
        raw.send({"op": "put", "name": "f", "size": 2 * MIB}, bytes(MIB))
        wait_for_staged(root)
        server.stop(grace_s=grace_s)
    assert published(root) == {}
    assert staged(root) == []


def test_stop_waits_for_an_upload_to_commit(root: Path) -> None:
    server = Server(root, port=0)
    server.start()
    with Raw(server.address) as raw:
        upload = raw.granted("begin", name="f", total=3, block=65536)["upload"]
        stopper = threading.Thread(target=server.stop)
        stopper.start()
        raw.granted("write", b"abc", upload=upload, offset=0, digest=b3(b"abc"))
        raw.granted("commit", upload=upload, total=3)
        assert raw.receive().code == "shutting-down"
        stopper.join(20.0)
        assert not stopper.is_alive()
    assert published(root) == {"f": b"abc"}


def test_stop_checkpoints_an_unfinished_upload(root: Path) -> None:
    server = Server(root, port=0)
    server.start()
    with Raw(server.address) as raw:
        upload = raw.granted("begin", name="f", total=4, block=65536)["upload"]
        server.stop(grace_s=0.05)
    with Server(root, port=0) as server, Raw(server.address) as raw:
        assert raw.granted("begin", name="f", total=4, block=65536)["upload"] == upload


def test_stop_does_not_wait_for_a_peer_that_does_not_read(root: Path) -> None:
    with open(root / "f", "wb") as file:
        file.truncate(256 * MIB)
    server = Server(root, port=0)
    server.start()
    with Raw(server.address) as raw:
        raw.send({"op": "get", "name": "f"})
        assert raw.receive_header()["size"] == 256 * MIB
        server.stop(grace_s=0.05)


def test_stop_may_be_called_at_once_and_twice(root: Path) -> None:
    for _ in range(20):
        server = Server(root, port=0)
        server.start()
        lines = [Raw(server.address) for _ in range(4)]
        server.stop()
        server.stop()
        for line in lines:
            line.close()


def test_a_server_can_be_started_again(root: Path) -> None:
    server = Server(root, port=0)
    for name in ("f", "g"):
        with server, Raw(server.address) as raw:
            raw.granted("put", b"x", name=name)
            raw.granted("digest", name=name)
    assert published(root) == {"f": b"x", "g": b"x"}


# Patience


def test_an_idle_connection_gets_a_timeout_and_is_closed(root: Path, log: Log) -> None:
    with (
        Server(root, port=0, limits=Limits(stall_timeout_s=0.1, idle_timeout_s=0.3)) as server,
        Raw(server.address) as raw,
    ):
        reply = raw.receive()
        assert (reply.code, reply.closes) == ("timeout", True)
        assert raw.rest() == b""
        raw.close()
        log.wait_for("connection", outcome="timeout")


@pytest.mark.parametrize("sent", [b"\0", b'\0\0\0\r{"op":', frame({"op": "put"})[:9]])
def test_a_stalled_frame_times_out(root: Path, sent: bytes) -> None:
    with (
        Server(root, port=0, limits=Limits(stall_timeout_s=0.2, idle_timeout_s=600.0)) as server,
        Raw(server.address) as raw,
    ):
        raw.granted("ping")
        raw.sock.sendall(sent)
        assert raw.receive().code == "timeout"
        assert raw.rest() == b""


def test_a_stalled_body_times_out(root: Path) -> None:
    with (
        Server(root, port=0, limits=Limits(stall_timeout_s=0.2, idle_timeout_s=600.0)) as server,
        Raw(server.address) as raw,
    ):
        raw.send({"op": "put", "name": "f", "size": 100}, bytes(99))
        reply = raw.receive()
        assert (reply.code, reply.closes) == ("timeout", True)
        assert raw.rest() == b""
    assert published(root) == {}
    assert staged(root) == []


def test_a_client_that_does_not_read_times_out(root: Path, log: Log) -> None:
    with open(root / "f", "wb") as file:
        file.truncate(256 * MIB)
    with (
        Server(root, port=0, limits=Limits(stall_timeout_s=0.2, idle_timeout_s=600.0)) as server,
        Raw(server.address) as raw,
    ):
        raw.send({"op": "get", "name": "f"})
        assert raw.receive_header()["size"] == 256 * MIB
        log.wait_for("connection", outcome="connection-lost")


# Many


def eight_at_once(server: Server, tmp_path: Path, total: int) -> None:
    def there_and_back(number: int) -> None:
        source, copy = tmp_path / f"source{number}", tmp_path / f"copy{number}"
        piece = blake3.blake3(bytes([number])).digest(length=MIB)
        with open(source, "wb") as file:
            for part in range(total // MIB):
                file.write(part.to_bytes(8, "big") + piece[8:])
        with Client(server.address) as client:
            up = client.put(source)
            down = client.get(source.name, copy)
        assert up.total == down.total == total
        assert up.content_digest == down.content_digest
        assert subprocess.run(["cmp", source, copy], check=False).returncode == 0
        source.unlink()
        copy.unlink()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(there_and_back, range(8)))


@pytest.mark.parametrize("mib", [32, pytest.param(256, marks=pytest.mark.slow)])
def test_eight_clients_at_once(tmp_path: Path, root: Path, mib: int) -> None:
    before = Held.now()
    with Server(root, port=0) as server:
        eight_at_once(server, tmp_path, mib * MIB)
        assert len(published_names(root)) == 8
        assert staged(root) == []
    assert leaked_since(before) == []


def published_names(root: Path) -> list[str]:
    return sorted(set(os.listdir(root)) - {".ftpkit"})


def test_200_short_connections_leak_nothing(server: Server, log: Log) -> None:
    with Raw(server.address) as raw:
        raw.granted("ping")
    log.wait_for("connection")
    for number in range(200):
        with Raw(server.address) as raw:
            match number % 4:
                case 0:
                    raw.granted("put", b"x", name="f")
                case 1:
                    raw.granted("get", name="f")
                case 2:
                    raw.send({"op": "begin", "name": "g", "total": 1, "block": 65536})
                case _:
                    raw.sock.sendall(b"\0\0")
        log.wait_for("connection")
    for thread in [t for t in threading.enumerate() if "process_request" in t.name]:
        thread.join(10.0)
    assert not handler_of(server).sessions()
    store = handler_of(server).store
    assert isinstance(store, DirectoryStore)
    assert not open_uploads(store)


def open_uploads(store: DirectoryStore) -> list[Any]:
    return list(store._uploads._open)


def test_each_transfer_and_connection_is_logged_once(connect: Callable[[], Raw], log: Log) -> None:
    raw = connect()
    raw.granted("put", b"abc", name="f")
    raw.granted("get", name="f")
    raw.refused("get", name="none")
    upload = raw.granted("begin", name="g", total=3, block=65536)["upload"]
    raw.granted("write", b"abc", upload=upload, offset=0, digest=b3(b"abc"))
    raw.granted("commit", upload=upload, total=3)
    raw.granted("begin", name="h", total=3, block=65536)
    raw.finish()
    raw.rest()
    found = [log.wait_for("transfer") for _ in range(5)]
    keys = ("direction", "name", "bytes", "outcome")
    assert [tuple(line[key] for key in keys) for line in found] == [
        ("up", "f", 3, "ok"),
        ("down", "f", 3, "ok"),
        ("down", "none", 0, "not-found"),
        ("up", "g", 3, "ok"),
        ("up", "h", 0, "unfinished"),
    ]  # fmt: skip
    line = log.wait_for("connection")
    assert (line["requests"], line["outcome"]) == (7, "closed")


def test_an_interrupted_put_is_logged(connect: Callable[[], Raw], log: Log) -> None:
    with connect() as raw:
        raw.granted("ping")
        raw.sock.sendall(frame({"op": "put", "name": "f", "size": 1000}, b"x" * 400))
    line = log.wait_for("transfer", direction="up", name="f", outcome="unfinished")
    assert line["bytes"] == 400


def test_an_interrupted_get_is_logged(connect: Callable[[], Raw], root: Path, log: Log) -> None:
    (root / "f").write_bytes(bytes(64 * 1024 * 1024))
    with connect() as raw:
        raw.send({"op": "get", "name": "f"})
        raw.read(1024 * 1024)
    line = log.wait_for("transfer", direction="down", name="f", outcome="unfinished")
    assert 0 < line["bytes"] < 64 * 1024 * 1024


def test_a_put_with_an_internal_error_is_logged(server: Server, root: Path, log: Log) -> None:
    class Broken:
        def stage(self, *args: Any) -> None:
            raise RuntimeError("the disk is on fire")

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

    store = handler_of(server).store
    setattr(handler_of(server), "store", Broken())  # noqa: B010  it stands before a store
    with Raw(server.address) as raw:
        assert raw.refused("put", b"abc", name="f") == "internal"
    assert log.wait_for("transfer", name="f")["outcome"] == "internal"


# The package


def test_importing_ftpkit_imports_no_terminal_library() -> None:
    script = "import sys, ftpkit; print(sorted({'click', 'tqdm'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_public_names_are_these() -> None:
    assert ftpkit.__all__ == [
        "Address", "CannotConnectError", "Client", "Code", "ConnectionLostError",
        "CorruptDataError", "DirectoryStore", "FtpkitError", "Grant", "Identity", "Limits",
        "ListEntry", "LocalFileError", "MemoryStore", "Permission", "ProtocolError",
        "RefusedError", "Server", "SourceChangedError", "Store", "Tokens", "TransferResult",
        "TruncatedError", "UdpBlockedError", "UdpMode", "UntrustedError", "Url", "__version__",
    ]  # fmt: skip
    assert all(hasattr(ftpkit, name) for name in ftpkit.__all__)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (("192.0.2.7", 5), "192.0.2.7:5"),
        (("2001:db8::7", 5, 0, 0), "[2001:db8::7]:5"),
        (("::ffff:192.0.2.7", 5, 0, 0), "192.0.2.7:5"),
    ],
)
def test_a_peer_is_known_by_its_own_address(address: tuple[Any, ...], name: str) -> None:
    assert peer_name(address) == name


def test_a_server_that_does_not_run_has_no_address(tmp_path: Path) -> None:
    server = Server(tmp_path / "root", port=0)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="was not started"):
            server.address  # noqa: B018
        with server:
            assert server.address == server.addresses[0]
