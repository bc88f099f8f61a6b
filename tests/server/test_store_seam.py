"""A server over a store that offers no optional power: it asks for none that the store lacks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ftpkit import Client, RefusedError, Server, Url
from ftpkit.errors import Code
from ftpkit.net.tls_identity import Identity
from ftpkit.protocol.digest import digest_of
from ftpkit.server.workers.supervisor import Supervisor
from ftpkit.server.workers.worker import WorkerConfig
from ftpkit.storage.memory import MemoryStore
from ftpkit.tokens import Grant, Tokens
from tests.support.raw import Raw

BLOCK = 64 * 1024
DATA = bytes(range(256)) * 1024


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def client(store: MemoryStore) -> Iterator[Client]:
    with Server(store, port=0) as server, Client(server.address) as client:
        yield client


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of several blocks."""
    path = tmp_path / "large"
    path.write_bytes(DATA * 40)
    return path


def write(raw: Raw, upload: str, offset: int, block: bytes) -> None:
    raw.granted("write", block, upload=upload, offset=offset, digest=digest_of(block))


def test_put_get_list_rename_and_delete(client: Client, large: Path, tmp_path: Path) -> None:
    client.put(large, "d/large")
    client.get("d/large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == large.read_bytes()
    client.rename("d/large", "d/renamed")
    assert [each.name for each in client.list(recursive=True)] == ["d", "d/renamed"]
    client.delete("d", recursive=True)
    assert list(client.list()) == []


def test_an_upload_is_resumed_on_another_connection(store: MemoryStore) -> None:
    spec: dict[str, Any] = {"name": "f", "total": 2 * BLOCK, "block": BLOCK}
    first, second = DATA[:BLOCK], DATA[BLOCK : 2 * BLOCK]
    with Server(store, port=0) as server:
        with Raw(server.address) as raw:
            upload = raw.granted("begin", **spec)["upload"]
            write(raw, upload, 0, first)
        with Raw(server.address) as raw:
            begun = raw.granted("begin", **spec)
            assert begun["upload"] == upload
            assert len(begun.body) == 44, "one block need not be sent again"
            write(raw, upload, BLOCK, second)
            raw.granted("commit", upload=upload, total=2 * BLOCK)
    with store.read("f") as reader:
        buffer = memoryview(bytearray(2 * BLOCK))
        assert reader.read_into(buffer, 0) == 2 * BLOCK
    assert buffer == first + second


def test_a_store_is_not_closed_and_serves_the_next_server(store: MemoryStore, large: Path) -> None:
    for name in ("one", "two"):
        with Server(store, port=0) as server, Client(server.address) as client:
            client.put(large, name)
    assert [each.name for each in store.list_files("", recursive=False, after=None)] == [
        "one",
        "two",
    ]


def test_tokens_work_but_one_with_a_quota_is_refused(
    store: MemoryStore, large: Path, tmp_path: Path
) -> None:
    tokens, identity = Tokens(tmp_path / "tokens.json"), Identity.make()
    plain = tokens.add(Grant(user="ada", under="home"))
    quota = tokens.add(Grant(user="bob", quota=10**9))
    with Server(store, port=0, tokens=tokens, identity=identity) as server:
        with Client(Url(server.address, pin=identity.pin, token=plain)) as client:
            client.put(large, "f")
        with (
            Client(Url(server.address, pin=identity.pin, token=quota)) as client,
            pytest.raises(
                RefusedError, match="a quota, which the server's store cannot enforce"
            ) as caught,
        ):
            client.ping()
    assert caught.value.code is Code.UNSUPPORTED
    assert store.stat("home/f").total == len(DATA) * 40


def test_several_workers_need_a_store_that_can_be_shared(store: MemoryStore) -> None:
    supervisor = Supervisor(store, WorkerConfig(workers=2), port=0)
    with pytest.raises(TypeError, match="a store that several processes can share"):
        supervisor.start()
