"""What a server tells of itself: the JSON object in the reply to ``status`` (WIRE.md section 6)."""

import json
from functools import cache
from types import UnionType
from typing import Any, Final, TypedDict, get_args, get_origin, get_type_hints, is_typeddict

from ftpkit.errors import ProtocolError
from ftpkit.protocol.frame import MAX_SIZE, decode_header

# Thousands of transfers with the longest names; more are left out.
MAX_STATUS: Final = 16 * 1024 * 1024


class WorkerStatus(TypedDict):
    """One process of the server."""

    number: int
    pid: int
    uptime_s: float
    connections: int


class Totals(TypedDict):
    """What has ended since the start: in good order or ``unfinished``, and the bytes moved."""

    uploads: int
    downloads: int
    unfinished: int
    up_bytes: int
    down_bytes: int


class TransferStatus(TypedDict):
    """A transfer that goes on, over one connection or several.

    ``state`` is "ready", "running" or "blocked", ``position`` its place among those that are
    ready, ``rate_bps`` bytes a second of late, and ``left_s`` the seconds that it then still takes.
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
    """The whole server; ``policy``, ``slots`` and ``rate_bps`` are None where none is set."""

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
    """Return the body that carries ``status``; of too many transfers it has the first ones."""
    while len(body := _json(status)) > MAX_STATUS:
        transfers = status["transfers"]
        status = {**status, "transfers": transfers[: len(transfers) // 2]}
    return body


def decode_status(body: bytes) -> ServerStatus:
    """Return the status that ``body`` carries, or raise ProtocolError; it may have more keys."""
    status: Any = decode_header(body)
    for key, kind in _keys(ServerStatus).items():
        if not (key in status and _fits(status[key], kind)):
            raise ProtocolError(f"the server's status has no good {key!r}")
    return status  # type: ignore[no-any-return]  # its keys were looked at


def _json(status: ServerStatus) -> bytes:
    return json.dumps(status, ensure_ascii=False, separators=(",", ":")).encode()


@cache
def _keys(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value from JSON is of ``kind``; no number is negative or beyond 63 bits."""
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
