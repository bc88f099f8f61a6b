"""What the fields of headers may hold, and the record of a block (WIRE.md sections 6 and 7)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from struct import Struct
from types import UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin, is_typeddict

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
    """The words for a type in an error, and what its values must satisfy beyond it."""

    expected: str
    accepts: Callable[[Any], bool] = lambda value: True


@cache
def validator(hint: Any) -> Callable[[Any], bool]:
    """Return the test whether a value from JSON is of type ``hint``.

    Types are compared exactly, for ``isinstance(True, int)``; an integer is a valid float.
    """
    if is_typeddict(hint):
        keys = {key: validator(each) for key, each in hint.__annotations__.items()}
        return lambda value: (
            type(value) is dict
            and all(key in value and accepts(value[key]) for key, accepts in keys.items())
        )
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        has_type, constraint = validator(args[0]), args[1]
        return lambda value: has_type(value) and constraint.accepts(value)
    inner = tuple(map(validator, args))
    if origin in (Union, UnionType):  # of the unions, only ``X | None`` is used
        return lambda value: value is None or inner[0](value)
    if origin is list:
        return lambda value: type(value) is list and all(map(inner[0], value))
    if origin is dict:
        return lambda value: type(value) is dict and all(map(inner[1], value.values()))
    types = (int, float) if hint is float else (hint,)
    return lambda value: type(value) in types


def is_block_size(value: int) -> bool:
    """Whether ``value`` is a power of two from 64 KiB to 64 MiB."""
    return MIN_BLOCK <= value <= MAX_BLOCK and value & (value - 1) == 0


def _is_range(value: list[int]) -> bool:
    return len(value) == 2 and 0 <= value[0] < value[1] <= MAX_SIZE


def nearest_time(mtime: int) -> int:
    """Return ``mtime`` in nanoseconds, or the end of the range of ``Time``: 1677 to 2262."""
    return max(-MAX_SIZE, min(mtime, MAX_SIZE))


Size = Annotated[int, Constraint("an integer from 0 to 2^63-1", lambda v: 0 <= v <= MAX_SIZE)]
Time = Annotated[int, Constraint("nanoseconds since 1970", lambda v: -MAX_SIZE <= v <= MAX_SIZE)]
Block = Annotated[int, Constraint("a power of two from 64 KiB to 64 MiB", is_block_size)]
Digest = Annotated[str, Constraint('"<algorithm>:<lowercase hex>"', looks_like_digest)]
Algorithm = Annotated[str, Constraint("an algorithm's name", looks_like_algorithm)]
Strings = Annotated[list[str], Constraint("a list of strings")]
Integers = Annotated[dict[str, int], Constraint("an object of integers")]
SessionId = Annotated[int, Constraint("an integer from 0 to 2^32-1", lambda v: 0 <= v < 2**32)]
BlockRanges = Annotated[
    list[Annotated[list[int], Constraint("a range", _is_range)]],
    Constraint("a list of [first block, last block + 1]"),
]
# check_name raises by itself, with a code of its own.
Name = Annotated[str, Constraint("a name", lambda v: check_name(v) == v)]
NameOrRoot = Annotated[str, Constraint("a name", lambda v: check_name(v, root=True) == v)]
