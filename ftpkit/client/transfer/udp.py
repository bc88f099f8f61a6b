"""Whether blocks are transferred as datagrams, and what happens where UDP is blocked."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Final

from ftpkit.client.connection import Connection
from ftpkit.client.retry import OnRetry
from ftpkit.errors import UdpBlockedError
from ftpkit.protocol.messages import OkReply, Ping

_FEATURE: Final = "datagrams"
_PING_S: Final = 1.0


class UdpMode(StrEnum):
    """Whether blocks are transferred as datagrams."""

    NO = "no"
    FIRST = "first"  # and over TCP where UDP is blocked
    ONLY = "only"


class UdpTransfer:
    """Runs the UDP sessions of one client, and remembers that UDP is blocked.

    ``bytes_per_s`` limits the rate of each direction. Where several threads share a limited
    client, one transfer at a time has the whole rate.
    """

    def __init__(self, mode: UdpMode, bytes_per_s: float | None) -> None:
        self._mode, self._bytes_per_s = mode, bytes_per_s
        self._lock = threading.Lock()
        self._blocked = False

    @property
    def enabled(self) -> bool:
        return self._mode is not UdpMode.NO and not self._blocked

    def run(
        self, connection: Connection, session: Callable[[float | None], int], on_retry: OnRetry
    ) -> int:
        """Run ``session`` with the rate limit; return what it returns, the bytes that arrived.

        Where UDP is blocked, return 0 after ``on_retry`` was called with a UdpBlockedError; with
        UdpMode.ONLY that is raised.
        """
        moved = 0
        with self._exclusive(connection):
            if not self.enabled:
                return 0  # another thread found UDP blocked
            try:
                if _FEATURE not in connection.features:
                    raise UdpBlockedError(f"{connection.address} does not accept UDP")
                moved = session(self._bytes_per_s)
            except UdpBlockedError as error:
                if self._mode is UdpMode.ONLY:
                    raise UdpBlockedError(f"{error}; use --udp to continue over TCP") from None
                self._blocked = True
                on_retry(error, 0.0)
            connection.drain()
        return moved

    @contextlib.contextmanager
    def _exclusive(self, connection: Connection) -> Iterator[None]:
        """Have the whole rate; while waiting for it, ping so that the server keeps the session."""
        if self._bytes_per_s is None:
            yield
            return
        while not self._lock.acquire(timeout=_PING_S):
            connection.request(Ping(), OkReply)
        try:
            yield
        finally:
            self._lock.release()
