"""Hostile servers, and a relay that damages what it forwards."""

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from tests.support.raw import TIMEOUT_S, Header, frame

PIECE: Final = 64 * 1024

HELLO: Final[Header] = {
    "ok": True, "version": 1, "agent": "hostile/1", "digest": "blake3", "auth": False,
    "features": [], "limits": {"header": 65_536, "block": 67_108_864},
}  # fmt: skip


class Peer:
    """The server side of one connection, for a script."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def read(self, count: int) -> bytes:
        """Read ``count`` bytes; the script ends when the client closes the connection."""
        data = bytearray()
        while len(data) < count:
            piece = self.sock.recv(min(count - len(data), PIECE))
            if not piece:
                raise ConnectionError
            data += piece
        return bytes(data)

    def request(self) -> tuple[Header, bytes]:
        """Read a request and its body."""
        (n,) = struct.unpack("!I", self.read(4))
        header = json.loads(self.read(n))
        return header, self.read(header.get("size", 0))

    def reply(self, header: Mapping[str, Any], body: bytes = b"") -> None:
        """Send a reply."""
        self.sock.sendall(frame(header, body))

    def greet(self) -> None:
        """Answer ``hello``."""
        self.request()
        self.reply(HELLO)


Script = Callable[[Peer], None]


@contextlib.contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[tuple[str, int]]:
    """Call ``serve`` in a thread for each connection, one after the other; yield the address."""
    listener = socket.create_server(("127.0.0.1", 0))
    current: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            current[:] = [sock]
            with sock, contextlib.suppress(OSError):
                sock.settimeout(TIMEOUT_S)
                serve(sock)

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield listener.getsockname()
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        for sock in current:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


@contextlib.contextmanager
def hostile(*scripts: Script) -> Iterator[tuple[str, int]]:
    """Run ``scripts``, one for each connection, and the last one for all further connections."""
    waiting = list(scripts)

    def serve(sock: socket.socket) -> None:
        script = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        script(Peer(sock))

    with listening(serve) as address:
        yield address


@contextlib.contextmanager
def relay(
    server: tuple[str, int], *, up: tuple[int, ...] = (), down: tuple[int, ...] = ()
) -> Iterator[tuple[str, int]]:
    """Forward bytes to ``server`` and back; flip a bit of those at positions ``up`` and ``down``.

    Positions count the bytes of a direction over all connections.
    """
    passed = {"up": 0, "down": 0}

    def forward(
        source: socket.socket, target: socket.socket, direction: str, flips: set[int]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := bytearray(source.recv(PIECE)):
                start = passed[direction]
                passed[direction] += len(data)
                for flip in [f for f in flips if start <= f < passed[direction]]:
                    data[flip - start] ^= 1
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def serve(sock: socket.socket) -> None:
        with socket.create_connection(server, timeout=TIMEOUT_S) as onward:
            back = threading.Thread(target=forward, args=(onward, sock, "down", {*down}))
            back.start()
            forward(sock, onward, "up", {*up})
            back.join()

    with listening(serve) as address:
        yield address
