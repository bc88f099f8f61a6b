"""What ``status`` shows: lines for people, as wide as there is room."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from ftpkit.cli.format import escaped, fitted, truncated, width
from ftpkit.cli.output.table import Column, table
from ftpkit.cli.output.units import format_duration, format_size
from ftpkit.net.address import Address
from ftpkit.protocol.status import ServerStatus, TransferStatus


def format_rate(bytes_per_s: float) -> str:
    """Return bytes a second for a person: ``252 MB/s``."""
    return f"{format_size(bytes_per_s)}/s"


class Order(NamedTuple):
    """A column by which transfers are sorted, and the key on a keyboard that stands for it."""

    letter: str
    rank: Callable[[TransferStatus], Any]


_STATES: Final = {"running": 0, "ready": 1, "blocked": 2}


def _known(value: float | None) -> float:
    """Return a rank: what is unknown comes last."""
    return float("inf") if value is None else value


ORDERS: Final[dict[str, Order]] = {
    "rate": Order("r", lambda each: -each["rate_bps"]),
    "name": Order("n", lambda each: each["name"]),
    "user": Order("u", lambda each: each["user"]),
    "state": Order("s", lambda each: (_STATES.get(each["state"], 3), each["state"])),
    "position": Order("p", lambda each: _known(each["position"])),
    "done": Order("d", lambda each: -each["moved"]),
    "left": Order("l", lambda each: _known(each["left_s"])),
}

_COLUMNS: Final = (
    Column("user", "user"),
    Column("peer", "peer"),
    Column("direction", "way"),
    Column("state", "state"),
    Column("level", "level"),
    Column("position", "position"),
    Column("moved", "done", format_size),
    Column("total", "total", format_size),
    Column("percent", "%"),
    Column("rate_bps", "rate", format_rate),
    Column("left_s", "left", format_duration),
)
# Columns that are given up where there is no room, the first ones first, so that of the names
# at least so much is seen.
_DISPENSABLE: Final = ("peer", "level", "total", "position", "left_s", "user")
_NAME: Final = 20
_USER: Final = 16


def status_table(
    status: ServerStatus, address: Address, order: str, room: int | None = None
) -> list[str]:
    """Return all lines, the transfers last; each fits into ``room`` columns, if that is limited."""
    lines = [escaped(line) for line in _summary(status, address)]
    if status["transfers"]:
        lines += ["", *_transfers(status["transfers"], order, room)]
    return lines if room is None else [truncated(line, room) for line in lines]


def _summary(status: ServerStatus, address: Address) -> list[str]:
    lines = [
        f"ftpkit {status['version']} at {address}, up {format_duration(status['uptime_s'])},"
        f" {status['connections']:,} of {status['max_connections']:,} connections",
        *_schedule(status),
    ]
    lines += [
        f"worker {each['number']}: pid {each['pid']}, up {format_duration(each['uptime_s'])},"
        f" {_count(each['connections'], 'connection')}"
        for each in status["workers"]
    ]
    totals = status["totals"]
    lines.append(
        f"ended: {_count(totals['uploads'], 'upload')}, {_count(totals['downloads'], 'download')},"
        f" {totals['unfinished']:,} unfinished; {format_size(totals['up_bytes'])} up,"
        f" {format_size(totals['down_bytes'])} down"
    )
    lines.append(_now(status["transfers"]))
    return lines


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _schedule(status: ServerStatus) -> list[str]:
    words = []
    if status["policy"] is not None:
        words.append(f"policy {status['policy']}")
    if status["slots"] is not None:
        words.append(_count(status["slots"], "slot"))
    if status["rate_bps"] is not None:
        words.append(f"at most {format_rate(status['rate_bps'])}")
    return [", ".join(words)] if words else []


def _now(transfers: Sequence[TransferStatus]) -> str:
    states = Counter(each["state"] for each in transfers)
    counts = ", ".join(f"{states[state]:,} {state}" for state in _STATES)
    up, down = (
        format_rate(sum(each["rate_bps"] for each in transfers if each["direction"] == direction))
        for direction in ("up", "down")
    )
    return f"now: {counts}; {up} up, {down} down"


def _transfers(transfers: Sequence[TransferStatus], order: str, room: int | None) -> list[str]:
    rows = [_row(each) for each in sorted(transfers, key=ORDERS[order].rank)]
    columns = [
        column for column in _COLUMNS if any(row[column.key] not in (None, "") for row in rows)
    ]
    lines = table(columns, rows).splitlines()
    if room is not None:
        for key in _DISPENSABLE:
            if _widest(lines) + _NAME <= room:
                break
            columns = [column for column in columns if column.key != key]
            lines = table(columns, rows).splitlines()
    start = _widest(lines)
    names = ["name", *(escaped(str(row["name"])) for row in rows)]
    return [
        line + " " * (start + 2 - width(line))
        + (name if room is None else fitted(name, room - start - 2))
        for line, name in zip(lines, names, strict=True)
    ]  # fmt: skip


def _row(transfer: TransferStatus) -> dict[str, object]:
    total = transfer["total"]
    percent = None if total is None else min(100, 100 * transfer["moved"] // max(1, total))
    user = truncated(escaped(transfer["user"]), _USER)
    return {**transfer, "user": user, "percent": percent}


def _widest(lines: Sequence[str]) -> int:
    return max(map(width, lines))
