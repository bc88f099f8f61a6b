"""The status of a server: the JSON body of the reply to ``status`` (WIRE.md section 6)."""

from typing import Annotated, Any, Final, TypedDict

from ftpkit.errors import ProtocolError
from ftpkit.protocol.fields import Constraint, Size, validator
from ftpkit.protocol.frame import MAX_SIZE, decode_header, encode_json

# In bytes: thousands of transfers with the longest names. Further ones are omitted.
MAX_STATUS: Final = 16 * 1024 * 1024

Number = Annotated[float, Constraint("from 0 to 2^63-1", lambda v: 0 <= v <= MAX_SIZE)]


class WorkerStatus(TypedDict):
    number: Size
    pid: Size
    uptime_s: Number
    connections: Size


class Totals(TypedDict):
    """Transfers that ended since the start, completed or ``unfinished``, and bytes moved."""

    uploads: Size
    downloads: Size
    unfinished: Size
    up_bytes: Size
    down_bytes: Size


class TransferStatus(TypedDict):
    """A running transfer, over one connection or several.

    ``state`` is "ready", "running" or "blocked"; ``position`` is its place in the queue of
    ready transfers, from 1. ``rate_bps`` is the current rate in bytes per second, and
    ``left_s`` the estimate of the remaining seconds.
    """

    user: str
    peer: str
    name: str
    direction: str
    state: str
    level: Size | None
    moved: Size
    total: Size | None
    rate_bps: Number
    left_s: Number | None
    position: Size | None
    seconds: Number


class ServerStatus(TypedDict):
    """The whole server; ``policy``, ``slots`` and ``rate_bps`` (bytes per second) may be unset."""

    version: str
    uptime_s: Number
    connections: Size
    max_connections: Size
    policy: str | None
    slots: Size | None
    rate_bps: Number | None
    workers: list[WorkerStatus]
    totals: Totals
    transfers: list[TransferStatus]


def encode_status(status: ServerStatus) -> bytes:
    """Return the body for ``status``; it has at most MAX_STATUS bytes, so maybe fewer transfers."""
    while len(body := encode_json(status)) > MAX_STATUS:
        transfers = status["transfers"]
        status = {**status, "transfers": transfers[: len(transfers) // 2]}
    return body


def decode_status(body: bytes) -> ServerStatus:
    """Return the status in ``body``, which may have more keys; raises ProtocolError."""
    status: Any = decode_header(body)
    for key, kind in ServerStatus.__annotations__.items():
        if not (key in status and validator(kind)(status[key])):
            raise ProtocolError(f"bad status: {key!r} is missing or invalid")
    return status  # type: ignore[no-any-return]  # its keys are checked above
