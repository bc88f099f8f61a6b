"""Forwarding a TLS connection whose session another process has taken over."""

import contextlib
import socket
from typing import Final

from ftpkit.net.transport import TlsTransport
from ftpkit.osapi import sockets as os_sockets

_PIECE: Final = 128 * 1024


def proxy(tls: TlsTransport, outer: socket.socket, inner: socket.socket) -> None:
    """Forward bytes between ``tls``, over ``outer``, and ``inner``.

    Returns when ``inner`` has ended and its bytes are sent. The directions do not wait for each
    other, because either side may send much before it reads. Raises OSError or ssl.SSLError;
    TimeoutError if the peer takes none of what is to be sent for the timeout of ``tls``.
    """
    buffer = memoryview(bytearray(_PIECE))
    to_inner, outer_open, inner_open = buffer[:0], True, True
    while (backlog := not tls.flush_now()) or inner_open:
        readers = [outer] if outer_open and not to_inner else []
        readable = {outer} if readers and tls.more else set()
        if not readable:
            readers += [inner] if inner_open and not backlog else []
            writers = [outer] * backlog + [inner] * bool(to_inner)
            seconds = tls.timeout_s if backlog else None
            readable = os_sockets.wait_any(readers, writers, seconds)
        if outer in readable:
            with contextlib.suppress(BlockingIOError):
                count = tls.receive_now(buffer)
                to_inner, outer_open = buffer[:count], count > 0
        if inner in readable:
            data = _receive(inner)
            tls.buffer(data)
            inner_open = bool(data)
        try:
            to_inner = to_inner[_send(inner, to_inner) :]
        except OSError:  # closed for writing, but it may have sent something before
            to_inner, outer_open = buffer[:0], False
        if not outer_open and not to_inner:
            with contextlib.suppress(OSError):
                inner.shutdown(socket.SHUT_WR)


def _receive(inner: socket.socket) -> bytes:
    try:
        return inner.recv(_PIECE)
    except OSError:  # its process was killed
        return b""


def _send(inner: socket.socket, data: memoryview) -> int:
    try:
        return os_sockets.send_now(inner, data) if data else 0
    except BlockingIOError:
        return 0
