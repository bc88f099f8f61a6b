"""One session on a line and a store that are made for the case."""

import os
import socket
from pathlib import Path
from typing import Any, cast

import pytest

from ftpkit.net.buffer_pool import BufferPool
from ftpkit.net.frame_stream import FrameStream
from ftpkit.server.context import SessionContext
from ftpkit.server.jobs import Jobs
from ftpkit.server.session import Session
from ftpkit.storage import DirectoryStore
from tests.support.raw import frame, frames_in
from tests.support.split_socket import CutSocket
from tests.support.status import status


class Changing:
    """A store whose files are written to as soon as somebody has read their last byte."""

    def __init__(self, store: DirectoryStore, path: Path) -> None:
        self._store, self._path = store, path

    def read(self, name: str) -> Any:
        return ChangingReader(self._store.read(name), self._path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class ChangingReader:
    def __init__(self, reader: Any, path: Path) -> None:
        self._reader, self._path = reader, path

    def unchanged(self) -> bool:
        os.utime(self._path, ns=(1, 1))
        return bool(self._reader.unchanged())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def __enter__(self) -> "ChangingReader":
        return self

    def __exit__(self, *exc: object) -> None:
        self._reader.__exit__()


def answers(store: Any, requests: bytes) -> bytes:
    """Return the replies of a session to recorded requests."""
    sock = CutSocket(requests, [])
    stream = FrameStream(cast(socket.socket, sock), stall_timeout_s=10.0)
    Session(SessionContext(store, Jobs(), BufferPool(), stream, status=status, peer="test")).run()
    return bytes(sock.sent)


@pytest.mark.parametrize("total", [1, 100, 65_536, 65_537, 1_048_577, 3_000_000])
def test_a_file_that_changes_at_the_last_moment_is_cut_short(tmp_path: Path, total: int) -> None:
    (tmp_path / "f").write_bytes(bytes(total))
    request = frame({"op": "get", "name": "f"})
    with DirectoryStore(tmp_path) as store:
        (reply,) = frames_in(answers(store, request))
        assert len(reply.body) == total
        assert len(answers(Changing(store, tmp_path / "f"), request)) < total + 100


def test_a_setuid_bit_is_never_kept(tmp_path: Path) -> None:
    stream = frame({"op": "put", "name": "f", "size": 1, "mode": 0o6755}, b"x")
    stream += frame({"op": "begin", "name": "g", "total": 0, "block": 65_536, "mode": 0o7755})
    with DirectoryStore(tmp_path) as store:
        _, begun = frames_in(answers(store, stream))
        commit = frame({"op": "commit", "upload": begun["upload"], "total": 0})
        assert next(frames_in(answers(store, commit))).ok
    for name in ("f", "g"):
        assert (tmp_path / name).stat().st_mode & 0o7777 == 0o755
