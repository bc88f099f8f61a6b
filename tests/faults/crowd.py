"""Many connections that do nothing, or only begin to do something."""

import socket
from struct import Struct
from typing import Any, Final, Self

from ftpkit.errors import ConnectionLostError
from ftpkit.net.address import Address
from ftpkit.net.frame_stream import FrameStream
from ftpkit.protocol.frame import encode_header
from tests.faults.relay import WAIT_S

_PREFIX: Final = Struct("!I")


class Raw:
    """A client that sends any bytes."""

    def __init__(self, address: Address, *, receive_buffer: int | None = None) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            self.sock.connect(address)
        except OSError:
            self.sock.close()
            raise
        self.stream = FrameStream(self.sock, stall_timeout_s=WAIT_S)

    def say(self, body: bytes = b"", **header: object) -> None:
        """Send a request."""
        self.stream.send(encode_header(header), body)

    def heard(self) -> dict[str, Any]:
        """Return the next reply."""
        return self.stream.read_header()

    def ask(self, body: bytes = b"", **header: object) -> dict[str, Any]:
        """Send a request and return its reply."""
        self.say(body, **header)
        return self.heard()

    def ends(self) -> bool:
        """Wait until the server has hung up, whatever it says before."""
        try:
            while True:
                self.heard()
        except ConnectionLostError:
            return True

    def close(self) -> None:
        """Hang up."""
        self.stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Crowd:
    """``count`` connections, in turn silent, half-way through a header, or through a body."""

    def __init__(self, address: Address, count: int) -> None:
        self.members = [Raw(address) for _ in range(count)]
        for at, member in enumerate(self.members):
            if at % 3 == 1:
                member.sock.sendall(_PREFIX.pack(200) + b'{"op": "pi')
            elif at % 3 == 2:
                member.say(b"some", op="put", name=f"crowd/{at}", size=1000)

    def leave(self) -> None:
        """Let all hang up."""
        for member in self.members:
            member.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.leave()
