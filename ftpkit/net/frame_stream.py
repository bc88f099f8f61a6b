"""Frames over a connected socket: headers and bodies, timeouts, rate limits and the end."""

import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, Final

from ftpkit.errors import (
    HandshakeError,
    HeaderTooLongError,
    SourceChangedError,
    StallTimeoutError,
    TruncatedError,
)
from ftpkit.net.socket_errors import receive_errors, send_errors, tls_reason
from ftpkit.net.tls_proxy import proxy
from ftpkit.net.token_bucket import Limiter
from ftpkit.net.transport import PLAINTEXT, Accept, TcpTransport, TlsTransport, Transport
from ftpkit.osapi import files as os_files
from ftpkit.osapi import sockets as os_sockets
from ftpkit.protocol.frame import Decoder, Header

# Bodies up to this size are sent in one call together with their header.
SMALL: Final = 64 * 1024
PIECE: Final = 1024 * 1024

# An idle connection has a small buffer, so that a thousand of them cost little.
_IDLE_READ: Final = 4 * 1024
_AHEAD_READ: Final = 128 * 1024
_DISCARD_READ: Final = 16 * 1024

# Small quanta are gathered for so long before ``read_into`` returns, and no longer, so that
# progress is shown steadily.
_GATHER_S: Final = 0.05

OnBytes = Callable[[int], None]
"""Is called with the number of bytes that moved since the last call."""


class FrameStream:
    """Reads and writes frames over ``sock``.

    Small frames are read ahead, many in one call. Of a large body only what came with its
    header is buffered; the rest goes from the socket straight into the caller's memory.

    Every method that reads or writes raises ConnectionLostError if the connection fails: its
    subclasses EndOfStreamError at the end between frames, TruncatedError at the end within one,
    StallTimeoutError when the peer sends no byte for ``stall_timeout_s``, or, between frames,
    for ``idle_timeout_s``.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        stall_timeout_s: float,
        idle_timeout_s: float | None = None,
        limiter: Limiter | None = None,
    ) -> None:
        self._sock = sock
        self._transport: Transport = TcpTransport(sock, stall_timeout_s)
        self._local: tuple[int, tuple[Any, ...]] | None = None
        self._stall_timeout_s = stall_timeout_s
        self._idle_timeout_s = stall_timeout_s if idle_timeout_s is None else idle_timeout_s
        self._decoder = Decoder()
        self._buffered = memoryview(b"")
        self._read_size = _IDLE_READ
        self._header_since_s: float | None = None
        self._size = 0
        self.left = 0  # bytes of the last frame's body that are not read yet
        self.limiter = limiter  # limits how fast bodies move; None is no limit
        # The headers and silences of a peer that is not authenticated must be short.
        self.unauthenticated = False
        os_sockets.set_socket_timeout(sock, stall_timeout_s)
        with contextlib.suppress(OSError):  # a socket pair has no TCP options
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            os_sockets.keep_alive(sock)

    @property
    def local(self) -> tuple[int, tuple[Any, ...]]:
        """Family and address at which the peer reached us."""
        return self._local or (self._sock.family, self._sock.getsockname())

    @property
    def remote(self) -> tuple[int, tuple[Any, ...]]:
        return self._sock.family, self._sock.getpeername()

    @property
    def is_tls(self) -> bool:
        return isinstance(self._transport, TlsTransport)

    def peek(self, seconds: float) -> bytes:
        """Return the first byte without reading it, b"" at the end.

        Only before anything was read. Raises StallTimeoutError after ``seconds``.
        """
        with receive_errors():
            if not os_sockets.wait_readable(self._sock, seconds):
                raise StallTimeoutError("the peer sent nothing for too long")
            return self._sock.recv(1, socket.MSG_PEEK)

    def start_tls(
        self,
        context: ssl.SSLContext,
        limit_s: float,
        *,
        host: str | None = None,
        accept: Accept | None = None,
    ) -> bool:
        """Switch to TLS, as a client of ``host`` or as a server, whichever ``context`` is for.

        Returns False if the server replies with a frame in plaintext, which can then be read.
        ``accept`` checks the peer's certificate before anything but the TLS hello is sent.
        Raises HandshakeError, StallTimeoutError after ``limit_s``, or what ``accept`` raises.
        """
        tls = TlsTransport(self._sock, context, host, self._stall_timeout_s)
        with receive_errors():
            tls.greet()
            if self.peek(limit_s) == PLAINTEXT:
                return False
            try:
                tls.handshake(limit_s, accept)
            except ssl.SSLError as error:
                raise HandshakeError(error.reason or "", tls_reason(error)) from None
        self._transport = tls
        return True

    def read_header(self) -> Header:
        """Return the next header; its body, ``left`` bytes, must be read before the next call.

        Also raises ProtocolError if the bytes are not a header.
        """
        self._header_since_s = None
        while True:
            if not self._buffered:
                self._buffered = memoryview(self._receive_ahead())
            piece = self._buffered[: self._decoder.wanted]
            header = self._decoder.feed(piece)
            self._buffered = self._buffered[len(piece) :]
            if self.unauthenticated and self._decoder.wanted > _IDLE_READ:
                raise HeaderTooLongError(self._decoder.wanted, _IDLE_READ)
            if header is not None:
                self._size = self.left = header.get("size", 0)
                return header

    def read_into(self, view: memoryview) -> int:
        """Read the next bytes of the body into the start of ``view``; return how many.

        Fills ``view`` unless the connection is slow or the body ends; 0 at the body's end.
        """
        # Full pieces are hashed and written faster than odd ones.
        view = view[: self.left]
        if self.limiter is not None:
            return self._read_limited(view, self.limiter)
        count = self._read_buffered(view)
        if count < len(view):
            with receive_errors():
                count += self._count(self._transport.receive_into(view[count:]))
        return count

    def wait_readable(self, seconds: float) -> bool:
        """Wait until there is something to read, or the end; False after ``seconds``."""
        return bool(self._buffered) or self._transport.wait_readable(seconds)

    def read_body(self) -> bytes:
        """Return the whole body, which must be known to be small."""
        body = bytearray()
        piece = memoryview(bytearray(min(self.left, SMALL)))
        while count := self.read_into(piece):
            body += piece[:count]
        return bytes(body)

    def skip_body(self) -> None:
        piece = memoryview(bytearray(min(self.left, _DISCARD_READ)))
        while self.read_into(piece):
            pass

    def send(self, *parts: bytes | memoryview) -> None:
        """Send ``parts``, in one call if they are small."""
        with send_errors():
            if sum(map(len, parts)) <= SMALL:
                self._transport.send(b"".join(parts))
            else:
                for part in parts:
                    self._transport.send(part)

    def send_range(
        self, header: bytes, fd: int, offset: int, count: int, on_bytes: OnBytes = lambda n: None
    ) -> None:
        """Send ``header`` and then ``count`` bytes of a file, from ``offset``.

        Raises SourceChangedError if the file ends before that: the frame is then unfinished
        and the connection must be closed.
        """
        # MSG_MORE would hold back a header that no body follows.
        if count == 0 or (count <= SMALL and self.limiter is None):
            body = memoryview(bytearray(count))
            _read_all(fd, body, offset)
            self.send_body(header, body, on_bytes)
            return
        with send_errors():
            self._transport.send(header, more=self.limiter is None)
        end = offset + count
        while offset < end:
            sent = self._send_piece(fd, offset, min(PIECE, end - offset))
            offset += sent
            on_bytes(sent)
        with send_errors():
            self._transport.flush()

    def send_body(self, header: bytes, body: memoryview, on_bytes: OnBytes) -> None:
        """Send ``header`` and ``body``, as fast as ``limiter`` allows."""
        if self.limiter is None:
            self.send(header, body)
            on_bytes(len(body))
            return
        self.send(header)
        while body:
            sent = self._send_limited(body, self.limiter)
            body = body[sent:]
            on_bytes(sent)
        with send_errors():
            self._transport.flush()

    def lingering_close(self, seconds: float) -> None:
        """Close after the peer has closed, within ``seconds``, so that it reads the last reply.

        A close with unread bytes is a reset, which may overtake the reply; so shut down
        writing first and discard what the peer still sends.
        """
        deadline = time.monotonic() + seconds
        with contextlib.suppress(OSError):
            self._transport.timeout_s = min(seconds, 2.0)
            os_sockets.set_socket_timeout(self._sock, self._transport.timeout_s)
            self._transport.shutdown_write()
            while time.monotonic() < deadline and self._sock.recv(_DISCARD_READ):
                pass
        self.close()

    def detach(self) -> tuple[socket.socket, bytes]:
        """Return the socket and the bytes that were read ahead, to hand the connection over."""
        ahead, self._buffered = bytes(self._buffered), memoryview(b"")
        return self._sock, ahead

    def resume(self, header: Header, ahead: bytes, local: tuple[int, tuple[Any, ...]]) -> None:
        """Continue a stream that was detached after ``header``, with its ``local`` address."""
        self._buffered = memoryview(ahead)
        self._local = local
        self._size = self.left = header.get("size", 0)

    def proxy_to(self, inner: socket.socket) -> None:
        """Forward decrypted bytes of a detached TLS stream, whose keys stay here, for ``inner``."""
        if isinstance(self._transport, TlsTransport):
            with send_errors():
                proxy(self._transport, self._sock, inner)

    def shutdown_read(self) -> None:
        """Make reads end after the bytes that have arrived; safe from another thread."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)

    def shutdown(self) -> None:
        """Make every call on the stream fail or end now; safe from another thread."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.close()

    def _read_buffered(self, view: memoryview) -> int:
        count = min(len(view), len(self._buffered))
        view[:count] = self._buffered[:count]
        self._buffered = self._buffered[count:]
        self.left -= count
        return count

    def _count(self, received: int) -> int:
        """Count bytes of the body, and return their number; TruncatedError for 0, the end."""
        if received == 0:
            raise TruncatedError(self._size - self.left, self._size)
        self.left -= received
        return received

    def _read_limited(self, view: memoryview, limiter: Limiter) -> int:
        def move(most: int) -> int:
            rest = view[count : count + most]
            moved = self._read_buffered(rest) or self._count(self._transport.receive_now(rest))
            # A quantum may cost more than a call: also read what has arrived meanwhile.
            with contextlib.suppress(BlockingIOError):
                while moved < len(rest) and (more := self._transport.receive_now(rest[moved:])):
                    moved += self._count(more)
            return moved

        count, until_s = 0, time.monotonic() + _GATHER_S
        with receive_errors():
            while count < len(view):
                count += self._move_quantum(limiter, self.wait_readable, move)
                if time.monotonic() >= until_s:
                    break
        return count

    def _send_limited(self, body: memoryview, limiter: Limiter) -> int:
        def move(most: int) -> int:
            return self._transport.send_now(body[:most])

        with send_errors():
            return self._move_quantum(limiter, self._transport.wait_writable, move)

    def _send_piece(self, fd: int, offset: int, count: int) -> int:
        def move(most: int) -> int:
            return self._transport.send_file_now(fd, offset, min(most, count))

        with send_errors():
            if self.limiter is None:
                sent = self._transport.send_file(fd, offset, count)
            else:
                sent = self._move_quantum(self.limiter, self._transport.wait_writable, move)
        if sent == 0:
            raise SourceChangedError("the file became shorter while it was being sent")
        return sent

    def _move_quantum(
        self, limiter: Limiter, wait: Callable[[float], bool], move: Callable[[int], int]
    ) -> int:
        """Wait for the peer, and only then acquire a quantum and ``move`` at most its bytes."""
        while True:
            if not wait(self._stall_timeout_s):
                raise StallTimeoutError("the peer moved no byte for too long")
            most, moved = limiter.acquire(), 0
            with contextlib.suppress(BlockingIOError):
                try:
                    moved = move(most)
                    return moved
                finally:
                    limiter.release(moved)

    def _receive_ahead(self) -> bytes:
        with receive_errors():
            if self._decoder.at_border:
                idle_s = self._stall_timeout_s if self.unauthenticated else self._idle_timeout_s
                if not self._transport.wait_readable(idle_s):
                    raise StallTimeoutError("the peer sent nothing for too long")
            else:
                # A header byte by byte must be complete within the time of one stall.
                now = time.monotonic()
                self._header_since_s = self._header_since_s or now
                if now - self._header_since_s > self._stall_timeout_s:
                    raise StallTimeoutError("the header took too long to arrive")
            data = self._transport.receive(self._read_size)
        full = len(data) == self._read_size
        self._read_size = _AHEAD_READ if full and not self.unauthenticated else _IDLE_READ
        return data


def _read_all(fd: int, view: memoryview, offset: int) -> None:
    while view:
        count = os_files.read_at(fd, view, offset)
        if count == 0:
            raise SourceChangedError("the file became shorter while it was being sent")
        view, offset = view[count:], offset + count
