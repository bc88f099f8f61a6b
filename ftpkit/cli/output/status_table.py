"""The output of ``status`` for people, as wide as the terminal."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

from ftpkit.cli.format import escaped, fitted, truncated, width
from ftpkit.cli.output.table import Column, table
from ftpkit.cli.output.units import format_duration, format_rate, format_size
from ftpkit.net.address import Address
from ftpkit.protocol.status import ServerStatus, TransferStatus

_STATES: Final = {"running": 0, "ready": 1, "blocked": 2}


def _known(value: float | None) -> float:
    """Return a sort key that puts unknown values last."""
    return float("inf") if value is None else value


# A key for each sort order of transfers; its first letter selects it.
ORDERS: Final[dict[str, Callable[[TransferStatus], Any]]] = {
    "rate": lambda each: -each["rate_bps"],
    "name": lambda each: each["name"],
    "user": lambda each: each["user"],
    "state": lambda each: (_STATES.get(each["state"], 3), each["state"]),
    "position": lambda each: _known(each["position"]),
    "done": lambda each: -each["moved"],
    "left": lambda each: _known(each["left_s"]),
}

_COLUMNS: Final = (
    Column("user", "user"),
    Column("peer", "peer"),
    Column("direction", "dir"),
    Column("state", "state"),
    Column("level", "level"),
    Column("position", "position"),
    Column("moved", "done", format_size),
    Column("total", "total", format_size),
    Column("percent", "%"),
    Column("rate_bps", "rate", format_rate),
    Column("left_s", "left", format_duration),
)
# What a narrow table leaves out, in this order, until names have _NAME columns of the terminal.
_OPTIONAL: Final = ("peer", "level", "total", "position", "left_s", "user", "moved", "direction")
_NAME: Final = 20
_USER: Final = 16


def status_table(
    status: ServerStatus, address: Address, order: str, columns: int | None = None
) -> list[str]:
    """Return the lines, the transfers last; truncated to ``columns`` unless it is None."""
    lines = [escaped(line) for line in _summary(status, address)]
    if status["transfers"]:
        lines += ["", *_transfers(status["transfers"], order, columns)]
    return lines if columns is None else [truncated(line, columns) for line in lines]


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
    uploads = _count(totals["uploads"], "upload")
    downloads = _count(totals["downloads"], "download")
    return [
        *lines,
        f"finished: {uploads}, {downloads}, {totals['unfinished']:,} unfinished;"
        f" {format_size(totals['up_bytes'])} up, {format_size(totals['down_bytes'])} down",
        _now(status["transfers"]),
    ]


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


def _transfers(transfers: Sequence[TransferStatus], order: str, max_width: int | None) -> list[str]:
    rows = [_row(each) for each in sorted(transfers, key=ORDERS[order])]
    columns = [
        column for column in _COLUMNS if any(row[column.key] not in (None, "") for row in rows)
    ]
    lines = table(columns, rows).splitlines()
    if max_width is not None:
        for key in _OPTIONAL:
            if _widest(lines) + _NAME <= max_width:
                break
            columns = [column for column in columns if column.key != key]
            lines = table(columns, rows).splitlines()
    start = _widest(lines) + 2
    names = ["name", *(escaped(str(row["name"])) for row in rows)]
    if max_width is not None:
        names = [fitted(name, max_width - start) for name in names]
    return [
        line + " " * (start - width(line)) + name for line, name in zip(lines, names, strict=True)
    ]


def _row(transfer: TransferStatus) -> dict[str, object]:
    total = transfer["total"]
    percent = None if total is None else min(100, 100 * transfer["moved"] // max(1, total))
    user = truncated(escaped(transfer["user"]), _USER)
    return {**transfer, "user": user, "percent": percent}


def _widest(lines: Sequence[str]) -> int:
    return max(map(width, lines))
