"""The connections of the uploads of a comparison, which are opened and stopped together."""

import socket
import struct
from typing import Final

from ftpkit.client.connection import Connection
from ftpkit.client.dial import OnSocket
from ftpkit.compare.tcp_info import use_congestion
from ftpkit.errors import ConnectionLostError
from ftpkit.net.address import Url

# SO_LINGER of 0: a close discards buffered data, which would disturb the next measurement.
_RESET: Final = struct.pack("@ii", 1, 0)


class Connections:
    """Connections to ``url``, with a ``congestion`` control other than the default if given."""

    def __init__(self, url: Url, congestion: str | None = None, timeout_s: float = 30.0) -> None:
        self.stopped = False
        self._url, self._congestion, self._timeout_s = url, congestion, timeout_s
        self._connections: list[Connection] = []

    def open(self, on_socket: OnSocket | None = None) -> Connection:
        """Open another connection; ConnectionLostError after ``stop``."""
        connection = Connection(
            lambda: self._url, timeout_s=self._timeout_s, limiter=None, on_socket=on_socket
        )
        self._connections.append(connection)
        if self._congestion is not None:
            try:
                use_congestion(connection.sock, self._congestion)
            except OSError as error:
                raise ConnectionLostError(
                    f"cannot use congestion control {self._congestion}: {error.strerror}"
                ) from None
        if self.stopped:
            raise ConnectionLostError("the transfer was stopped")
        return connection

    def stop(self) -> None:
        """Interrupt the uploads; safe from another thread."""
        self.stopped = True
        for connection in list(self._connections):
            connection.stream.shutdown()

    def close(self) -> None:
        """Close the connections; after ``stop``, without sending buffered data."""
        for connection in self._connections:
            if self.stopped and connection.sock.fileno() >= 0:
                connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            connection.close()
