"""What carries the bytes of a stream: a socket alone, or TLS over it."""

import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final, Protocol

from ftpkit.errors import HandshakeError
from ftpkit.osapi import files as os_files
from ftpkit.osapi import sockets as os_sockets

# So much is encrypted for one call of the system, and asked of it for one: more than that
# is no faster, and each connection that moved much keeps as much memory.
_MOST: Final = 256 * 1024
_RECORD: Final = 16 * 1024
# What an idle connection asks for.
_LEAST: Final = 4 * 1024

# The first byte of a frame, and that of a TLS handshake.
PLAINTEXT: Final = b"\0"
HANDSHAKE: Final = b"\x16"
# What stands before the content of a record, and before that of a hello in one.
_PREFIX: Final = 5
_HELLO: Final = 9
_LARGEST: Final = _RECORD + 256

Accept = Callable[[bytes], None]
"""Is given the peer's certificate (DER), and raises what the peer is then shown as the end."""


class Transport(Protocol):
    """Bytes to and from one peer, with the errors and timeouts of a socket.

    Calls that end with ``now`` are for a peer that was waited for: they raise
    BlockingIOError where nothing can move, and may move less than they are given.
    """

    def receive(self, most: int) -> bytes:
        """Return what comes next, ``most`` bytes at most; none at the end."""

    def receive_into(self, view: memoryview) -> int:
        """Fill ``view``, or its start where the peer is slow or ends; return how many bytes."""

    def receive_now(self, view: memoryview) -> int:
        """Put what has arrived into the start of ``view``; return how many bytes, 0 at the end."""

    def send(self, data: bytes | memoryview, *, more: bool = False) -> None:
        """Send all of ``data``; with ``more`` it may be held back until there is more."""

    def send_now(self, data: memoryview) -> int:
        """Send the start of ``data``; return how many bytes of it."""

    def send_file(self, fd: int, offset: int, count: int) -> int:
        """Send bytes of a file; return how many (0: the file has ended)."""

    def send_file_now(self, fd: int, offset: int, count: int) -> int:
        """Send the first of these bytes of a file; return how many (0: the file has ended)."""

    def flush(self) -> None:
        """Let all leave that ``send_now`` took."""

    def wait_readable(self, seconds: float) -> bool:
        """Wait until something may be received; False says that ``seconds`` have passed."""

    def wait_writable(self, seconds: float) -> bool:
        """Wait until something can be sent; False says that ``seconds`` have passed."""

    def shutdown_write(self) -> None:
        """Tell the peer that nothing follows."""


class TcpTransport:
    """A socket alone."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def receive(self, most: int) -> bytes:
        return self._sock.recv(most)

    def receive_into(self, view: memoryview) -> int:
        return self._sock.recv_into(view, 0, os_sockets.MSG_WAITALL)

    def receive_now(self, view: memoryview) -> int:
        return os_sockets.receive_now(self._sock, view)

    def send(self, data: bytes | memoryview, *, more: bool = False) -> None:
        self._sock.sendall(data, os_sockets.MSG_MORE if more else 0)

    def send_now(self, data: memoryview) -> int:
        return os_sockets.send_now(self._sock, data)

    def send_file(self, fd: int, offset: int, count: int) -> int:
        return os_sockets.send_file(self._sock, fd, offset, count)

    def send_file_now(self, fd: int, offset: int, count: int) -> int:
        return os_sockets.send_file_now(self._sock, fd, offset, count)

    def flush(self) -> None:
        pass

    def wait_readable(self, seconds: float) -> bool:
        return os_sockets.wait_readable(self._sock, seconds)

    def wait_writable(self, seconds: float) -> bool:
        return os_sockets.wait_writable(self._sock, seconds)

    def shutdown_write(self) -> None:
        self._sock.shutdown(socket.SHUT_WR)


class TlsTransport:
    """TLS over a socket, which stays as it is: its timeouts hold, and others may shut it down.

    Not an SSLSocket: that one moves a record of 16 KiB a call, and is not blocking underneath.
    """

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, host: str | None, timeout_s: float
    ) -> None:
        self._sock, self._timeout_s = sock, timeout_s
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=context.protocol is ssl.PROTOCOL_TLS_SERVER,
            server_hostname=host,
        )
        self.more = False
        """Whether what has arrived may be more than was read."""
        # Encrypted, and not sent: the peer was slow.
        self._backlog = memoryview(b"")

    def greet(self) -> None:
        """Say what comes first, if that is ours to say."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        self.flush()

    def handshake(self, limit_s: float, accept: Accept | None) -> None:
        """Agree on keys; TimeoutError after ``limit_s``, and ssl.SSLError for what is no TLS.

        ``accept`` is asked before the peer hears that its certificate has arrived.
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
        # What the peer says first may have come with the end of its handshake.
        self.more = bool(self._incoming.pending)

    def receive(self, most: int) -> bytes:
        view = memoryview(bytearray(most))
        count = moved = self._receive(view)
        with contextlib.suppress(ssl.SSLError):  # said again when there is nothing before it
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
        """Take ``data``, which leaves with a flush; what was taken before must have left."""
        self._encrypt(memoryview(data))
        self._backlog = memoryview(self._outgoing.read())

    def flush_now(self) -> bool:
        """Let leave what can of what was taken; return whether that is all."""
        with contextlib.suppress(BlockingIOError):
            # Looked at each time, for where Python waits for a socket it would wait here, too.
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
                self._sock.sendall(data)

    def wait_readable(self, seconds: float) -> bool:
        return self.more or os_sockets.wait_readable(self._sock, seconds)

    def wait_writable(self, seconds: float) -> bool:
        self.flush()
        return os_sockets.wait_writable(self._sock, seconds)

    def shutdown_write(self) -> None:
        with contextlib.suppress(ssl.SSLError):  # what the peer still says is not waited for
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
        """Return the next record of a client; HandshakeError for one with a part of a hello.

        For a hello OpenSSL takes as much memory as it says that it is long, 128 KiB or less.
        """
        record = self._handshake_bytes(_PREFIX, deadline)
        while len(record) < _PREFIX:
            record += self._handshake_bytes(_PREFIX - len(record), deadline)
        end = _PREFIX + min(int.from_bytes(record[3:_PREFIX]), _LARGEST)
        while len(record) < end:
            record += self._handshake_bytes(end - len(record), deadline)
        if record[:1] == HANDSHAKE and end != _HELLO + int.from_bytes(record[6:_HELLO]):
            raise HandshakeError("", "a hello that is not one record")
        return record

    def _handshake_bytes(self, most: int, deadline: float) -> bytes:
        if not os_sockets.wait_readable(self._sock, max(0.0, deadline - time.monotonic())):
            raise TimeoutError
        data = self._sock.recv(most)
        if not data:
            raise ConnectionResetError("the peer hung up in the middle of a TLS handshake")
        return data

    def _receive(self, view: memoryview) -> int:
        """Put what comes next into the start of ``view``; return how many bytes, 0 at the end.

        A record that comes byte by byte may take no longer than silence may.
        """
        since: float | None = None
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                return self._decrypt(view)
            now = time.monotonic()
            since = since or now
            if now - since > self._timeout_s:
                raise TimeoutError
            if not self._fill(len(view)):
                return 0

    def _decrypt(self, view: memoryview) -> int:
        self.more = False
        try:
            # With a buffer it returns how many bytes, of which its type knows nothing.
            count: int = self._tls.read(len(view), view)  # type: ignore[assignment]
        except ssl.SSLZeroReturnError:
            return 0
        self.more = bool(self._tls.pending() or self._incoming.pending)
        return count

    def _encrypt(self, view: memoryview) -> None:
        while view:
            view = view[self._tls.write(view) :]

    def _fill(self, wanted: int) -> bool:
        """Take what has arrived, for ``wanted`` bytes at least; False at the end."""
        data = self._sock.recv(min(max(wanted, _LEAST), _MOST))
        self._incoming.write(data)
        return bool(data)
