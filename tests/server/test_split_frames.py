"""One conversation of every operation, cut in every way: the replies are always the same."""

import json
import random
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, cast

import blake3
import pytest

from ftpkit import Server
from ftpkit.net.buffer_pool import BufferPool
from ftpkit.net.frame_stream import FrameStream
from ftpkit.server.context import SessionContext
from ftpkit.server.jobs import Jobs
from ftpkit.server.session import Session
from ftpkit.storage import DirectoryStore
from ftpkit.storage.directory.filesystem import DirHandle, FileSystem
from tests.support.raw import Raw, Reply, frame, frames_in
from tests.support.split_socket import CutSocket
from tests.support.status import status
from tests.support.trees import published, staged

BLOCK: Final = 64 * 1024
MTIME: Final = 1_234_567_890_000_000_000
# All but status, whose reply is never the same twice.
OPERATIONS: Final = {
    "hello", "auth", "ping", "stat", "list", "mkdir", "rename", "delete", "digest", "put", "get",
    "begin", "write", "commit", "abort", "push", "pull",
}  # fmt: skip


class Unsynced(FileSystem):
    """A disk that is never waited for: these tests are about bytes on the line."""

    def sync(self, fd: int) -> None: ...

    def sync_data(self, fd: int) -> None: ...

    def sync_directory(self, directory: DirHandle) -> None: ...


def b3(data: bytes) -> str:
    return f"blake3:{blake3.blake3(data).hexdigest()}"


def conversation(upload: str, other: str) -> bytes:
    """Return every operation, some refusals between them, and bodies of several lengths."""
    requests: list[tuple[dict[str, Any], bytes]] = [
        ({"op": "hello", "version": 1, "agent": "t", "digests": ["blake3"], "id": 0}, b""),
        ({"op": "ping"}, b""),
        ({"op": "auth", "token": "t", "id": "s"}, b""),
        ({"op": "mkdir", "name": "d/é"}, b""),
        ({"op": "put", "name": "d/f", "digest": b3(b"hello"), "mtime": MTIME}, b"hello"),
        ({"op": "put", "name": "../f"}, b"refused"),
        ({"op": "put", "name": "d/f", "digest": b3(b"no")}, b"other"),
        ({"op": "get", "name": "d/f"}, b""),
        ({"op": "get", "name": "d/f", "offset": 1, "length": 3, "digest": "blake3"}, b""),
        ({"op": "get", "name": "none"}, b""),
        ({"op": "stat", "name": "d/f"}, b""),
        ({"op": "digest", "name": "d/f"}, b""),
        ({"op": "begin", "name": "g", "total": 9, "block": BLOCK, "mtime": MTIME}, b""),
        ({"op": "write", "upload": upload, "offset": 0, "digest": b3(b"x")}, b"something"),
        ({"op": "commit", "upload": upload, "total": 9}, b""),
        ({"op": "write", "upload": upload, "offset": 0, "digest": b3(b"the block")}, b"the block"),
        ({"op": "commit", "upload": upload, "total": 9}, b""),
        ({"op": "begin", "name": "h", "total": 3, "block": BLOCK}, b""),
        # Refused, for neither server here has a UDP port.
        ({"op": "push", "upload": other}, b""),
        ({"op": "pull", "name": "d/f", "version": "v", "block": BLOCK, "ranges": []}, b""),
        ({"op": "abort", "upload": other}, b""),
        ({"op": "rename", "name": "g", "to": "d/g"}, b""),
        ({"op": "list", "recursive": True}, b""),
        ({"op": "delete", "name": "d/g"}, b""),
        ({"op": "delete", "name": "d", "recursive": True}, b""),
        ({"op": "stat", "name": "d"}, b""),
        ({"op": "fly"}, b"away"),
        ({"op": "ping", "id": "last"}, b""),
    ]
    assert {header["op"] for header, _ in requests} == OPERATIONS | {"fly"}
    return b"".join(
        frame({**header, **({"size": len(body)} if body else {})}, body)
        for header, body in requests
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A root with two unfinished uploads, so that a recorded stream can name them; the stream."""
    root = tmp_path_factory.mktemp("pieces") / "template"
    with Server(root, port=0) as server, Raw(server.address) as raw:
        uploads = [
            raw.granted("begin", name=name, total=total, block=BLOCK)["upload"]
            for name, total in (("g", 9), ("h", 3))
        ]
    return root, conversation(*uploads)


def plain(reply: Reply) -> tuple[dict[str, Any], list[dict[str, Any]] | bytes]:
    """Return a reply without what the time or the disk decides."""
    header, body = dict(reply.header), reply.body
    for key in ("version", "mtime", "agent"):
        if key in header:
            header[key] = type(header[key])
    if "next" not in header:
        return header, body
    assert header.pop("digest") == b3(body)
    entries = [json.loads(line) for line in body.splitlines()]
    for entry in entries:
        if entry["kind"] == "dir":
            entry["mtime"] = int
    return header, entries


def replies_in(data: bytes) -> list[Any]:
    return [plain(reply) for reply in frames_in(data)]


def run_session(requests: bytes, cuts: Iterable[int], template: Path, root: Path) -> list[Any]:
    """Run a session on a fresh copy of the root, its input cut in pieces; return the replies."""
    shutil.copytree(template, root)
    sock = CutSocket(requests, cuts)
    with DirectoryStore(root, files=Unsynced()) as store:
        stream = FrameStream(cast(socket.socket, sock), stall_timeout_s=10.0)
        context = SessionContext(store, Jobs(), BufferPool(), stream, status=status, peer="test")
        Session(context).run()
        return replies_in(bytes(sock.sent))


def held(stream: bytes, cuts: Iterable[int], template: Path, root: Path) -> list[Any]:
    """Run a whole session in pieces, and check what it published; return the replies."""
    replies = run_session(stream, cuts, template, root)
    assert published(root) == {}
    assert staged(root) == []
    shutil.rmtree(root)
    return replies


@pytest.fixture(scope="module")
def expected(template: tuple[Path, bytes], tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The replies when the input arrives in one piece."""
    root, stream = template
    return held(stream, [], root, tmp_path_factory.mktemp("whole") / "root")


def test_every_request_has_its_reply(expected: list[Any]) -> None:
    codes = [header.get("code") for header, _ in expected]
    assert codes == [
        None, None, "unsupported", None, None, "bad-name", "digest-mismatch", None,
        None, "not-found", None, None, None, "digest-mismatch", "incomplete", None, None, None,
        "unsupported", "changed", None, None, None, None, None, "not-found", "unsupported",
        None,
    ]  # fmt: skip
    assert expected[7][1] == b"hello"
    assert expected[8][1] == b"ell"
    assert [entry["name"] for entry in expected[22][1]] == ["d", "d/f", "d/g", "d/é"]
    assert (expected[0][0]["id"], expected[-1][0]["id"]) == (0, "last")


def check_two_pieces(
    cuts: Iterable[int], template: tuple[Path, bytes], expected: list[Any], tmp_path: Path
) -> None:
    root, stream = template
    for cut in cuts:
        assert held(stream, [cut], root, tmp_path / "root") == expected, f"cut at {cut}"


def test_some_two_pieces(template: tuple[Path, bytes], expected: list[Any], tmp_path: Path) -> None:
    cuts = random.Random(2).sample(range(1, len(template[1])), 50)
    check_two_pieces(cuts, template, expected, tmp_path)


@pytest.mark.slow
def test_every_two_pieces(
    template: tuple[Path, bytes], expected: list[Any], tmp_path: Path
) -> None:
    check_two_pieces(range(1, len(template[1])), template, expected, tmp_path)


def test_byte_by_byte(template: tuple[Path, bytes], expected: list[Any], tmp_path: Path) -> None:
    root, stream = template
    assert held(stream, range(1, len(stream)), root, tmp_path / "root") == expected


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_any_length(
    template: tuple[Path, bytes], expected: list[Any], tmp_path: Path, seed: int
) -> None:
    root, stream = template
    dice = random.Random(seed)
    cuts = dice.sample(range(1, len(stream)), dice.randrange(2, len(stream) // 2))
    assert held(stream, cuts, root, tmp_path / "root") == expected


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1_000, 1_000_000])
def test_pieces_over_a_real_connection(
    template: tuple[Path, bytes], expected: list[Any], tmp_path: Path, piece: int
) -> None:
    root, stream = template
    shutil.copytree(root, tmp_path / "root")
    with Server(tmp_path / "root", port=0, datagrams=False) as server, Raw(server.address) as raw:
        for start in range(0, len(stream), piece):
            raw.sock.sendall(stream[start : start + piece])
        raw.finish()
        replies = replies_in(raw.rest())
    assert replies == expected


@pytest.mark.parametrize("count", [30, pytest.param(100, marks=pytest.mark.slow)])
def test_input_cut_anywhere_gets_the_same_replies(
    template: tuple[Path, bytes], expected: list[Any], tmp_path: Path, count: int
) -> None:
    root, stream = template
    for cut in random.Random(3).sample(range(len(stream)), count):
        replies = _cut_short(stream[:cut], root, tmp_path / "root")
        assert replies == expected[: len(replies)], f"cut at {cut}"


def _cut_short(stream: bytes, template: Path, root: Path) -> list[Any]:
    replies = run_session(stream, [], template, root)
    for name, data in published(root).items():
        assert data in (b"hello", b"the block"), name
    shutil.rmtree(root)
    return replies
