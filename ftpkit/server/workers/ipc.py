"""What the processes of one server tell each other: frames over a Unix socket, descriptors beside.

The frames are those of the protocol. ``fds`` in a header counts the descriptors that
travel with it.
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

_READ: Final = 64 * 1024
_INT: Final = Struct("@i")
_NOTES: Final = 1024
# Whoever takes nothing for so long is as good as dead.
_STUCK_S: Final = 5.0


class IpcChannel:
    """One end; any thread may send, one receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sending = threading.Lock()
        self._decoder = Decoder()
        self._ahead = memoryview(b"")
        self._arrived: deque[list[int]] = deque()
        os_sockets.set_send_timeout(sock, _STUCK_S)

    def send(self, body: bytes = b"", fds: Sequence[int] = (), **header: Any) -> None:
        """Send a message; raises ConnectionLostError if the peer is gone or does not read."""
        data = encode_header({**header, "size": len(body), "fds": len(fds)}) + body
        with self._sending, self._ended_if_it_fails():
            sent = socket.send_fds(self._sock, [data], fds) if fds else 0
            self._sock.sendall(data[sent:])

    def offer(self, **header: Any) -> bool:
        """Send a short message if that takes no wait; False says that nothing was sent."""
        if not self._sending.acquire(blocking=False):
            return False
        try:
            with self._ended_if_it_fails():
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
        """Return the next message: its header, its body and its descriptors.

        Of those none may be left, where this process could not open them. ConnectionLostError says
        that the other side is gone.
        """
        while (header := self._decoder.feed(self._take(self._decoder.wanted))) is None:
            pass
        body = bytearray()
        while more := self._take(header["size"] - len(body)):
            body += more
        if len(body) < header["size"]:
            raise TruncatedError(len(body), header["size"])
        return header, bytes(body), self._arrived.popleft() if header["fds"] else []

    def interrupt(self) -> None:
        """Let both sides find that the channel has ended; safe from another thread."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it, and what has arrived and was not received."""
        self._sock.close()
        while self._arrived:
            close_all(self._arrived.popleft())

    @contextlib.contextmanager
    def _ended_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # Half a frame may have left: nothing can follow it.
            self.interrupt()
            raise ConnectionLostError(f"a process of this server is gone: {error}") from None

    def _take(self, most: int) -> memoryview:
        """Return some bytes, ``most`` at most; none if none are wanted, or none will come."""
        if not self._ahead and most:
            self._ahead = memoryview(self._read())
        taken = self._ahead[:most]
        self._ahead = self._ahead[len(taken) :]
        return taken

    def _read(self) -> bytes:
        try:
            # Not recv_fds, which forgets the flags in some versions of Python.
            data, notes, flags, _ = self._sock.recvmsg(_READ, _NOTES, os_sockets.MSG_CMSG_CLOEXEC)
        except OSError:
            return b""
        fds = [fd for _, _, raw in notes for (fd,) in _INT.iter_unpack(raw)]
        # A read ends behind the message whose descriptors it has brought, or lost.
        if fds or flags & socket.MSG_CTRUNC:
            self._arrived.append(fds)
        return data


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that nobody wants."""
    for fd in fds:
        os.close(fd)
