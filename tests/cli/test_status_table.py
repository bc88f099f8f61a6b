import pytest

from ftpkit.cli.format import width
from ftpkit.cli.output.status_table import ORDERS, status_table
from ftpkit.net.address import Address
from ftpkit.protocol.status import ServerStatus
from tests.support.status import status, transfer

ADDRESS = Address("h", 7)


def shown_of(reported: ServerStatus, order: str = "rate", room: int | None = None) -> list[str]:
    return status_table(reported, ADDRESS, order, room)


def names(reported: ServerStatus, order: str) -> list[str]:
    return [line.split()[-1] for line in shown_of(reported, order)[6:]]


def test_a_server_at_rest() -> None:
    assert shown_of(status()) == [
        "ftpkit 1.2.3 at ftpk://h:7, up 2 h 05 min, 3 of 1,024 connections",
        "worker 1: pid 123, up 2 h 05 min, 3 connections",
        "finished: 12 uploads, 3 downloads, 1 unfinished; 1.23 GB up, 456 kB down",
        "now: 0 running, 0 ready, 0 blocked; 0 B/s up, 0 B/s down",
    ]


def test_transfers_and_how_they_are_scheduled() -> None:
    reported = status(
        transfer(user="ada", peer="h:1", level=2),
        transfer(
            peer="h:1", name="é", direction="down", state="ready", position=1, total=None,
            left_s=None,
        ),
        transfer(
            peer="h:1", name="e\x1b", state="blocked", moved=0, total=0, rate_bps=0.0, left_s=None
        ),
        policy="fair", slots=1, rate_bps=2e7,
    )  # fmt: skip
    assert shown_of(reported)[1] == "policy fair, 1 slot, at most 20.0 MB/s"
    assert shown_of(reported)[4:] == [
        "now: 1 running, 1 ready, 1 blocked; 500 B/s up, 500 B/s down",
        "",
        "user  peer  dir   state    level  position     done    total   %     rate   left  name",
        "ada   h:1   up    running      2         -  1.00 kB  4.00 kB  25  500 B/s  6.0 s  a/b",
        "      h:1   down  ready        -         1  1.00 kB        -   -  500 B/s      -  é",
        "      h:1   up    blocked      -         -      0 B      0 B   0    0 B/s      -  e\\x1b",
    ]


def test_empty_columns_are_not_shown() -> None:
    heading = shown_of(status(transfer()))[5].split()
    assert heading == ["peer", "dir", "state", "done", "total", "%", "rate", "left", "name"]


def test_every_order() -> None:
    reported = status(
        transfer(name="b", user="x", state="ready", moved=3, rate_bps=1.0, left_s=9.0, position=2),
        transfer(name="c", user="y", state="running", moved=1, rate_bps=3.0, left_s=None),
        transfer(name="a", user="z", state="blocked", moved=2, rate_bps=2.0, left_s=1.0),
        transfer(name="d", user="w", state="ready", moved=0, rate_bps=0.0, left_s=5.0, position=1),
        transfer(name="e", user="v", state="odd", moved=9, rate_bps=9.0, left_s=0.0, position=9),
    )
    assert {order: "".join(names(reported, order)) for order in ORDERS} == {
        "rate": "ecabd",
        "name": "abcde",
        "user": "edbca",
        "state": "cbdae",
        "position": "dbeca",
        "done": "ebacd",
        "left": "eadbc",
    }


def test_every_key_is_one_letter() -> None:
    letters = {order[0] for order in ORDERS}
    assert len(letters | {"q"}) == len(ORDERS) + 1


@pytest.mark.parametrize("room", [1, 10, 30, 40, 60, 80, 100, 200])
def test_no_line_is_wider_than_the_terminal(room: int) -> None:
    reported = status(
        transfer(user="u" * 300, name="n" * 4000 + "/名字.iso", level=1, position=10**12),
        transfer(user="字" * 300, peer="[::1]:9", moved=2**63 - 1, rate_bps=9e18, left_s=9e18),
        version="v" * 300,
        policy="p" * 300,
    )
    lines = shown_of(reported, room=room)
    assert max(map(width, lines)) <= room
    if room >= 60:
        assert "/名字.iso" in "".join(lines)


def test_narrow_tables_omit_columns_before_names() -> None:
    reported = status(transfer(name="n" * 100, level=1, position=1, user="ada"))
    headings = {room: shown_of(reported, room=room)[5].split() for room in (60, 80, 100, 120)}
    assert len({len(heading) for heading in headings.values()}) == 4
    for heading in headings.values():
        assert {"dir", "state", "done", "%", "rate", "name"} <= {*heading}
    assert "peer" in headings[120]
    assert "peer" not in headings[100]


def test_control_characters_of_a_server_are_escaped() -> None:
    evil = "\x1b[31m\r\n\u202e"
    reported = status(
        transfer(user=evil, peer=evil, name=evil, direction=evil, state=evil),
        version=evil,
        policy=evil,
    )
    for room in (None, 80):
        assert all(line.isprintable() for line in shown_of(reported, room=room))
