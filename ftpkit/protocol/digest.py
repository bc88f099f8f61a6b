"""The digests by name: BLAKE3 and SHA-256, written ``<algorithm>:<lowercase hex>``."""

import re
from collections.abc import Sequence
from typing import Final, Protocol, Self

import blake3

from ftpkit.errors import Code, RefusedError

# In the order of our preference: BLAKE3 is several times faster and as strong.
ALGORITHMS: Final = ("blake3", "sha256")
DEFAULT: Final = ALGORITHMS[0]
DIGEST_BYTES: Final = 32

_ALGORITHM = re.compile(r"[a-z][a-z0-9-]{0,31}")
_DIGEST = re.compile(r"([a-z][a-z0-9-]{0,31}):((?:[0-9a-f]{2}){1,64})")


class Hasher(Protocol):
    """What ``hashlib`` and ``blake3`` have in common."""

    def update(self, data: bytes | bytearray | memoryview, /) -> object: ...

    def digest(self) -> bytes: ...

    def copy(self) -> Self: ...


def new_hasher(algorithm: str) -> Hasher:
    """Return a fresh hasher; an algorithm that ftpkit does not have is ``unsupported``."""
    if algorithm == "blake3":
        return blake3.blake3()
    if algorithm == "sha256":
        import hashlib  # here, because loading OpenSSL takes its time and BLAKE3 needs none of it

        return hashlib.sha256()
    raise RefusedError(Code.UNSUPPORTED, f"no digest {algorithm!r}; there are {_known()}")


class RunningDigest:
    """The digest of a whole file, grown from verified blocks as long as they come in order.

    Only the newest fork counts: an older one may stand on blocks that were replaced since.
    """

    def __init__(self, algorithm: str = DEFAULT) -> None:
        self._algorithm = algorithm
        self._hasher = new_hasher(algorithm)
        self._length = 0
        self._forked: Hasher | None = None

    @property
    def length(self) -> int:
        """How many bytes from the start have been hashed."""
        return self._length

    def fork(self, offset: int) -> Hasher | None:
        """Return a hasher for the block at ``offset`` if it is the next one, else None."""
        if offset != self._length:
            return None
        self._forked = self._hasher.copy()
        return self._forked

    def join(self, hasher: Hasher | None, offset: int, size: int) -> None:
        """Take the forked hasher back: it has hashed a block that proved good."""
        if hasher is not None and hasher is self._forked and offset == self._length:
            self._hasher, self._forked = hasher, None
            self._length += size

    def forget(self, offset: int) -> None:
        """Note that a block is replaced; what was hashed of it no longer counts."""
        if offset < self._length:
            self._hasher, self._length = new_hasher(self._algorithm), 0

    def of(self, total: int) -> str | None:
        """Return the digest of a file of ``total`` bytes, if all of it came in order."""
        if self._length != total:
            return None
        return format_digest(self._algorithm, self._hasher.digest())


def looks_like_digest(value: object) -> bool:
    """Whether ``value`` has the form of a digest: of full length where we know the algorithm."""
    match = _DIGEST.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return False
    return match[1] not in ALGORITHMS or len(match[2]) == 2 * DIGEST_BYTES


def looks_like_algorithm(value: object) -> bool:
    """Whether ``value`` could be the name of an algorithm, known or not."""
    return isinstance(value, str) and _ALGORITHM.fullmatch(value) is not None


def format_digest(algorithm: str, raw: bytes) -> str:
    """Return the digest as it is written on the wire."""
    return f"{algorithm}:{raw.hex()}"


def split_digest(text: str) -> tuple[str, bytes]:
    """Return algorithm and raw bytes of a digest that ``looks_like_digest`` accepts."""
    algorithm, _, digits = text.partition(":")
    return algorithm, bytes.fromhex(digits)


def digest_of(data: bytes | bytearray | memoryview, algorithm: str = DEFAULT) -> str:
    """Return the digest of ``data`` as it is written on the wire."""
    hasher = new_hasher(algorithm)
    hasher.update(data)
    return format_digest(algorithm, hasher.digest())


def keyed_number(key: bytes, data: bytes) -> int:
    """Return a number of 64 bits, never 0, that nobody without ``key`` (32 bytes) can tell."""
    return int.from_bytes(blake3.blake3(data, key=key).digest(8), "big") | 1


def pick_algorithm(preferred: Sequence[str]) -> str:
    """Return the first algorithm of ``preferred`` that we have, or our own default."""
    return next((name for name in preferred if name in ALGORITHMS), DEFAULT)


def _known() -> str:
    return " and ".join(ALGORITHMS)
