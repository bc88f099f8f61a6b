"""What the fields of headers may hold, and the record of a block (WIRE.md sections 6 and 7)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Annotated, Any, Final

from ftpkit.protocol.digest import (
    DIGEST_BYTES,
    format_digest,
    looks_like_algorithm,
    looks_like_digest,
    split_digest,
)
from ftpkit.protocol.frame import MAX_SIZE
from ftpkit.protocol.names import check_name

MIN_BLOCK: Final = 64 * 1024
MAX_BLOCK: Final = 64 * 1024 * 1024

# Offset, length and raw digest of one block.
BLOCK_RECORD: Final = Struct(f"!QI{DIGEST_BYTES}s")


def pack_block_record(offset: int, length: int, digest: str) -> bytes:
    """Return one record of the body that replies to ``begin``."""
    return BLOCK_RECORD.pack(offset, length, split_digest(digest)[1])


def unpack_block_records(body: bytes, algorithm: str) -> Iterator[tuple[int, int, str]]:
    """Yield offset, length and digest of each record; ``body`` holds whole records."""
    for offset, length, raw in BLOCK_RECORD.iter_unpack(body):
        yield offset, length, format_digest(algorithm, raw)


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a value must satisfy beyond its Python type, and the words for it in an error."""

    expected: str
    accepts: Callable[[Any], bool]


def is_block_size(value: int) -> bool:
    """Whether ``value`` is a power of two from 64 KiB to 64 MiB."""
    return MIN_BLOCK <= value <= MAX_BLOCK and value & (value - 1) == 0


def _are_strings(value: list[Any]) -> bool:
    return all(type(item) is str for item in value)


def _are_integers(value: dict[str, Any]) -> bool:
    return all(type(item) is int for item in value.values())


def _are_ranges(value: list[Any]) -> bool:
    return all(
        type(pair) is list
        and list(map(type, pair)) == [int, int]
        and 0 <= pair[0] < pair[1] <= MAX_SIZE
        for pair in value
    )


Size = Annotated[int, Constraint("an integer from 0 to 2^63-1", lambda v: 0 <= v <= MAX_SIZE)]
Time = Annotated[int, Constraint("nanoseconds since 1970", lambda v: -MAX_SIZE <= v <= MAX_SIZE)]
Block = Annotated[int, Constraint("a power of two from 64 KiB to 64 MiB", is_block_size)]
Digest = Annotated[str, Constraint('"<algorithm>:<lowercase hex>"', looks_like_digest)]
Algorithm = Annotated[str, Constraint("an algorithm's name", looks_like_algorithm)]
Strings = Annotated[list[str], Constraint("a list of strings", _are_strings)]
Integers = Annotated[dict[str, int], Constraint("an object of integers", _are_integers)]
SessionId = Annotated[int, Constraint("an integer from 0 to 2^32-1", lambda v: 0 <= v < 2**32)]
BlockRanges = Annotated[
    list[list[int]], Constraint("a list of [first block, last block + 1]", _are_ranges)
]
# check_name raises by itself, with a code of its own.
Name = Annotated[str, Constraint("a name", lambda v: check_name(v) == v)]
NameOrRoot = Annotated[str, Constraint("a name", lambda v: check_name(v, root=True) == v)]
