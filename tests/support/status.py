"""A server's status for tests, with any keys changed."""

from typing import Any, Final

from ftpkit.protocol.status import ServerStatus, TransferStatus

TRANSFER: Final[TransferStatus] = {
    "user": "", "peer": "127.0.0.1:4711", "name": "a/b", "direction": "up", "state": "running",
    "level": None, "moved": 1000, "total": 4000, "rate_bps": 500.0, "left_s": 6.0,
    "position": None, "seconds": 2.5,
}  # fmt: skip

STATUS: Final[ServerStatus] = {
    "version": "1.2.3", "uptime_s": 7500.0, "connections": 3, "max_connections": 1024,
    "policy": None, "slots": None, "rate_bps": None,
    "workers": [{"number": 1, "pid": 123, "uptime_s": 7500.0, "connections": 3}],
    "totals": {
        "uploads": 12, "downloads": 3, "unfinished": 1,
        "up_bytes": 1_230_000_000, "down_bytes": 456_000,
    },
    "transfers": [],
}  # fmt: skip


def transfer(**keys: Any) -> TransferStatus:
    """Return a transfer's status in which ``keys`` differ."""
    return {**TRANSFER, **keys}  # type: ignore[typeddict-item]  # also for bad values


def status(*transfers: TransferStatus, **keys: Any) -> ServerStatus:
    """Return a server's status with ``transfers``, in which ``keys`` differ."""
    return {**STATUS, "transfers": list(transfers), **keys}  # type: ignore[typeddict-item]
