"""A client written from WIRE.md alone: it knows frames, JSON and sockets, and nothing of ftpkit."""

import json
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

Header = dict[str, Any]

TIMEOUT_S: Final = 10.0


def frame(header: Mapping[str, Any] | bytes, body: bytes = b"") -> bytes:
    """Return a frame; a header that is bytes already is taken as it is, be it JSON or not."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("!I", len(raw)) + raw + body


def body_size(header: Header) -> int:
    """Return the length of the body behind a reply."""
    size = header.get("size", 0)
    assert isinstance(size, int)
    return size


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply: its header, and the body behind it."""

    header: Header
    body: bytes = b""

    def __getitem__(self, key: str) -> Any:
        return self.header[key]

    @property
    def ok(self) -> bool:
        """Whether the request was granted."""
        return self.header["ok"] is True

    @property
    def code(self) -> str | None:
        """Why it was refused, or None."""
        return self.header.get("code")

    @property
    def closes(self) -> bool:
        """Whether the server says that this is its last reply."""
        return self.header.get("close") is True


def frames_in(data: bytes) -> Iterator[Reply]:
    """Yield the frames of a recorded stream, which must end at a border."""
    while data:
        (n,) = struct.unpack_from("!I", data)
        header = json.loads(data[4 : 4 + n])
        end = 4 + n + body_size(header)
        assert end <= len(data)
        yield Reply(header, data[4 + n : end])
        data = data[end:]


class Raw:
    """One connection to a server; every call gives up after ``TIMEOUT_S``."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.sock = socket.create_connection(address, timeout=TIMEOUT_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, header: Mapping[str, Any] | bytes, body: bytes = b"") -> None:
        """Send one frame."""
        self.sock.sendall(frame(header, body))

    def receive(self) -> Reply:
        """Read one reply and its body."""
        (n,) = struct.unpack("!I", self.read(4))
        header = json.loads(self.read(n))
        assert isinstance(header, dict)
        return Reply(header, self.read(body_size(header)))

    def receive_header(self) -> Reply:
        """Read one reply and leave its body on the line."""
        (n,) = struct.unpack("!I", self.read(4))
        return Reply(json.loads(self.read(n)))

    def ask(self, op: str, body: bytes = b"", **keys: Any) -> Reply:
        """Send one request, with its body, and read its reply."""
        self.send({"op": op, **keys, **({"size": len(body)} if body else {})}, body)
        return self.receive()

    def result(self, op: str, body: bytes = b"", **keys: Any) -> Reply:
        """Do the same, and ask again while the reply is pending."""
        reply = self.ask(op, body, **keys)
        while reply.header.get("pending"):
            job = reply.header.get("job")
            reply = self.ask(op, **keys) if job is None else self.ask("wait", job=job)
        return reply

    def granted(self, op: str, body: bytes = b"", **keys: Any) -> Reply:
        """Do the same, for a request that must be granted."""
        reply = self.result(op, body, **keys)
        assert reply.ok, reply
        return reply

    def refused(self, op: str, body: bytes = b"", **keys: Any) -> str:
        """Do the same, for a request that must be refused; return the code."""
        reply = self.result(op, body, **keys)
        assert reply["ok"] is False, reply
        assert isinstance(reply["message"], str)
        assert "\n" not in reply["message"]
        assert "Traceback" not in reply["message"]
        code = reply.code
        assert code is not None
        return code

    def read(self, count: int) -> bytes:
        """Read exactly ``count`` bytes; ConnectionError says that there were fewer."""
        data = bytearray()
        while len(data) < count:
            piece = self.sock.recv(min(count - len(data), 1 << 20))
            if not piece:
                raise ConnectionError(f"the stream ended after {len(data)} of {count} bytes")
            data += piece
        return bytes(data)

    def rest(self) -> bytes:
        """Read until the server closes."""
        data = bytearray()
        while piece := self.sock.recv(1 << 20):
            data += piece
        return bytes(data)

    def finish(self) -> None:
        """Say that nothing more will come."""
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Hang up."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
