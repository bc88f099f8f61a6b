"""A server's rate and slots hold for all transfers together, however they travel."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from ftpkit import Client, Server
from ftpkit.client.transfer.udp import UdpMode
from ftpkit.errors import FtpkitError
from ftpkit.server.limits import Limits
from tests.support.raw import Raw

MIB: Final = 1024 * 1024
RATE: Final = 8.0 * MIB
# What may move at once, because it was not used before.
BURST_S: Final = 0.05


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Server]:
    with Server(
        tmp_path / "root", port=0, durable=False, limits=Limits(bytes_per_s=RATE)
    ) as server:
        yield server


def moved(server: Server, way: str, udp: UdpMode, tmp_path: Path) -> float:
    """Move four files of 1 MiB at once; return how long that took."""

    def move(number: int) -> None:
        with Client(server.address, udp=udp) as client:
            if way == "up":
                client.put(tmp_path / "f", f"f{number}")
            else:
                client.get("f", tmp_path / f"copy{number}")

    (tmp_path / "f").write_bytes(bytes(MIB))
    (tmp_path / "root" / "f").write_bytes(bytes(MIB))
    with ThreadPoolExecutor() as threads:
        begun = time.monotonic()
        list(threads.map(move, range(4)))
        return time.monotonic() - begun


@pytest.mark.parametrize("udp", [UdpMode.NO, UdpMode.ONLY])
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_rate_holds_for_all_connections(
    served: Server, tmp_path: Path, way: str, udp: UdpMode
) -> None:
    assert moved(served, way, udp, tmp_path) >= 4 * MIB / RATE - BURST_S


def test_each_direction_has_its_own_rate(served: Server, tmp_path: Path) -> None:
    moved(served, "up", UdpMode.NO, tmp_path)
    with Raw(served.address) as raw:
        body = raw.granted("get", name="f", length=1).body
    assert len(body) == 1


def test_a_changed_rate_applies_at_once(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(2 * MIB))
    with (
        Server(
            tmp_path / "root", port=0, durable=False, limits=Limits(bytes_per_s=1000.0)
        ) as server,
        Client(server.address) as client,
    ):
        future = client.submit_put(tmp_path / "f")
        while not [each for each in client.status()["transfers"] if each["moved"]]:
            assert not future.done()
        server.change(Limits())
        assert future.result().total == 2 * MIB
        assert client.status()["rate_bps"] is None


def test_one_slot_allows_one_transfer_at_a_time(tmp_path: Path) -> None:
    with Server(
        tmp_path / "root", port=0, durable=False, limits=Limits(slots=1, schedule="rr")
    ) as server:
        (tmp_path / "f").write_bytes(bytes(8 * MIB))
        with ThreadPoolExecutor() as threads, Client(server.address) as client:
            futures = [threads.submit(_put, server, tmp_path / "f", f"f{n}") for n in range(4)]
            running = 0
            while not all(future.done() for future in futures):
                states = [each["state"] for each in client.status()["transfers"]]
                running = max(running, states.count("running"))
            for future in futures:
                future.result()
    assert running <= 1


def _put(server: Server, path: Path, name: str) -> None:
    with Client(server.address) as client:
        client.put(path, name)


def test_stop_does_not_wait_for_transfers_without_a_turn(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(MIB))
    with (
        Server(tmp_path / "root", port=0, durable=False, limits=Limits(bytes_per_s=1.0)) as server,
        Client(server.address) as client,
    ):
        future = client.submit_put(tmp_path / "f")
        while not client.status()["transfers"]:
            assert not future.done()
        server.stop(grace_s=0)
        with pytest.raises(FtpkitError):
            future.result()
    assert not (tmp_path / "root" / "f").exists()
