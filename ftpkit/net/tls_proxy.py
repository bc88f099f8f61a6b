"""A conversation that another process goes on with, while this one has the keys of its TLS."""

import contextlib
import socket
from typing import Final

from ftpkit.net.transport import TlsTransport
from ftpkit.osapi import sockets as os_sockets

_PIECE: Final = 128 * 1024


def proxy(tls: TlsTransport, outer: socket.socket, inner: socket.socket) -> None:
    """Carry bytes between the peer and ``inner`` until that has ended, and all has left.

    ``tls`` is over ``outer``. Neither way waits for the other, for whoever is at an end may
    send a lot before it reads.
    """
    buffer = memoryview(bytearray(_PIECE))
    up, coming, going = buffer[:0], True, True
    while (held := not tls.flush_now()) or going:
        readers = [outer] if coming and not up else []
        readable = {outer} if readers and tls.more else set()
        if not readable:
            readers += [inner] if going and not held else []
            writers = [outer] * held + [inner] * bool(up)
            readable = os_sockets.wait_any(readers, writers)
        if outer in readable:
            with contextlib.suppress(BlockingIOError):
                count = tls.receive_now(buffer)
                up, coming = buffer[:count], count > 0
        if inner in readable:
            data = _received(inner)
            tls.buffer(data)
            going = bool(data)
        try:
            up = up[_sent(inner, up) :]
        except OSError:  # nobody reads there any more, but something may have been said
            up, coming = buffer[:0], False
        if not coming and not up:
            with contextlib.suppress(OSError):
                inner.shutdown(socket.SHUT_WR)


def _received(inner: socket.socket) -> bytes:
    try:
        return inner.recv(_PIECE)
    except OSError:  # its process was killed, say
        return b""


def _sent(inner: socket.socket, data: memoryview) -> int:
    try:
        return os_sockets.send_now(inner, data) if data else 0
    except BlockingIOError:
        return 0
