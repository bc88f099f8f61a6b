"""Hostile clients: paths out of the root, floods, and malformed requests."""

import json
import os
import socket
import subprocess
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from ftpkit import Client, FtpkitError, Server
from ftpkit.errors import Code, RefusedError
from ftpkit.osapi import files as os_files
from ftpkit.protocol.frame import MAX_HEADER, Decoder
from tests.support.attacker import attacker
from tests.support.hostile import Peer, hostile
from tests.support.logs import Log
from tests.support.raw import Raw, frame

SECRET: Final = b"secret" * 1000
MINE: Final = b"inside"
ROUNDS: Final = 20

# What an attacker in the root can bring about; ``internal`` is none of it.
ANSWERS: Final = {
    Code.NOT_FOUND, Code.NOT_A_DIRECTORY, Code.IS_A_DIRECTORY, Code.EXISTS, Code.CHANGED, Code.BUSY,
    Code.NOT_EMPTY,
}  # fmt: skip


# Beside its root


@pytest.mark.skipif(
    not os_files.HAS_DIR_FD or not hasattr(os, "mkfifo"),
    reason="without held directory descriptors a race can be lost",
)
@pytest.mark.parametrize(
    "way",
    [
        "link for a directory",
        "link for a file",
        "hard link for a file",
        "FIFO for a file",
        "link for the private directory",
        "link for the root",
    ],
)
def test_names_outside_the_root_are_refused(
    root: Path, tmp_path: Path, server: Server, log: Log, way: str
) -> None:
    outside = tmp_path / "outside"
    for directory in (root, outside):
        (directory / "d").mkdir(parents=True)
        for name in ("f", "d/f"):
            (directory / name).write_bytes(MINE if directory == root else SECRET)
    source = tmp_path / "source"
    source.write_bytes(MINE)
    with Client(server.address, timeout_s=20.0) as client, attacker(root, outside, way):
        for number in range(ROUNDS):
            target = tmp_path / f"copy{number}"
            for name in ("f", "d/f"):
                work: list[Callable[[], object]] = [
                    partial(client.get, name, target, overwrite=True),
                    partial(client.digest, name),
                    partial(client.put, source, name),
                    partial(client.rename, name, f"{name}2", overwrite=True),
                    partial(client.rename, f"{name}2", name),
                    partial(client.delete, f"{name}2"),
                ]
                for each in work:
                    ends_well(each)
                if target.exists():
                    assert target.read_bytes() == MINE
            for entry in client.list(recursive=True):
                assert entry.total != len(SECRET)
    assert (outside / "f").read_bytes() == (outside / "d" / "f").read_bytes() == SECRET
    assert log.so_far("error") == []


def ends_well(work: Callable[[], object]) -> None:
    try:
        work()
    except RefusedError as refusal:
        assert refusal.code in ANSWERS, refusal  # noqa: PT017
    except FtpkitError as error:
        # The file was replaced while it travelled.
        assert error.code in ("source-changed", "connection-lost"), error  # noqa: PT017


# In what they send


def full(before: str, unit: str, behind: str) -> bytes:
    """Return a header of as many ``unit`` as it holds."""
    count = (MAX_HEADER - len(before) - len(behind)) // (len(unit) + 1)
    return f"{before}{','.join([unit] * count)}{behind}".encode()


BOMBS: Final = {
    "empty lists": full('{"a":[', "[]", "]}"),
    "empty objects": full('{"a":[', "{}", "]}"),
    "small objects": full('{"a":[', '{"":0}', "]}"),
    "deep lists": full('{"a":[', "[" * 14 + "]" * 14, "]}"),
    "deeper lists": b'{"a":' + b"[" * 32_000 + b"]" * 32_000 + b"}",
    "numbers": full('{"a":[', "1e300", "]}"),
    "keys": json.dumps({f"{number:x}": 0 for number in range(6_000)}).encode(),
    "escapes": b'{"a":"' + b"\\ud83d\\ude00" * 5_400 + b'"}',
    "a long number": b'{"a":' + b"1" * 65_000 + b"}",
    "a long fraction": b'{"a":0.' + b"1" * 65_000 + b"}",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_header_takes_memory_in_proportion_to_its_bytes(bomb: str) -> None:
    raw = BOMBS[bomb]
    assert len(raw) <= MAX_HEADER
    tracemalloc.start()
    try:
        decoder = Decoder()
        decoder.feed(len(raw).to_bytes(4))
        try:
            decoder.feed(raw)
        except FtpkitError as error:
            assert error.code == Code.BAD_FRAME  # noqa: PT017
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # An empty object of Python is of 64 bytes, and its JSON of 3.
    assert peak < 96 * MAX_HEADER


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_deeply_nested_header_is_refused(raw: Raw, bomb: str) -> None:
    raw.send(BOMBS[bomb])
    assert raw.receive().code in (Code.BAD_FRAME, Code.BAD_REQUEST)


@pytest.mark.skipif(not os_files.HAS_DIR_FD, reason="paths are as long as the system takes them")
def test_a_name_of_2048_parts_is_walked_and_answered(
    raw: Raw, root: Path, log: Log, request: pytest.FixtureRequest
) -> None:
    # If the test fails, the tree that is left is too deep for pytest to remove.
    request.addfinalizer(lambda: subprocess.run(["rm", "-rf", str(root / "d")], check=True))
    deep = "/".join(["d"] * 2048)
    raw.granted("mkdir", name=deep)
    assert raw.granted("stat", name=deep)["kind"] == "dir"
    assert raw.refused("put", b"x", name=f"{deep[:-2]}/l/f") == Code.BAD_NAME
    raw.granted("put", b"x", name=f"{deep[:-2]}f")
    page = raw.granted("list", recursive=True)
    while page["next"] is not None:
        page = raw.granted("list", recursive=True, after=page["next"])
    raw.granted("delete", name="d", recursive=True)
    assert log.so_far("error") == []


REFUSALS: Final[set[str]] = {Code.NO_SPACE, Code.TOO_LARGE}


@pytest.mark.parametrize("total", [2**63 - 1, 2**62, 2**50])
def test_a_total_beyond_all_disks_costs_nothing(raw: Raw, root: Path, total: int) -> None:
    keys: dict[str, Any] = {"name": "f", "total": total, "block": 65_536}
    for basis in (False, True):
        assert raw.refused("begin", basis=basis, **keys) in REFUSALS
    assert raw.refused("put", name="f", size=total) in REFUSALS
    assert list((root / ".ftpkit" / "uploads").iterdir()) == []


def test_a_block_at_the_largest_offset_is_refused(raw: Raw, log: Log) -> None:
    upload = raw.granted("begin", name="f", total=None, block=65_536)["upload"]
    digest = "blake3:" + "00" * 32
    code = raw.refused("write", b"x" * 65_536, upload=upload, offset=2**63 - 65_536, digest=digest)
    assert code in (Code.BAD_REQUEST, Code.TOO_LARGE)
    assert raw.refused("commit", upload=upload, total=2**63 - 1) == Code.INCOMPLETE
    assert log.so_far("error") == []


@pytest.mark.parametrize("after", ["\x00", "/", "..", "\U0010ffff" * 5000, "d/" * 9000])
def test_a_list_after_an_invalid_name_is_answered(raw: Raw, root: Path, after: str) -> None:
    (root / "d").mkdir()
    (root / "d" / "f").write_bytes(b"")
    page = raw.granted("list", recursive=True, after=after)
    assert all(json.loads(line)["name"] in ("d", "d/f") for line in page.body.splitlines())


# What a hostile server sends a client


@pytest.mark.skipif(os.name != "posix", reason="there are no such modes here")
@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o7777, 2**40 + 0o755])
def test_a_setuid_bit_from_a_server_is_not_kept(tmp_path: Path, mode: int) -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        header: dict[str, Any] = {
            "ok": True, "name": "f", "offset": 0, "size": 0, "total": 0, "mtime": 0,
            "version": "v", "mode": mode,
            "digest": "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
        }  # fmt: skip
        while True:
            peer.request()
            peer.reply(header)

    with hostile(script) as address, Client(f"ftpk://{address[0]}:{address[1]}") as client:
        client.get("f", tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_mode & 0o7777 == mode & 0o777


# Floods


def test_a_client_that_sends_a_million_requests_and_never_reads_blocks_no_other(
    server: Server, raw: Raw
) -> None:
    """A server that falls behind stops reading: the flood stands still, and others are served."""
    flood = frame({"op": "ping"}) * 10_000
    with socket.create_connection((server.address.host, server.address.port)) as sock:
        sock.settimeout(0.5)
        sent = 0
        try:
            while sent < 100 * len(flood):
                sent += sock.send(flood)
        except TimeoutError:
            pass
        assert sent < 100 * len(flood), "a server must not read on while its replies are not read"
        for _ in range(3):
            assert raw.ask("ping").ok


def test_a_failure_tells_the_client_nothing(
    raw: Raw, root: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a store cannot explain stays in the log, on one line without what was asked."""

    def fail(*args: object) -> None:
        raise OSError(5, "Input/output error", str(root / "inner"))

    monkeypatch.setattr("ftpkit.storage.directory.tree.Tree.stat", fail)
    reply = raw.ask("stat", name="f", token="ftpk_very-secret")
    assert reply.code == Code.INTERNAL
    assert set(reply.header) == {"ok", "code", "message"}
    assert str(root) not in json.dumps(reply.header)
    fields = log.wait_for("error")
    assert "very-secret" not in repr(fields)
    assert fields["reference"] in reply["message"]
