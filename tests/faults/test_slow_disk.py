"""A disk that is slow: requests stay answered, work is done once, and ends when nobody waits."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from ftpkit.client import Client
from ftpkit.errors import Code
from ftpkit.server import Server
from ftpkit.storage import DirectoryStore
from ftpkit.storage.directory.filesystem import DirHandle, FileSystem
from tests.faults.conftest import MIB, noise, quiet, settled, visible
from tests.faults.crowd import Raw
from tests.faults.processes import Served
from tests.support.inside import handler_of

BLOCK: Final = 4 * MIB
FLUSH_S: Final = 4.5
# Less than a flush, more than the two seconds after which the server replies ``pending``.
TIMEOUT_S: Final = 3.5
HUGE: Final = 60 * 10**9


class SlowFiles(FileSystem):
    """The real disk, where bringing anything to stable storage takes long, once ``slow``."""

    def __init__(self) -> None:
        super().__init__(durable=False)
        self.slow = False
        self.renames = 0

    def sync(self, fd: int) -> None:
        self._flush()

    def sync_data(self, fd: int) -> None:
        self._flush()

    def sync_directory(self, directory: DirHandle) -> None:
        self._flush()

    def rename(self, source: DirHandle, part: str, target: DirHandle, to: str) -> None:
        self.renames += 1
        super().rename(source, part, target, to)

    def _flush(self) -> None:
        if self.slow:
            self.slow = False  # one for each test step: the others would only add to the time
            threading.Event().wait(FLUSH_S)


@pytest.fixture
def files() -> SlowFiles:
    return SlowFiles()


@pytest.fixture
def slow_server(root: Path, files: SlowFiles) -> Iterator[Server]:
    with DirectoryStore(root, files) as store, Server(store, port=0) as server:
        yield server
        server.stop(grace_s=0.0)


@pytest.mark.parametrize("size", [1000, 9 * MIB], ids=["put", "blocks"])
def test_an_upload_whose_flush_outlasts_the_timeout_is_published_once(
    slow_server: Server, files: SlowFiles, root: Path, here: Path, size: int
) -> None:
    source = settled(here / "file", body := noise(size, 1))
    with Client(slow_server.address, timeout_s=TIMEOUT_S) as client:
        client.ping()
        files.slow = True
        client.put(source)  # does not retry: the first request is acknowledged
    assert (root / "file").read_bytes() == body
    assert files.renames == 1 + (size > MIB)  # that of the file, and that of its journal


def test_changes_of_names_outlast_the_timeout(
    slow_server: Server, files: SlowFiles, root: Path
) -> None:
    with Client(slow_server.address, timeout_s=TIMEOUT_S) as client:
        client.ping()
        files.slow = True
        client.mkdir("a")
        files.slow = True
        client.rename("a", "b")
        client.delete("b")
        assert not files.slow
    assert visible(root) == []


def test_a_put_whose_connection_ended_during_the_flush_is_asked_for_over_another(
    slow_server: Server, files: SlowFiles, root: Path
) -> None:
    files.slow = True
    with Raw(slow_server.address) as raw:
        pending = raw.ask(b"body", op="put", name="file", size=4)
        assert pending["pending"]
        assert pending["job"]
    with Raw(slow_server.address) as raw:
        while (reply := raw.ask(op="wait", job=pending["job"])).get("pending"):
            assert reply["job"] == pending["job"]
        assert (reply["name"], reply["total"]) == ("file", 4)
        again = raw.ask(op="wait", job=pending["job"])
        assert again == reply
        assert raw.ask(op="wait", job="none")["code"] == Code.NOT_FOUND
    assert files.renames == 1


@pytest.fixture
def huge(root: Path) -> list[str]:
    """Names of files that take minutes to read, and no space."""
    root.mkdir(exist_ok=True)
    names = [f"huge {number}" for number in range(4)]
    for name in names:
        with open(root / name, "wb") as file:
            file.truncate(HUGE)
    return names


def test_digests_that_no_client_waits_for_end(server: Server, huge: list[str]) -> None:
    jobs = handler_of(server).jobs
    jobs._abandoned_s = 0.5
    with contextlib.ExitStack() as stack:
        for name in huge:
            raw = stack.enter_context(Raw(server.address))
            assert raw.ask(op="digest", name=name)["pending"]
        running = list(jobs._jobs.values())
    assert len(running) == len(huge)
    quiet(server)
    for job in running:
        assert job.finished.wait(10.0)


def test_a_server_with_long_digests_stops_after_its_grace(root: Path, huge: list[str]) -> None:
    with Served(root, ("--grace", "1s")) as server:
        for name in huge:
            with Raw(server.address) as raw:
                assert raw.ask(op="digest", name=name)["pending"]
        since = time.monotonic()
        server.ask_to_end()
        assert server.ended()[0] == 0
        assert time.monotonic() - since < 8.0
