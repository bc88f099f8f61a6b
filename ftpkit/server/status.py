"""What `status` tells: what has ended since the start, and one object out of several workers'."""

import threading
from collections.abc import Mapping

from ftpkit.protocol.status import ServerStatus, Totals, TransferStatus
from ftpkit.scheduling.policies import level
from ftpkit.scheduling.scheduler import TransferSnapshot


class TransferTotals:
    """Counts the transfers of a server that have ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals = nothing()

    def add(self, direction: str, count: int, *, whole: bool) -> None:
        """Count a transfer "up" or "down" that has moved ``count`` bytes, all or not."""
        ended = nothing()
        if direction == "up":
            ended["up_bytes"] = count
            ended["uploads"] = int(whole)
        else:
            ended["down_bytes"] = count
            ended["downloads"] = int(whole)
        ended["unfinished"] = int(not whole)
        with self._lock:
            self._totals = added(self._totals, ended)

    def totals(self) -> Totals:
        """Return what has been counted so far."""
        with self._lock:
            return self._totals


def nothing() -> Totals:
    """Return the totals of a server that has just started."""
    return Totals(uploads=0, downloads=0, unfinished=0, up_bytes=0, down_bytes=0)


def added(one: Totals, other: Totals) -> Totals:
    """Return the sum of both."""
    return Totals(
        uploads=one["uploads"] + other["uploads"],
        downloads=one["downloads"] + other["downloads"],
        unfinished=one["unfinished"] + other["unfinished"],
        up_bytes=one["up_bytes"] + other["up_bytes"],
        down_bytes=one["down_bytes"] + other["down_bytes"],
    )


def told(standing: TransferSnapshot, now: float) -> TransferStatus:
    """Return what is told of a transfer."""
    transfer = standing.transfer
    return {
        "user": transfer.account.user,
        "peer": transfer.peer,
        "name": transfer.name,
        "direction": transfer.direction,
        "state": standing.state,
        "level": level(transfer.moved),
        "moved": transfer.moved,
        "total": transfer.total,
        "rate_bps": round(standing.bytes_per_s, 1),
        "left_s": left_s(transfer.moved, transfer.total, standing.bytes_per_s),
        "position": standing.position,
        "seconds": round(now - transfer.arrived_s, 3),
    }


def left_s(moved: int, total: int | None, bytes_per_s: float) -> float | None:
    """Return how many seconds a transfer still takes at ``bytes_per_s``, if that can be told."""
    return None if total is None or not bytes_per_s else max(0, total - moved) / bytes_per_s


def merged(parts: Mapping[int, ServerStatus], *, uptime_s: float, before: Totals) -> ServerStatus:
    """Return the status of a server from those of its workers, by their numbers.

    ``uptime_s`` is that of the whole, and ``before`` what ended in workers that are gone. What
    holds for the whole server is taken from the worker that started last: it knows best.
    """
    newest = min(parts.values(), key=lambda part: part["uptime_s"])
    totals = before
    for part in parts.values():
        totals = added(totals, part["totals"])
    return {
        **newest,
        "uptime_s": uptime_s,
        "connections": sum(part["connections"] for part in parts.values()),
        "workers": [
            {**worker, "number": number}
            for number, part in sorted(parts.items())
            for worker in part["workers"]
        ],
        "totals": totals,
        "transfers": [each for part in parts.values() for each in part["transfers"]],
    }
