"""The operations of a client, its connection, and the examples of a client."""

import os
import select
import subprocess
import sys
import threading
from pathlib import Path

import blake3
import pytest

from ftpkit import Client, RefusedError, Server
from ftpkit.protocol import Decoder, encode_header
from tests.support.inside import handler_of
from tests.support.logs import Log
from tests.support.raw import Raw
from tests.support.trees import published

TEN_LINES = """\
import json, socket, struct
body = open("bigfile.iso", "rb")
header = json.dumps({"op": "put", "name": "bigfile.iso", "size": 4096}).encode()
with socket.create_connection(("127.0.0.1", 9021)) as s:
    s.sendall(struct.pack("!I", len(header)) + header + body.read(4096))
    (n,) = struct.unpack("!I", s.recv(4, socket.MSG_WAITALL))
    print(json.loads(s.recv(n, socket.MSG_WAITALL)))
"""


def test_every_operation(client: Client, root: Path) -> None:
    assert client.ping() >= 0.0
    client.mkdir("a/b")
    (root / "a/f").write_bytes(b"hello")
    entry = client.stat("a/f")
    assert (entry.name, entry.kind, entry.total) == ("a/f", "file", 5)
    assert client.stat().kind == "dir"
    assert client.digest("a/f") == f"blake3:{blake3.blake3(b'hello').hexdigest()}"
    assert [entry.name for entry in client.list()] == ["a"]
    assert [entry.name for entry in client.list("a")] == ["a/b", "a/f"]
    assert [entry.name for entry in client.list(recursive=True)] == ["a", "a/b", "a/f"]
    client.rename("a/f", "g")
    (root / "h").write_bytes(b"")
    with pytest.raises(RefusedError) as caught:
        client.rename("h", "g")
    assert caught.value.code == "exists"
    client.rename("h", "g", overwrite=True)
    with pytest.raises(RefusedError) as caught:
        client.delete("a")
    assert caught.value.code == "not-empty"
    client.delete("a", recursive=True)
    client.delete("g")
    assert list(client.list()) == []


def test_list_goes_through_all_pages(client: Client, root: Path) -> None:
    made = sorted(f"{number:05}-{'x' * 240}" for number in range(4_000))
    for name in made:
        (root / name).touch()
    listing = client.list()
    assert next(listing).name == made[0]
    client.ping()  # between pages the connection is free
    assert [entry.name for entry in listing] == made[1:]


def test_one_connection_serves_many_operations(client: Client, tmp_path: Path, log: Log) -> None:
    (tmp_path / "f").write_bytes(b"x")
    for _ in range(3):
        client.put(tmp_path / "f")
        client.get("f", tmp_path / "copy")
        with pytest.raises(RefusedError):
            client.stat("none")
    client.close()
    assert log.wait_for("connection")["requests"] == 10
    client.ping()
    client.close()
    assert log.wait_for("connection")["requests"] == 2


def test_it_reconnects_after_the_server_closed_the_connection(
    server: Server, client: Client
) -> None:
    for _ in range(2):
        client.ping()
        for session in handler_of(server).sessions():
            session.stop(now=False)
        assert client._connection._connection is not None
        assert select.select([client._connection._connection.sock], [], [], 10.0)[0], (
            "the server closes the connection"
        )
    client.ping()


def test_it_reconnects_after_the_server_was_restarted(root: Path) -> None:
    server = Server(root, host="127.0.0.1", port=0)
    server.start()
    with Client(server.address) as client:
        client.ping()
        server.stop()
        server = Server(root, host="127.0.0.1", port=client.address.port)
        server.start()
        client.ping()
    server.stop()


def test_threads_share_one_connection(client: Client, root: Path, tmp_path: Path, log: Log) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            source = tmp_path / f"f{number}"
            data = bytes([number]) * (3_000_000 if number % 2 else 100)
            source.write_bytes(data)
            for _ in range(5):
                client.put(source)
                client.get(source.name, tmp_path / f"copy{number}")
                assert (tmp_path / f"copy{number}").read_bytes() == data
                assert client.stat(source.name).total == len(data)
                assert source.name in [entry.name for entry in client.list()]
        except BaseException as error:  # noqa: BLE001  the test fails with it
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(published(root)) == 4
    assert log.so_far("connection") == [], "one connection was enough"


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="descriptors are not counted here")
def test_it_works_in_a_program_with_many_open_files(client: Client) -> None:
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        client.ping()
        client.ping()
    finally:
        client.close()
        for descriptor in held:
            os.close(descriptor)


def test_the_decoder_with_a_plain_socket(server: Server, root: Path) -> None:
    (root / "bigfile.iso").write_bytes(b"content" * 10_000)
    with Raw(server.address) as raw:
        sock = raw.sock
        sock.sendall(encode_header({"op": "get", "name": "bigfile.iso"}))
        decoder = Decoder(max_header=65_536)
        while (header := decoder.feed(sock.recv(decoder.wanted))) is None:
            pass
        assert raw.read(header["size"]) == b"content" * 10_000
        sock.sendall(encode_header({"op": "ping"}))
        while (header := decoder.feed(sock.recv(decoder.wanted))) is None:
            pass
        assert header == {"ok": True}


def test_the_ten_line_client(server: Server, root: Path, tmp_path: Path) -> None:
    data = os.urandom(5000)
    (tmp_path / "bigfile.iso").write_bytes(data)
    script = TEN_LINES.replace("9021", str(server.address.port))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "'ok': True" in done.stdout
    assert published(root) == {"bigfile.iso": data[:4096]}
