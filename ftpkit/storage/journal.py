"""The journal of an upload: which blocks are held, and which of them are on stable storage.

A journal is a sequence of records, each "kind, length, payload, CRC-32". Reading stops at the
first record that is cut off or damaged; nothing after it counts:

``O`` the spec of the upload (JSON; the last one counts)
``B`` a block was written and matched its digest
``X`` a block is about to be overwritten, so it is no longer held
``C`` checkpoint: blocks recorded in the first N bytes of the journal are on stable storage
``P`` prepared: the whole file is on stable storage and may have been published (JSON)
``R`` published: what the commit returned (JSON)
"""

import json
import zlib
from dataclasses import dataclass, field
from functools import partial
from struct import Struct
from typing import Any, Final

from ftpkit.protocol.digest import format_digest, split_digest
from ftpkit.protocol.fields import BLOCK_RECORD

_HEAD: Final = Struct("!cI")
_CRC: Final = Struct("!I")
_OFFSET: Final = Struct("!Q")
_MAX_PAYLOAD: Final = 64 * 1024

MAX_RECORD: Final = _HEAD.size + _MAX_PAYLOAD + _CRC.size


@dataclass(frozen=True, slots=True)
class HeldBlock:
    """A block in the journal, whose record ends at the offset ``end`` there."""

    length: int
    digest: str
    end: int


@dataclass(slots=True)
class JournalState:
    """What a journal says: it has ``length`` good bytes, ``safe`` of them before a checkpoint."""

    spec: dict[str, Any] = field(default_factory=dict)
    blocks: dict[int, HeldBlock] = field(default_factory=dict)
    length: int = 0
    safe: int = 0
    prepared: dict[str, Any] | None = None
    published: dict[str, Any] | None = None

    def is_safe(self, block: HeldBlock) -> bool:
        """Whether a checkpoint covers the block, so that no crash can have lost it."""
        return block.end <= self.safe


def encode_block(offset: int, length: int, digest: str) -> bytes:
    """Return the record of a held block; its digest is stored as raw bytes and algorithm."""
    algorithm, raw = split_digest(digest)
    return _record(b"B", BLOCK_RECORD.pack(offset, length, raw) + algorithm.encode())


def encode_forget(offset: int) -> bytes:
    """Return the record that a block is no longer held."""
    return _record(b"X", _OFFSET.pack(offset))


def encode_checkpoint(covered: int) -> bytes:
    """Return the checkpoint for blocks recorded in the first ``covered`` bytes."""
    return _record(b"C", _OFFSET.pack(covered))


def replay(data: bytes) -> JournalState:
    """Return the state that the good records at the start of ``data`` describe."""
    state = JournalState()
    while (end := _end_of_record(data, state.length)) is not None:
        kind = data[state.length : state.length + 1]
        payload = data[state.length + _HEAD.size : end - _CRC.size]
        if not _apply(state, kind, payload, end):
            break
        state.length = end
    return state


def _apply(state: JournalState, kind: bytes, payload: bytes, end: int) -> bool:
    match kind:
        case b"B":
            offset, length, raw = BLOCK_RECORD.unpack_from(payload)
            digest = format_digest(payload[BLOCK_RECORD.size :].decode(), raw)
            state.blocks[offset] = HeldBlock(length, digest, end)
        case b"X":
            state.blocks.pop(_OFFSET.unpack(payload)[0], None)
        case b"C":
            state.safe = min(_OFFSET.unpack(payload)[0], state.length)
        case b"O":
            state.spec = json.loads(payload)
        case b"P":
            state.prepared = json.loads(payload)
        case b"R":
            state.published = json.loads(payload)
        case _:
            return False
    return True


def _end_of_record(data: bytes, start: int) -> int | None:
    """Return where the record at ``start`` ends, or None if it is cut off or damaged."""
    if len(data) - start < _HEAD.size:
        return None
    _, length = _HEAD.unpack_from(data, start)
    end = start + _HEAD.size + int(length) + _CRC.size
    if length > _MAX_PAYLOAD or end > len(data):
        return None
    (crc,) = _CRC.unpack_from(data, end - _CRC.size)
    return end if zlib.crc32(data[start : end - _CRC.size]) == crc else None


def _record(kind: bytes, payload: bytes) -> bytes:
    record = _HEAD.pack(kind, len(payload)) + payload
    return record + _CRC.pack(zlib.crc32(record))


def _json_record(kind: bytes, value: dict[str, Any]) -> bytes:
    return _record(kind, json.dumps(value, separators=(",", ":")).encode())


encode_spec = partial(_json_record, b"O")
encode_prepared = partial(_json_record, b"P")
encode_published = partial(_json_record, b"R")
