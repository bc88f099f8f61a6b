"""The status of a server: transfers that have ended, and the sum of several workers."""

import threading
from collections.abc import Mapping
from functools import reduce
from typing import Final

from ftpkit.protocol.status import ServerStatus, Totals, TransferStatus
from ftpkit.scheduling.policies import level
from ftpkit.scheduling.scheduler import TransferSnapshot

NO_TOTALS: Final = Totals(uploads=0, downloads=0, unfinished=0, up_bytes=0, down_bytes=0)


class TransferTotals:
    """Counts the transfers of a server that have ended; ``totals`` is replaced by each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.totals = NO_TOTALS

    def add(self, direction: str, count: int, *, whole: bool) -> None:
        """Count a transfer "up" or "down" that moved ``count`` bytes; ``whole`` if it finished."""
        up = direction == "up"
        ended = Totals(
            uploads=int(whole and up),
            downloads=int(whole and not up),
            unfinished=int(not whole),
            up_bytes=count if up else 0,
            down_bytes=0 if up else count,
        )
        with self._lock:
            self.totals = sum_totals(self.totals, ended)


def sum_totals(one: Totals, other: Totals) -> Totals:
    return Totals(
        uploads=one["uploads"] + other["uploads"],
        downloads=one["downloads"] + other["downloads"],
        unfinished=one["unfinished"] + other["unfinished"],
        up_bytes=one["up_bytes"] + other["up_bytes"],
        down_bytes=one["down_bytes"] + other["down_bytes"],
    )


def transfer_status(snapshot: TransferSnapshot, now: float) -> TransferStatus:
    transfer, bytes_per_s = snapshot.transfer, round(snapshot.bytes_per_s, 1)
    return {
        "user": transfer.account.user,
        "peer": transfer.peer,
        "name": transfer.name,
        "direction": transfer.direction,
        "state": snapshot.state,
        "level": level(transfer.moved),
        "moved": transfer.moved,
        "total": transfer.total,
        "rate_bps": bytes_per_s,
        # Of the rounded rate: one that has decayed to almost nothing promises no time.
        "left_s": left_s(transfer.moved, transfer.total, bytes_per_s),
        "position": snapshot.position,
        "seconds": max(0.0, round(now - transfer.arrived_s, 3)),
    }


def left_s(moved: int, total: int | None, bytes_per_s: float) -> float | None:
    """Return the seconds that a transfer still takes at ``bytes_per_s``; None if unknown."""
    return None if total is None or not bytes_per_s else max(0, total - moved) / bytes_per_s


def status_under(under: str, status: ServerStatus, roots: Mapping[str, str]) -> ServerStatus:
    """Return ``status`` as a user with the root ``under`` sees it.

    A transfer below it has its name from there; of others the user, peer and name are "".
    ``roots`` has the root of each user; the transfers of users that it lacks are hidden.
    """
    if not under:
        return status

    def seen(each: TransferStatus) -> TransferStatus:
        root = roots.get(each["user"])
        path = "" if root is None else f"{root}/{each['name']}".removeprefix("/")
        if path.startswith(f"{under}/"):
            return {**each, "name": path.removeprefix(f"{under}/")}
        return {**each, "user": "", "peer": "", "name": ""}

    return {**status, "transfers": [seen(each) for each in status["transfers"]]}


def merge_status(
    parts: Mapping[int, ServerStatus], *, uptime_s: float, before: Totals
) -> ServerStatus:
    """Return the status of a server from that of each worker, by worker number.

    ``uptime_s`` is that of the server, ``before`` the totals of workers that have ended. Settings
    are taken from the worker that started last, which has the latest.
    """
    newest = min(parts.values(), key=lambda part: part["uptime_s"])
    totals = reduce(sum_totals, (part["totals"] for part in parts.values()), before)
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
