"""The status of a server: the JSON body of the reply to ``status`` (WIRE.md section 6)."""

import json
from functools import cache
from types import UnionType
from typing import Any, Final, TypedDict, get_args, get_origin, get_type_hints, is_typeddict

from ftpkit.errors import ProtocolError
from ftpkit.protocol.frame import MAX_SIZE, decode_header

# In bytes: thousands of transfers with the longest names. Further ones are omitted.
MAX_STATUS: Final = 16 * 1024 * 1024


class WorkerStatus(TypedDict):
    """One worker process."""

    number: int
    pid: int
    uptime_s: float
    connections: int


class Totals(TypedDict):
    """Transfers that ended since the start, completed or ``unfinished``, and bytes moved."""

    uploads: int
    downloads: int
    unfinished: int
    up_bytes: int
    down_bytes: int


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
    level: int | None
    moved: int
    total: int | None
    rate_bps: float
    left_s: float | None
    position: int | None
    seconds: float


class ServerStatus(TypedDict):
    """The whole server; ``policy``, ``slots`` and ``rate_bps`` (bytes per second) may be unset."""

    version: str
    uptime_s: float
    connections: int
    max_connections: int
    policy: str | None
    slots: int | None
    rate_bps: float | None
    workers: list[WorkerStatus]
    totals: Totals
    transfers: list[TransferStatus]


def encode_status(status: ServerStatus) -> bytes:
    """Return the body for ``status``; it has at most MAX_STATUS bytes, so maybe fewer transfers."""
    while len(body := _json(status)) > MAX_STATUS:
        transfers = status["transfers"]
        status = {**status, "transfers": transfers[: len(transfers) // 2]}
    return body


def decode_status(body: bytes) -> ServerStatus:
    """Return the status in ``body``, which may have more keys; raises ProtocolError."""
    status: Any = decode_header(body)
    for key, kind in _keys(ServerStatus).items():
        if not (key in status and _fits(status[key], kind)):
            raise ProtocolError(f"bad status: {key!r} is missing or invalid")
    return status  # type: ignore[no-any-return]  # its keys are checked above


def _json(status: ServerStatus) -> bytes:
    return json.dumps(status, ensure_ascii=False, separators=(",", ":")).encode()


@cache
def _keys(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of ``kind``; numbers are in the range from 0 to 2^63-1."""
    if is_typeddict(kind):
        keys = _keys(kind)
        return type(value) is dict and all(
            key in value and _fits(value[key], each) for key, each in keys.items()
        )
    if get_origin(kind) is list:
        (each,) = get_args(kind)
        return type(value) is list and all(_fits(item, each) for item in value)
    if get_origin(kind) is UnionType:
        return any(_fits(value, each) for each in get_args(kind))
    if kind in (int, float):
        return type(value) in (int, kind) and 0 <= value <= MAX_SIZE
    return type(value) is kind
