"""Digests: BLAKE3 and SHA-256, written ``<algorithm>:<lowercase hex>`` (WIRE.md section 5)."""

import re
from collections.abc import Sequence
from typing import Final, Protocol, Self

import blake3

from ftpkit.errors import Code, RefusedError

# In order of preference: BLAKE3 is several times faster.
ALGORITHMS: Final = ("blake3", "sha256")
DEFAULT: Final = ALGORITHMS[0]
DIGEST_BYTES: Final = 32

_ALGORITHM = re.compile(r"[a-z][a-z0-9-]{0,31}")
_DIGEST = re.compile(r"([a-z][a-z0-9-]{0,31}):((?:[0-9a-f]{2}){1,64})")


class Hasher(Protocol):
    """The common interface of ``hashlib`` and ``blake3``."""

    def update(self, data: bytes | bytearray | memoryview, /) -> object: ...

    def digest(self) -> bytes: ...

    def copy(self) -> Self: ...


def new_hasher(algorithm: str) -> Hasher:
    """Return a new hasher; RefusedError ``unsupported`` for an unknown algorithm."""
    if algorithm == "blake3":
        return blake3.blake3()
    if algorithm == "sha256":
        import hashlib  # only when needed, because it loads OpenSSL

        return hashlib.sha256()
    raise RefusedError(
        Code.UNSUPPORTED, f"unknown digest {algorithm!r}; use {' or '.join(ALGORITHMS)}"
    )


class RunningDigest:
    """The digest of a whole file from its verified blocks, while they arrive in order.

    Only the newest fork can be joined: blocks below an older one may have been replaced.
    """

    def __init__(self, algorithm: str = DEFAULT) -> None:
        self.length = 0
        """The bytes from the start that are hashed."""
        self._algorithm = algorithm
        self._hasher = new_hasher(algorithm)
        self._forked: Hasher | None = None

    def fork(self, offset: int) -> Hasher | None:
        """Return a hasher for the block at ``offset`` if it is the next block, else None."""
        if offset != self.length:
            return None
        self._forked = self._hasher.copy()
        return self._forked

    def join(self, hasher: Hasher | None, offset: int, size: int) -> None:
        """Adopt a forked hasher that has hashed a verified block of ``size`` bytes."""
        if hasher is not None and hasher is self._forked and offset == self.length:
            self._hasher, self._forked = hasher, None
            self.length += size

    def forget(self, offset: int) -> None:
        """Start again if the block at ``offset``, which is replaced, was hashed already."""
        if offset < self.length:
            self._hasher, self.length = new_hasher(self._algorithm), 0

    def of(self, total: int) -> str | None:
        """Return the digest of a file of ``total`` bytes if all of it is hashed, else None."""
        if self.length != total:
            return None
        return format_digest(self._algorithm, self._hasher.digest())


def looks_like_digest(value: object) -> bool:
    """Whether ``value`` is a well-formed digest, of full length if its algorithm is known."""
    match = _DIGEST.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return False
    return match[1] not in ALGORITHMS or len(match[2]) == 2 * DIGEST_BYTES


def looks_like_algorithm(value: object) -> bool:
    """Whether ``value`` is well-formed as the name of an algorithm, known or not."""
    return isinstance(value, str) and _ALGORITHM.fullmatch(value) is not None


def format_digest(algorithm: str, raw: bytes) -> str:
    """Return a digest in its wire form."""
    return f"{algorithm}:{raw.hex()}"


def split_digest(text: str) -> tuple[str, bytes]:
    """Return algorithm and raw bytes of a well-formed digest."""
    algorithm, _, digits = text.partition(":")
    return algorithm, bytes.fromhex(digits)


def digest_of(data: bytes | bytearray | memoryview, algorithm: str = DEFAULT) -> str:
    """Return the digest of ``data`` in its wire form."""
    hasher = new_hasher(algorithm)
    hasher.update(data)
    return format_digest(algorithm, hasher.digest())


def keyed_number(key: bytes, data: bytes) -> int:
    """Return a keyed hash of ``data`` as a 64-bit number, never 0; ``key`` has 32 bytes."""
    return int.from_bytes(blake3.blake3(data, key=key).digest(8), "big") | 1


def pick_algorithm(preferred: Sequence[str]) -> str:
    """Return the first known algorithm of ``preferred``, or DEFAULT."""
    return next((name for name in preferred if name in ALGORITHMS), DEFAULT)
