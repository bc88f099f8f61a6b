"""Messages between the processes of one server, with descriptors, over a Unix socket.

They are frames of the protocol; ``fds`` in a header counts the descriptors that come with it.
"""

import contextlib
import os
import socket
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Any, Final

from ftpkit.errors import ConnectionLostError, TruncatedError
from ftpkit.osapi import sockets as os_sockets
from ftpkit.protocol.frame import Decoder, Header, encode_header

_READ_SIZE: Final = 64 * 1024
_INT: Final = Struct("@i")
_MAX_ANCILLARY: Final = 1024
# A process that reads nothing for so long hangs, and must not block this one.
_SEND_TIMEOUT_S: Final = 5.0


class IpcChannel:
    """One side of a channel; any thread may send, one thread receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sending = threading.Lock()
        self._decoder = Decoder()
        self._ahead = memoryview(b"")
        self._fds: deque[list[int]] = deque()
        os_sockets.set_send_timeout(sock, _SEND_TIMEOUT_S)

    def send(self, body: bytes = b"", fds: Sequence[int] = (), **header: Any) -> None:
        """Send a message; ConnectionLostError if the peer has ended or reads nothing for 5 s."""
        data = encode_header({**header, "size": len(body), "fds": len(fds)}) + body
        with self._sending, self._interrupted_on_error():
            sent = socket.send_fds(self._sock, [data], fds) if fds else 0
            self._sock.sendall(data[sent:])

    def try_send(self, **header: Any) -> bool:
        """Send a short message, unless that would block; False if nothing was sent."""
        if not self._sending.acquire(blocking=False):
            return False
        try:
            with self._interrupted_on_error():
                data = encode_header({**header, "size": 0, "fds": 0})
                try:
                    sent = os_sockets.send_now(self._sock, memoryview(data))
                except BlockingIOError:
                    return False
                if sent < len(data):
                    self._sock.sendall(data[sent:])
                return True
        finally:
            self._sending.release()

    def receive(self) -> tuple[Header, bytes, list[int]]:
        """Return the header, body and descriptors of the next message.

        There are no descriptors if this process has reached its limit. ConnectionLostError
        if the peer has ended.
        """
        while (header := self._decoder.feed(self._next(self._decoder.wanted))) is None:
            pass
        body = bytearray()
        while more := self._next(header["size"] - len(body)):
            body += more
        if len(body) < header["size"]:
            raise TruncatedError(len(body), header["size"])
        return header, bytes(body), self._fds.popleft() if header["fds"] else []

    def interrupt(self) -> None:
        """Make both sides find the channel closed; any thread may call this."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket, and descriptors that arrived and were not received."""
        self._sock.close()
        while self._fds:
            close_all(self._fds.popleft())

    @contextlib.contextmanager
    def _interrupted_on_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # Half a frame may have been sent, so nothing can follow it.
            self.interrupt()
            raise ConnectionLostError(f"a process of this server has ended: {error}") from None

    def _next(self, count: int) -> memoryview:
        """Return up to ``count`` bytes; none if ``count`` is 0 or the channel is closed."""
        if not self._ahead and count:
            self._ahead = memoryview(self._read())
        data = self._ahead[:count]
        self._ahead = self._ahead[len(data) :]
        return data

    def _read(self) -> bytes:
        try:
            # Not recv_fds, which ignores the flags in some versions of Python.
            data, ancillary, flags, _ = self._sock.recvmsg(
                _READ_SIZE, _MAX_ANCILLARY, os_sockets.MSG_CMSG_CLOEXEC
            )
        except OSError:
            return b""
        fds = [fd for _, _, raw in ancillary for (fd,) in _INT.iter_unpack(raw)]
        # A read ends with the message whose descriptors it returned, or could not open.
        if fds or flags & socket.MSG_CTRUNC:
            self._fds.append(fds)
        return data


def close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
