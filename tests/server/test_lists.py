"""Long lists: read from the disk once, whatever the number of their pages."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ftpkit import Client, Server
from ftpkit.server import context
from ftpkit.storage.directory.filesystem import DirHandle

# Of so long names, a page holds about 3,300.
NAMES = [f"{number:05}-{'x' * 200}" for number in range(14_000)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    for name in NAMES:
        (root / name).touch()
    return root


def test_a_list_of_several_pages_reads_its_directory_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    names = DirHandle.names

    def count(self: DirHandle) -> Iterator[tuple[str, bool]]:
        nonlocal reads
        reads += 1
        return names(self)

    with Server(root, port=0) as server, Client(server.address) as client:
        monkeypatch.setattr(DirHandle, "names", count)
        assert [entry.name for entry in client.list()] == NAMES
        assert reads == 1
        # A request in between leaves the list where it was, and another list begins it anew.
        entries = client.list()
        next(entries)
        client.ping()
        assert [entry.name for entry in entries] == NAMES[1:]
        assert reads == 2


def test_lists_beyond_those_that_are_kept_begin_anew_behind_their_last_name(root: Path) -> None:
    with Server(root, port=0) as server:
        clients = [Client(server.address) for _ in range(context._MAX_PAUSED_LISTS + 2)]
        lists = [client.list() for client in clients]
        for entries in lists:
            next(entries)
        (root / NAMES[-1]).unlink()
        for entries in lists:
            assert [entry.name for entry in entries] == NAMES[1:-1]
        for client in clients:
            client.close()
