import os
import socket
from pathlib import Path
from typing import Final

import pytest

from ftpkit import Client, Server, __version__
from ftpkit.protocol import encode_header
from ftpkit.protocol.digest import digest_of
from ftpkit.protocol.status import decode_status, encode_status
from ftpkit.scheduling.flow import Account, FlowState, Transfer
from ftpkit.scheduling.rate_limit import Direction
from ftpkit.scheduling.scheduler import TransferSnapshot
from ftpkit.server.status import (
    NO_TOTALS,
    TransferTotals,
    left_s,
    merge_status,
    sum_totals,
    transfer_status,
)
from tests.support.logs import Log
from tests.support.raw import Raw
from tests.support.status import status, transfer

BLOCK: Final = 65_536


def test_the_status_of_an_idle_server(server: Server, client: Client) -> None:
    found = client.status()
    assert found["version"] == __version__
    assert (found["connections"], found["max_connections"]) == (1, 1024)
    assert (found["policy"], found["slots"], found["rate_bps"]) == (None, None, None)
    (worker,) = found["workers"]
    assert (worker["number"], worker["pid"], worker["connections"]) == (1, os.getpid(), 1)
    assert found["totals"] == NO_TOTALS
    assert found["transfers"] == []


def test_the_uptime_grows_and_restarts_with_the_server(tmp_path: Path) -> None:
    server = Server(tmp_path, port=0)
    with server:
        first = server.status()["uptime_s"]
        assert first <= server.status()["uptime_s"]
        with Client(server.address) as client:
            client.ping()
        (tmp_path / "f").write_bytes(b"12345")
        with Client(server.address) as client:
            client.get("f", tmp_path / "copy")
        assert server.status()["totals"]["downloads"] == 1
    with server:
        assert server.status()["totals"] == NO_TOTALS


def test_ended_transfers_are_counted(
    server: Server, root: Path, client: Client, tmp_path: Path, log: Log
) -> None:
    (tmp_path / "f").write_bytes(bytes(1000))
    client.put(tmp_path / "f")
    client.put(tmp_path / "f", "g")
    client.get("f", tmp_path / "h")
    assert client.status()["totals"] == {
        "uploads": 2, "downloads": 1, "unfinished": 0, "up_bytes": 2000, "down_bytes": 1000,
    }  # fmt: skip
    with socket.create_connection(server.address) as sock:
        sock.sendall(encode_header({"op": "put", "name": "x", "size": 500}) + bytes(100))
    log.wait_for("transfer", outcome="unfinished")
    totals = client.status()["totals"]
    assert (totals["uploads"], totals["unfinished"], totals["up_bytes"]) == (2, 1, 2100)


def test_running_transfers_are_listed(server: Server, client: Client, raw: Raw) -> None:
    begun = raw.granted("begin", name="d/f", total=3 * BLOCK, block=BLOCK)
    data = bytes(BLOCK)
    raw.granted("write", data, upload=begun["upload"], offset=0, digest=digest_of(data))
    (found,) = client.status()["transfers"]
    assert (found["name"], found["direction"]) == ("d/f", "up")
    assert (found["moved"], found["total"]) == (BLOCK, 3 * BLOCK)
    assert found["user"]
    assert found["peer"].startswith(found["user"])
    raw.granted("abort", upload=begun["upload"])
    raw.granted("ping")
    assert client.status()["transfers"] == []


def test_status_can_be_requested_repeatedly(raw: Raw) -> None:
    for _ in range(3):
        reply = raw.granted("status")
        assert len(reply.body) == reply["size"]
    raw.granted("ping")


def test_totals_count_both_directions() -> None:
    ended = TransferTotals()
    ended.add("up", 10, whole=True)
    ended.add("up", 5, whole=False)
    ended.add("down", 7, whole=True)
    ended.add("down", 1, whole=False)
    before = ended.totals
    assert before == {
        "uploads": 1, "downloads": 1, "unfinished": 2, "up_bytes": 15, "down_bytes": 8,
    }  # fmt: skip
    ended.add("up", 10, whole=True)
    assert before["uploads"] == 1, "totals that were returned must not change"


@pytest.mark.parametrize(
    ("moved", "total", "bytes_per_s", "expected"),
    [
        (0, 100, 10.0, 10),
        (90, 100, 10.0, 1),
        (100, 100, 0.1, 0),
        (110, 100, 1.0, 0),
        (0, None, 10.0, None),
        (0, 100, 0.0, None),
    ],
)
def test_time_left(
    moved: int, total: int | None, bytes_per_s: float, expected: float | None
) -> None:
    assert left_s(moved, total, bytes_per_s) == expected


def test_the_status_of_several_workers_is_merged() -> None:
    ended = NO_TOTALS | {"uploads": 1, "up_bytes": 100}
    old = status(
        transfer(name="old"), uptime_s=100.0, connections=2, policy="fcfs", slots=3,
        workers=[{"number": 1, "pid": 11, "uptime_s": 100.0, "connections": 2}], totals=ended,
    )  # fmt: skip
    new = status(
        transfer(name="new"), uptime_s=1.0, connections=1, policy="fair", slots=4,
        workers=[{"number": 1, "pid": 22, "uptime_s": 1.0, "connections": 1}], totals=ended,
    )  # fmt: skip
    before = NO_TOTALS | {"downloads": 5, "unfinished": 1}
    whole = merge_status({7: new, 2: old}, uptime_s=500.0, before=before)
    assert (whole["uptime_s"], whole["connections"]) == (500.0, 3)
    assert (whole["policy"], whole["slots"]) == ("fair", 4), "what the newest knows"
    assert [(each["number"], each["pid"]) for each in whole["workers"]] == [(2, 11), (7, 22)]
    assert whole["totals"] == {
        "uploads": 2, "downloads": 5, "unfinished": 1, "up_bytes": 200, "down_bytes": 0,
    }  # fmt: skip
    assert {each["name"] for each in whole["transfers"]} == {"old", "new"}
    assert old["connections"] == 2, "the parts stay as they were"


def test_the_status_of_one_worker_is_unchanged() -> None:
    alone = status(transfer())
    assert merge_status({1: alone}, uptime_s=alone["uptime_s"], before=NO_TOTALS) == alone


def test_sums() -> None:
    one = NO_TOTALS | {"uploads": 1, "down_bytes": 5}
    assert sum_totals(one, one) == NO_TOTALS | {"uploads": 2, "down_bytes": 10}


@pytest.mark.parametrize("bytes_per_s", [0.0, 1e-300, 0.04, 1e12])
def test_a_transfer_that_stands_still_or_has_just_begun_has_a_valid_status(
    bytes_per_s: float,
) -> None:
    begun = Transfer(Account("ada"), "f", Direction.UP, 10**15, arrived_s=100.0)
    snapshot = TransferSnapshot(
        transfer=begun, state=FlowState.READY, bytes_per_s=bytes_per_s, position=1
    )
    # The clock was read before the transfer began.
    told = transfer_status(snapshot, 99.9)
    body = encode_status({**status(), "transfers": [told]})
    assert decode_status(body)["transfers"] == [told]
    assert told["seconds"] == 0.0
