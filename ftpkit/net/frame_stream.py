"""Frames over a connected socket: headers, bodies, timeouts, and the end."""

import contextlib
import errno
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from ftpkit.errors import (
    ConnectionLostError,
    FtpkitError,
    HandshakeError,
    HeaderTooLongError,
    SourceChangedError,
    StallTimeoutError,
    TruncatedError,
)
from ftpkit.net.tls_proxy import proxy
from ftpkit.net.token_bucket import Limiter
from ftpkit.net.transport import PLAINTEXT, Accept, TcpTransport, TlsTransport, Transport
from ftpkit.osapi import files as os_files
from ftpkit.osapi import sockets as os_sockets
from ftpkit.protocol.frame import Decoder, Header

# Bodies up to this size travel in one call together with their header.
SMALL: Final = 64 * 1024
PIECE: Final = 1024 * 1024

# An idle connection asks for little, so that a thousand of them cost little.
_IDLE_READ: Final = 4 * 1024
_AHEAD_READ: Final = 128 * 1024
# Of what is dropped no more is held at a time.
_DROPPED: Final = 16 * 1024

# What comes in small turns is handed on so often, that its reader can tell of it.
_GATHER_S: Final = 0.05

Moved = Callable[[int], None]


class FrameStream:
    """Reads and writes frames over ``sock``; the only place that sees its errors.

    Small frames are read ahead, many in one call. Of a large body only what
    happened to come with its header is buffered; the rest goes straight from
    the socket into the caller's memory.
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
        self._transport: Transport = TcpTransport(sock)
        self._local: tuple[int, tuple[Any, ...]] | None = None
        self._stall_timeout_s = stall_timeout_s
        self._idle_timeout_s = stall_timeout_s if idle_timeout_s is None else idle_timeout_s
        self._decoder = Decoder()
        self._ahead = memoryview(b"")
        self._read_size = _IDLE_READ
        self._begun_at: float | None = None
        self._size = 0
        self.left = 0
        """Bytes of the last frame's body that were not read yet."""
        self.limiter = limiter
        """In whose turns bodies move, if they do not move as they come."""
        self.unauthenticated = False
        """Whether the peer may be anybody: it gets little memory, and little time to be silent."""
        os_sockets.set_socket_timeout(sock, stall_timeout_s)
        with contextlib.suppress(OSError):  # not TCP: a test's socket pair
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            os_sockets.keep_alive(sock)

    @property
    def local(self) -> tuple[int, tuple[Any, ...]]:
        """Family and address by which the peer knows us."""
        return self._local or (self._sock.family, self._sock.getsockname())

    @property
    def remote(self) -> tuple[int, tuple[Any, ...]]:
        """Family and address of the peer."""
        return self._sock.family, self._sock.getpeername()

    def peek(self, seconds: float) -> bytes:
        """Return the first byte that comes within ``seconds``, and leave it; none at the end.

        For what has read nothing yet.
        """
        with _errors_translated():
            if not os_sockets.wait_readable(self._sock, seconds):
                raise StallTimeoutError("the peer was silent for too long")
            return self._sock.recv(1, socket.MSG_PEEK)

    def start_tls(
        self,
        context: ssl.SSLContext,
        limit_s: float,
        *,
        host: str | None = None,
        accept: Accept | None = None,
    ) -> bool:
        """Go on with TLS, as a client of ``host`` or as a server, as ``context`` is for one.

        False says that a server answers with a frame in plaintext, which can be read.
        Raises HandshakeError, or what ``accept`` raises, which is given the certificate of
        the peer before that hears more of us than that we want to speak TLS.
        """
        tls = TlsTransport(self._sock, context, host, self._stall_timeout_s)
        with _errors_translated():
            tls.greet()
            if self.peek(limit_s) == PLAINTEXT:
                return False
            try:
                tls.handshake(limit_s, accept)
            except ssl.SSLError as error:
                raise HandshakeError(error.reason or "", _reason(error)) from None
        self._transport = tls
        return True

    def read_header(self) -> Header:
        """Return the next header; its body, ``left`` bytes, must be read before the next call.

        Raises EndOfStreamError at the end, ProtocolError for what is no
        header, ConnectionLostError for a connection that fails.
        """
        self._begun_at = None
        while True:
            if not self._ahead:
                self._ahead = memoryview(self._receive_ahead())
            taken = self._ahead[: self._decoder.wanted]
            header = self._decoder.feed(taken)
            self._ahead = self._ahead[len(taken) :]
            if self.unauthenticated and self._decoder.wanted > _IDLE_READ:
                raise HeaderTooLongError(self._decoder.wanted, _IDLE_READ)
            if header is not None:
                self._size = self.left = header.get("size", 0)
                return header

    def read_into(self, view: memoryview) -> int:
        """Fill the start of ``view`` with what comes next of the body; return how many bytes.

        It is all of ``view``, or less where the connection is slow; 0 at the body's end.
        """
        # Not left to the next call: full pieces are hashed and written faster than odd ones.
        view = view[: self.left]
        if self.limiter is not None:
            return self._read_in_turns(view, self.limiter)
        count = self._take_ahead(view)
        if count < len(view):
            with _errors_translated():
                count += self._arrived(self._transport.receive_into(view[count:]))
        return count

    def wait_readable(self, seconds: float) -> bool:
        """Wait until there is something to read, or the end; False after ``seconds``."""
        return bool(self._ahead) or self._transport.wait_readable(seconds)

    def read_body(self) -> bytes:
        """Return the whole body; for bodies that are known to be small."""
        body = bytearray()
        piece = memoryview(bytearray(min(self.left, SMALL)))
        while count := self.read_into(piece):
            body += piece[:count]
        return bytes(body)

    def skip_body(self) -> None:
        """Read the rest of the body and drop it."""
        piece = memoryview(bytearray(min(self.left, _DROPPED)))
        while self.read_into(piece):
            pass

    def send(self, *parts: bytes | memoryview) -> None:
        """Send ``parts``, one behind the other."""
        with _sending():
            if sum(map(len, parts)) <= SMALL:
                self._transport.send(b"".join(parts))
            else:
                for part in parts:
                    self._transport.send(part)

    def send_range(
        self, header: bytes, fd: int, offset: int, count: int, on_bytes: Moved | None = None
    ) -> None:
        """Send ``header`` and then ``count`` bytes of a file, from ``offset``.

        Raises SourceChangedError where the file ends too early: the frame is
        then unfinished, and the connection of no more use.
        """
        # Nothing would follow a header alone that was sent with MSG_MORE.
        if count == 0 or (count <= SMALL and self.limiter is None):
            body = memoryview(bytearray(count))
            _read_all(fd, body, offset)
            self.send(header, body)
            if on_bytes:
                on_bytes(count)
            return
        with _sending():
            self._transport.send(header, more=self.limiter is None)
        end = offset + count
        while offset < end:
            sent = self._send_piece(fd, offset, min(PIECE, end - offset))
            offset += sent
            if on_bytes:
                on_bytes(sent)
        self._flush()

    def send_body(self, header: bytes, body: memoryview, on_bytes: Moved) -> None:
        """Send ``header`` and ``body``, which lies in memory."""
        if self.limiter is None:
            self.send(header, body)
            on_bytes(len(body))
            return
        self.send(header)
        while body:
            sent = self._send_in_turn(body, self.limiter)
            body = body[sent:]
            on_bytes(sent)
        self._flush()

    def lingering_close(self, seconds: float) -> None:
        """Close so that the peer surely sees what was sent last.

        A close with unread bytes is a reset, which may overtake the last
        reply; so shut down writing, and read on until the peer has closed.
        """
        deadline = time.monotonic() + seconds
        with contextlib.suppress(OSError):
            os_sockets.set_socket_timeout(self._sock, min(seconds, 2.0))
            self._transport.shutdown_write()
            while time.monotonic() < deadline and self._sock.recv(_DROPPED):
                pass
        self.close()

    def detach(self) -> tuple[socket.socket, bytes]:
        """Give the connection away, behind a header: its socket, and what was read ahead."""
        ahead, self._ahead = bytes(self._ahead), memoryview(b"")
        return self._sock, ahead

    def resume(self, header: Header, ahead: bytes, local: tuple[int, tuple[Any, ...]]) -> None:
        """Go on where another stream was detached, behind ``header``; that was at ``local``."""
        self._ahead = memoryview(ahead)
        self._local = local
        self._size = self.left = header.get("size", 0)

    def proxy_to(self, inner: socket.socket) -> None:
        """Carry bytes between the peer and ``inner`` until somebody there has ended it.

        For a conversation that was detached and cannot be given away, because it is ``secured``.
        """
        if isinstance(self._transport, TlsTransport):
            with _sending():
                proxy(self._transport, self._sock, inner)

    @property
    def is_tls(self) -> bool:
        """Whether it goes over TLS."""
        return isinstance(self._transport, TlsTransport)

    def shutdown_read(self) -> None:
        """Let the stream end for the reader, behind what has arrived; safe from another thread."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)

    def shutdown(self) -> None:
        """Make every call on the stream fail or end now; safe from another thread."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket; safe to call twice."""
        with contextlib.suppress(OSError):
            self._sock.close()

    def _take_ahead(self, view: memoryview) -> int:
        count = min(len(view), len(self._ahead))
        view[:count] = self._ahead[:count]
        self._ahead = self._ahead[count:]
        self.left -= count
        return count

    def _arrived(self, count: int) -> int:
        """Count what came of the body; TruncatedError where it ended instead."""
        if count == 0:
            raise TruncatedError(self._size - self.left, self._size)
        self.left -= count
        return count

    def _read_in_turns(self, view: memoryview, limiter: Limiter) -> int:
        def move(most: int) -> int:
            rest = view[count : count + most]
            moved = self._take_ahead(rest) or self._arrived(self._transport.receive_now(rest))
            # A turn may cost more than a call does: it takes what has come meanwhile, too.
            with contextlib.suppress(BlockingIOError):
                while moved < len(rest) and (more := self._transport.receive_now(rest[moved:])):
                    moved += self._arrived(more)
            return moved

        count, until_s = 0, time.monotonic() + _GATHER_S
        with _errors_translated():
            while count < len(view):
                count += self._in_turn(limiter, self.wait_readable, move)
                if time.monotonic() >= until_s:
                    break
        return count

    def _send_in_turn(self, body: memoryview, limiter: Limiter) -> int:
        def move(most: int) -> int:
            return self._transport.send_now(body[:most])

        with _sending():
            return self._in_turn(limiter, self._transport.wait_writable, move)

    def _send_piece(self, fd: int, offset: int, count: int) -> int:
        def move(most: int) -> int:
            return self._transport.send_file_now(fd, offset, min(most, count))

        with _sending():
            if self.limiter is None:
                sent = self._transport.send_file(fd, offset, count)
            else:
                sent = self._in_turn(self.limiter, self._transport.wait_writable, move)
        if sent == 0:
            raise SourceChangedError("the file became shorter while it was being sent")
        return sent

    def _flush(self) -> None:
        with _sending():
            self._transport.flush()

    def _in_turn(
        self, limiter: Limiter, wait: Callable[[float], bool], move: Callable[[int], int]
    ) -> int:
        """Wait for the peer, then for a turn, and let ``move`` move so many bytes at most.

        In this order, for nobody is to hold a turn while it waits for its peer.
        """
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
        with _errors_translated():
            if self._decoder.at_border:
                idle_s = self._stall_timeout_s if self.unauthenticated else self._idle_timeout_s
                if not self._transport.wait_readable(idle_s):
                    raise StallTimeoutError("the peer was silent for too long")
            else:
                self._check_begun()
            data = self._transport.receive(self._read_size)
        full = len(data) == self._read_size
        self._read_size = _AHEAD_READ if full and not self.unauthenticated else _IDLE_READ
        return data

    def _check_begun(self) -> None:
        """A header that comes byte by byte may hold a connection no longer than silence may."""
        now = time.monotonic()
        self._begun_at = self._begun_at or now
        if now - self._begun_at > self._stall_timeout_s:
            raise StallTimeoutError("the header took too long to arrive")


def _read_all(fd: int, view: memoryview, offset: int) -> None:
    while view:
        count = os_files.read_at(fd, view, offset)
        if count == 0:
            raise SourceChangedError("the file became shorter while it was being sent")
        view, offset = view[count:], offset + count


def _reason(error: ssl.SSLError) -> str:
    """Return what OpenSSL says, without where in its source."""
    said = getattr(error, "verify_message", "") or error.reason or "it failed"
    return said.replace("_", " ").lower()


@contextlib.contextmanager
def _sending() -> Iterator[None]:
    """As ``_errors_translated``; a stall leaves a frame unfinished, so no word can follow it."""
    try:
        with _errors_translated():
            yield
    except StallTimeoutError:
        raise ConnectionLostError("connection lost: the peer took no byte for too long") from None


@contextlib.contextmanager
def _errors_translated() -> Iterator[None]:
    """Turn the socket's errors into ours: here, and nowhere else."""
    try:
        yield
    except (BlockingIOError, TimeoutError):
        raise StallTimeoutError("the peer moved no byte for too long") from None
    except FtpkitError:
        raise
    except ssl.SSLError as error:
        raise ConnectionLostError(f"connection lost: {_reason(error)}") from None
    except OSError as error:
        if error.errno in (errno.EIO, errno.ENOMEM, errno.EMFILE):
            raise
        raise ConnectionLostError(f"connection lost: {error.strerror or error}") from None
