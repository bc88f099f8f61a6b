"""Datagrams, and a disk that fills up, a server that is killed, a machine out of descriptors."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ftpkit.client import Client, UdpMode
from ftpkit.errors import Code, ConnectionLostError, FtpkitError, RefusedError, UdpBlockedError
from ftpkit.storage.directory.filesystem import FileSystem
from tests.faults.conftest import MIB, left_over, noise, settled, visible
from tests.faults.processes import Served
from tests.faults.test_space import fill, serving, tiny
from tests.support.udp_relay import Wire

__all__ = ["tiny"]

BLOCK = 4 * MIB
WAIT_S = 60.0


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the disk is filled with it")
@pytest.mark.parametrize("udp", [UdpMode.FIRST, UdpMode.ONLY])
def test_a_full_disk_during_udp_is_reported_on_the_connection(
    tiny: Path, here: Path, udp: UdpMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As where nothing is reserved: only then can it fill up in the middle.
    monkeypatch.setattr(FileSystem, "preallocate", lambda *args: None)
    source = settled(here / "large", noise(3 * BLOCK, 1))
    with serving(tiny) as server, Client(server.address, udp=udp) as client:
        filler = fill(tiny, leave=2 * BLOCK)
        with pytest.raises(RefusedError) as caught:
            client.put(source)
        assert caught.value.code == Code.NO_SPACE
        assert client.ping() >= 0
        assert visible(tiny) == ["filler"]
        filler.unlink()
        client.put(source)
        assert (tiny / "large").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_udp_transfer_resumes_after_the_server_was_killed(
    tmp_path: Path, here: Path, direction: str
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    data = noise(8 * BLOCK, 2)
    source = settled(here / "large", data)
    if direction == "down":
        (root / "large").write_bytes(data)
    reached = threading.Event()
    with Served(root) as server, Wire(server.address) as wire:

        def fate(raw: bytes, up: bool) -> list[bytes]:
            if wire.up + wire.down > 5 * BLOCK:
                reached.set()
            return [raw]

        def restart() -> None:
            assert reached.wait(WAIT_S)
            server.kill()
            server.start()

        wire.fate = fate
        retries: list[FtpkitError] = []
        with (
            ThreadPoolExecutor(1) as pool,
            Client(wire.address, udp=UdpMode.ONLY, retry_for_s=WAIT_S) as client,
        ):
            restarting = pool.submit(restart)
            if direction == "up":
                client.put(source, on_retry=lambda error, delay: retries.append(error))
            else:
                client.get(
                    "large", here / "copy", on_retry=lambda error, delay: retries.append(error)
                )
            restarting.result()
        assert retries
        assert all(isinstance(error, ConnectionLostError) for error in retries)
        assert wire.tcp.up + wire.tcp.down < MIB
    assert (root / "large").read_bytes() == data
    assert left_over(root) == []
    if direction == "down":
        assert (here / "copy").read_bytes() == data


def test_a_client_out_of_descriptors_goes_on_over_tcp(tmp_path: Path, here: Path) -> None:
    resource = pytest.importorskip("resource")
    root = tmp_path / "root"
    root.mkdir()
    source = settled(here / "large", noise(BLOCK + 1, 3))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    retries: list[FtpkitError] = []
    taken = threading.Event()

    def take(moved: int, total: int) -> None:
        if not taken.is_set():
            taken.set()
            with open(os.devnull, "rb") as lowest:
                resource.setrlimit(resource.RLIMIT_NOFILE, (lowest.fileno(), hard))

    def give_back(error: FtpkitError, delay: float) -> None:
        retries.append(error)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    with Served(root) as server, Client(server.address, udp=UdpMode.FIRST) as client:
        client.ping()
        try:
            client.put(source, on_progress=take, on_retry=give_back)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [type(error) for error in retries] == [UdpBlockedError]
    assert (root / "large").read_bytes() == source.read_bytes()
