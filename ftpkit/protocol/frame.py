"""Frames: a four-byte length, a JSON header and a body of ``size`` bytes (WIRE.md section 1)."""

import json
import math
from collections.abc import Mapping
from struct import Struct
from typing import Any, NoReturn

from ftpkit.errors import EndOfStreamError, ProtocolError, TruncatedError
from ftpkit.protocol.digest import looks_like_algorithm, looks_like_digest

PREFIX = Struct("!I")

# In bytes. The cap stops a hostile prefix from making us allocate 4 GiB, and keeps the
# first byte of a frame 0x00, which tells it from TLS.
MAX_HEADER = 64 * 1024
MIN_HEADER = 2
MAX_SIZE = 2**63 - 1
MAX_DEPTH = 16

Header = dict[str, Any]


class Decoder:
    """Decodes headers from a stream of bytes, however it is split.

    Invariant: the caller never feeds more than ``wanted`` bytes, so the decoder never
    consumes a byte of a body. After ``feed`` has returned a header, the next
    ``header.get("size", 0)`` bytes of the stream are its body: read them, then feed again.
    """

    def __init__(self, max_header: int = MAX_HEADER) -> None:
        self._max_header = max_header
        self._buffer = bytearray()
        # What the buffer collects: a prefix, or the header of the length in the prefix.
        self._target, self._in_header = PREFIX.size, False
        self._failed: ProtocolError | None = None

    @property
    def wanted(self) -> int:
        """The most bytes that may be fed next; at least 1."""
        return self._target - len(self._buffer)

    @property
    def at_border(self) -> bool:
        """Whether the bytes fed so far end between two frames."""
        return not self._in_header and not self._buffer

    def feed(self, data: bytes | bytearray | memoryview) -> Header | None:
        """Take 1 to ``wanted`` bytes; return the header that they complete, or None.

        ``b""`` means the end of the stream: it raises EndOfStreamError between frames and
        TruncatedError within one. Bytes that cannot be a header raise ProtocolError, then
        and at every later call. ValueError for more than ``wanted`` bytes.
        """
        if self._failed is not None:
            raise self._failed
        if len(data) == 0:
            if self.at_border:
                raise EndOfStreamError
            raise TruncatedError(len(self._buffer), self._target)
        if len(data) > self.wanted:
            raise ValueError(f"feed takes at most {self.wanted} bytes now, not {len(data)}")
        self._buffer += data
        try:
            return self._decode()
        except ProtocolError as error:
            self._failed = error
            raise

    def _decode(self) -> Header | None:
        if self.wanted:
            return None
        header = None
        if self._in_header:
            header, self._target = decode_header(self._buffer), PREFIX.size
        else:
            self._target = self._checked_length()
        self._in_header = not self._in_header
        self._buffer.clear()
        return header

    def _checked_length(self) -> int:
        (length,) = PREFIX.unpack(self._buffer)
        if MIN_HEADER <= length <= self._max_header:
            return int(length)
        if self._buffer.isascii() and self._buffer.decode().isprintable():
            start = self._buffer.decode()
            raise ProtocolError(f"not the ftpkit protocol: the stream begins with {start!r}")
        if length < MIN_HEADER:
            raise ProtocolError(f"a header of {length} bytes is below the minimum of {MIN_HEADER}")
        raise ProtocolError(
            f"a header of {length:,} bytes exceeds the limit of {self._max_header:,}"
        )


def encode_header(header: Mapping[str, Any]) -> bytes:
    """Return the wire bytes of ``header``: length prefix and JSON.

    Raises ValueError for a header that a peer would refuse, TypeError for a value that
    JSON does not have.
    """
    try:
        raw = encode_json({**header})
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH}") from None
    if len(raw) > MAX_HEADER:
        raise ValueError(f"a header of {len(raw):,} bytes exceeds the limit of {MAX_HEADER:,}")
    try:
        decode_header(raw)  # so that what we send is what a peer accepts
    except ProtocolError as error:
        raise ValueError(str(error)) from None
    return PREFIX.pack(len(raw)) + raw


def encode_json(value: object) -> bytes:
    """Return ``value`` as compact JSON in UTF-8; ValueError for infinity and NaN."""
    return _ENCODE(value).encode()


def decode_header(raw: bytes | bytearray) -> Header:
    """Return the header in ``raw``, JSON without the prefix; raises ProtocolError."""
    try:
        text = raw.decode()
        header = _DECODER.decode(text)
    except UnicodeDecodeError:
        raise ProtocolError("the header is not UTF-8") from None
    except RecursionError:
        raise ProtocolError(f"nested deeper than {MAX_DEPTH}") from None
    except json.JSONDecodeError as error:
        raise ProtocolError(f"the header is not JSON: {error.msg}") from None
    if not isinstance(header, dict):
        raise ProtocolError("the header is not a JSON object")
    fault = _fault(header, text)
    if fault is not None:
        raise ProtocolError(fault)
    return header


def _fault(header: Header, text: str) -> str | None:
    """Return what is wrong with a header whose JSON is ``text``, or None."""
    if text.count("{") + text.count("[") > MAX_DEPTH and _depth(header) > MAX_DEPTH:
        return f"nested deeper than {MAX_DEPTH}"
    # UTF-8 has no surrogates, so one can only come from an escape.
    if "\\u" in text:
        try:
            encode_json(header)
        except UnicodeEncodeError:
            return "a string has an unpaired surrogate"
    if "size" in header:
        size = header["size"]
        if type(size) is not int or not 0 <= size <= MAX_SIZE:
            return "size must be an integer from 0 to 2^63-1"
    digest = header.get("digest")
    # Null or an algorithm requests a digest, so it has no body.
    requested = "size" not in header and (digest is None or looks_like_algorithm(digest))
    if "digest" in header and not (requested or looks_like_digest(digest)):
        return 'digest must be "<algorithm>:<lowercase hex>"'
    return None


def _depth(value: object) -> int:
    deepest, stack = 0, [(value, 1)]
    while stack:
        item, depth = stack.pop()
        if isinstance(item, (dict, list)):
            deepest = max(deepest, depth)
            inner = item.values() if isinstance(item, dict) else item
            stack.extend((child, depth + 1) for child in inner)
    return deepest


def _pairs(pairs: list[tuple[str, Any]]) -> Header:
    header = dict(pairs)
    if len(header) < len(pairs):
        raise ProtocolError("duplicate key")
    return header


def _integer(digits: str) -> int:
    # Length first: converting thousands of digits takes quadratic time.
    if len(digits) <= 20:
        value = int(digits)
        if -(2**63) <= value < 2**64:
            return value
    raise ProtocolError("a number exceeds 64 bits")


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ProtocolError("a number exceeds 64 bits")
    return value


def _constant(name: str) -> NoReturn:
    raise ProtocolError(f"{name} is not a JSON number")


_ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_DECODER = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_int=_integer, parse_float=_float, parse_constant=_constant
)
