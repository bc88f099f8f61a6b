"""The bytes of a stream over TCP, with or without TLS."""

import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final, TypeAlias

from ftpkit.errors import HandshakeError
from ftpkit.osapi import files as os_files
from ftpkit.osapi import sockets as os_sockets

# Bytes encrypted per send and requested per receive: more is no faster, and each busy
# connection keeps a buffer of this size.
_MOST: Final = 256 * 1024
_RECORD: Final = 16 * 1024
# What an idle connection requests.
_LEAST: Final = 4 * 1024

# The first byte of a frame, and that of a TLS handshake (RFC 8446, section 5.1).
PLAINTEXT: Final = b"\0"
HANDSHAKE: Final = b"\x16"
# Lengths of a record's header, and of that with the header of the handshake message in it.
_PREFIX: Final = 5
_HELLO: Final = 9
_LARGEST: Final = _RECORD + 256

Accept = Callable[[bytes], None]
"""Checks the peer's certificate (DER); raises to refuse it."""


class TcpTransport:
    """A socket without encryption, and the interface of ``TlsTransport`` as well.

    Methods whose names end with ``_now`` do not block: they move what is possible, and raise
    BlockingIOError if that is nothing. Call them after ``wait_readable`` or ``wait_writable``.
    The others block, and raise BlockingIOError or TimeoutError if no byte moves for
    ``timeout_s``, which is also the socket's timeout. All raise OSError if the connection fails.
    """

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        self._sock, self.timeout_s = sock, timeout_s

    def receive(self, most: int) -> bytes:
        """Return the next bytes, at most ``most``; b"" at the end."""
        return self._sock.recv(most)

    def receive_into(self, view: memoryview) -> int:
        """Fill ``view``, or its start if the peer is slow or ends; return how many bytes."""
        return self._sock.recv_into(view, 0, os_sockets.MSG_WAITALL)

    def receive_now(self, view: memoryview) -> int:
        """Fill the start of ``view`` with what has arrived; return how many bytes, 0 at the end."""
        return os_sockets.receive_now(self._sock, view)

    def send(self, data: bytes | memoryview, *, more: bool = False) -> None:
        """Send all of ``data``; with ``more`` it may wait for the data of the next send."""
        os_sockets.send_all(self._sock, data, self.timeout_s, more=more)

    def send_now(self, data: memoryview) -> int:
        """Send the start of ``data``; return how many bytes of it."""
        return os_sockets.send_now(self._sock, data)

    def send_file(self, fd: int, offset: int, count: int) -> int:
        """Send up to ``count`` bytes of a file; return how many, 0 at the end of the file."""
        return os_sockets.send_file(self._sock, fd, offset, count, self.timeout_s)

    def send_file_now(self, fd: int, offset: int, count: int) -> int:
        return os_sockets.send_file_now(self._sock, fd, offset, count)

    def flush(self) -> None:
        """Send what is left of the data that ``send_now`` accepted."""

    def wait_readable(self, seconds: float) -> bool:
        """Wait until something can be received; False after ``seconds``."""
        return os_sockets.wait_readable(self._sock, seconds)

    def wait_writable(self, seconds: float) -> bool:
        """Wait until something can be sent; False after ``seconds``."""
        return os_sockets.wait_writable(self._sock, seconds)

    def shutdown_write(self) -> None:
        self._sock.shutdown(socket.SHUT_WR)


class TlsTransport:
    """TLS over a socket, whose timeouts stay in force and which others may shut down.

    Uses memory buffers instead of an SSLSocket, which moves one record of 16 KiB per call
    and makes the socket non-blocking. Also raises ssl.SSLError.
    """

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, host: str | None, timeout_s: float
    ) -> None:
        self._sock, self.timeout_s = sock, timeout_s
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=context.protocol is ssl.PROTOCOL_TLS_SERVER,
            server_hostname=host,
        )
        self.more = False  # whether more can be read without the socket
        self._backlog = memoryview(b"")  # encrypted and not sent yet

    def greet(self) -> None:
        """Send the client's hello; a server sends nothing."""
        self._handshake_step()
        self.flush()

    def handshake(self, limit_s: float, accept: Accept | None) -> None:
        """Complete the handshake.

        ``accept`` is called before anything is sent in reply to the peer's certificate.
        Raises TimeoutError after ``limit_s``, ssl.SSLError if the peer does not speak TLS 1.3.
        """
        deadline = time.monotonic() + limit_s
        try:
            while not self._handshake_step():
                self.flush()
                if self._tls.server_side:
                    self._incoming.write(self._client_record(deadline))
                else:
                    self._incoming.write(self._handshake_bytes(_RECORD, deadline))
        except ssl.SSLError:
            with contextlib.suppress(OSError):
                self.flush()
            raise
        if accept is not None:
            accept(self._tls.getpeercert(binary_form=True) or b"")
        self.flush()
        # The first data may have arrived with the end of the handshake.
        self.more = bool(self._incoming.pending)

    def receive(self, most: int) -> bytes:
        view = memoryview(bytearray(most))
        count = moved = self._receive(view)
        with contextlib.suppress(ssl.SSLError):  # raised by the next call
            while moved and self.more and count < most:
                moved = self._decrypt(view[count:])
                count += moved
        return bytes(view[:count])

    def receive_into(self, view: memoryview) -> int:
        count = moved = self._receive(view)
        while moved and count < len(view):
            try:
                moved = self._receive(view[count:])
            except (BlockingIOError, TimeoutError):
                break
            count += moved
        return count

    def receive_now(self, view: memoryview) -> int:
        with contextlib.suppress(ssl.SSLWantReadError):
            return self._decrypt(view)
        if not os_sockets.wait_readable(self._sock, 0):
            raise BlockingIOError
        if not self._fill(len(view)):
            return 0
        try:
            return self._decrypt(view)
        except ssl.SSLWantReadError:
            raise BlockingIOError from None

    def send(self, data: bytes | memoryview, *, more: bool = False) -> None:
        view = memoryview(data)
        while len(view) > _MOST:
            self._encrypt(view[:_MOST])
            self.flush()
            view = view[_MOST:]
        self._encrypt(view)
        if not more:
            self.flush()

    def send_now(self, data: memoryview) -> int:
        sent = 0
        while sent < len(data) and not self._backlog and os_sockets.wait_writable(self._sock, 0):
            piece = data[sent : sent + _MOST]
            self.buffer(piece)
            sent += len(piece)
            self.flush_now()
        if data and not sent:
            raise BlockingIOError
        return sent

    def buffer(self, data: bytes | memoryview) -> None:
        """Encrypt ``data`` for the next flush; there must be no backlog."""
        self._encrypt(memoryview(data))
        self._backlog = memoryview(self._outgoing.read())

    def flush_now(self) -> bool:
        """Send what is possible of the backlog without blocking; return whether that was all."""
        with contextlib.suppress(BlockingIOError):
            # A socket with a timeout of Python's own would block.
            while self._backlog and os_sockets.wait_writable(self._sock, 0):
                self._backlog = self._backlog[os_sockets.send_now(self._sock, self._backlog) :]
        return not self._backlog

    def send_file(self, fd: int, offset: int, count: int) -> int:
        buffer = memoryview(bytearray(min(count, _MOST)))
        sent = 0
        while sent < count and (got := os_files.read_at(fd, buffer[: count - sent], offset + sent)):
            self.send(buffer[:got])
            sent += got
        return sent

    def send_file_now(self, fd: int, offset: int, count: int) -> int:
        buffer = memoryview(bytearray(min(count, _MOST)))
        got = os_files.read_at(fd, buffer, offset)
        return self.send_now(buffer[:got])

    def flush(self) -> None:
        backlog, self._backlog = self._backlog, memoryview(b"")
        for data in (backlog, self._outgoing.read()):
            if data:
                os_sockets.send_all(self._sock, data, self.timeout_s)

    def wait_readable(self, seconds: float) -> bool:
        return self.more or os_sockets.wait_readable(self._sock, seconds)

    def wait_writable(self, seconds: float) -> bool:
        self.flush()
        return os_sockets.wait_writable(self._sock, seconds)

    def shutdown_write(self) -> None:
        with contextlib.suppress(ssl.SSLError):  # the close_notify of the peer is not awaited
            self._tls.unwrap()
        self.flush()
        self._sock.shutdown(socket.SHUT_WR)

    def _handshake_step(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def _client_record(self, deadline: float) -> bytes:
        """Return the client's next record; HandshakeError if it holds only a part of a hello.

        OpenSSL allocates the length that a hello claims, up to 128 KiB.
        """
        record, end = b"", _PREFIX
        while len(record) < end:
            record += self._handshake_bytes(end - len(record), deadline)
            if len(record) == _PREFIX:
                end += min(int.from_bytes(record[3:]), _LARGEST)
        if record[:1] == HANDSHAKE and end != _HELLO + int.from_bytes(record[6:_HELLO]):
            raise HandshakeError("", "the client's hello is not one record")
        return record

    def _handshake_bytes(self, most: int, deadline: float) -> bytes:
        if not os_sockets.wait_readable(self._sock, max(0.0, deadline - time.monotonic())):
            raise TimeoutError
        data = self._sock.recv(most)
        if not data:
            raise ConnectionResetError("the peer closed the connection during the TLS handshake")
        return data

    def _receive(self, view: memoryview) -> int:
        """Fill the start of ``view``; return how many bytes, 0 at the end.

        A record that arrives byte by byte must be complete within the timeout of one stall.
        """
        since_s: float | None = None
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                return self._decrypt(view)
            now = time.monotonic()
            since_s = since_s or now
            if now - since_s > self.timeout_s:
                raise TimeoutError
            if not self._fill(len(view)):
                return 0

    def _decrypt(self, view: memoryview) -> int:
        self.more = False
        try:
            # With a buffer it returns a count, which its type does not say.
            count: int = self._tls.read(len(view), view)  # type: ignore[assignment]
        except ssl.SSLZeroReturnError:
            return 0
        self.more = bool(self._tls.pending() or self._incoming.pending)
        return count

    def _encrypt(self, view: memoryview) -> None:
        while view:
            view = view[self._tls.write(view) :]

    def _fill(self, wanted: int) -> bool:
        """Receive once, up to ``wanted`` bytes or a little more; False at the end."""
        data = self._sock.recv(min(max(wanted, _LEAST), _MOST))
        self._incoming.write(data)
        return bool(data)


Transport: TypeAlias = TcpTransport | TlsTransport
