"""Streams of frames, split in every way that a network may split them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from struct import pack

from ftpkit.protocol import Decoder
from ftpkit.protocol.frame import Header


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded header and its body."""

    header: Header
    body: bytes = b""


def framed(header: bytes, body: bytes = b"") -> bytes:
    """Return a frame with ``header``, valid or not."""
    return pack("!I", len(header)) + header + body


def read(pieces: Iterable[bytes]) -> list[Frame]:
    """Return the frames in a stream that comes as ``pieces``; a body may be cut at its end."""
    decoder, frames = Decoder(), list[Frame]()
    missing = 0
    for piece in pieces:
        rest = piece
        while rest:
            if missing:
                body, rest = rest[:missing], rest[missing:]
                missing -= len(body)
                frames[-1] = Frame(frames[-1].header, frames[-1].body + body)
                continue
            assert decoder.wanted > 0
            taken, rest = rest[: decoder.wanted], rest[decoder.wanted :]
            header = decoder.feed(taken)
            assert decoder.at_border or header is None
            if header is not None:
                frames.append(Frame(header))
                missing = header.get("size", 0)
    return frames


def cuts(stream: bytes) -> Iterator[list[bytes]]:
    """Yield ``stream`` whole, byte by byte, and in every split in two."""
    yield [stream]
    yield [stream[at : at + 1] for at in range(len(stream))]
    for at in range(1, len(stream)):
        yield [stream[:at], stream[at:]]
