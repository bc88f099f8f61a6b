"""Whether blocks are transferred as datagrams; the code that does it is imported on first use."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from functools import partial
from typing import Final

from ftpkit.client.connection import Connection
from ftpkit.client.retry import OnRetry
from ftpkit.client.transfer.blocks import OnMoved
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
    """Transfers blocks as datagrams for one client; remembers that UDP is blocked.

    ``bytes_per_s`` limits the rate of each direction. Where several threads share a limited
    client, one transfer at a time has the whole rate.
    """

    def __init__(self, mode: UdpMode, bytes_per_s: float | None) -> None:
        self._mode, self._bytes_per_s = mode, bytes_per_s
        self._lock = threading.Lock()
        self._blocked = False

    @property
    def enabled(self) -> bool:
        """Whether to try UDP."""
        return self._mode is not UdpMode.NO and not self._blocked

    def send(
        self,
        connection: Connection,
        upload: str,
        sizes: Mapping[int, int],
        fill: Callable[[int, memoryview], None],
        on_moved: OnMoved,
        on_retry: OnRetry,
    ) -> int:
        """Send blocks of ``upload``; return how many bytes of them have arrived for certain.

        ``sizes`` maps the number of a block to its bytes; ``fill`` puts the bytes of one into
        memory, and its raw digest behind them. Where UDP is blocked, ``on_retry`` is called with
        a UdpBlockedError; with UdpMode.ONLY that is raised.
        """
        from ftpkit.client.transfer.udp_session import send_blocks

        session = partial(send_blocks, upload=upload, sizes=sizes, fill=fill)
        return self._run(connection, session, on_moved, on_retry)

    def receive(
        self,
        connection: Connection,
        name: str,
        version: str,
        sizes: Mapping[int, int],
        hold: Callable[[int, memoryview, bytes], None],
        on_moved: OnMoved,
        on_retry: OnRetry,
    ) -> None:
        """Receive blocks of a version of the file ``name``; UDP may be blocked as in ``send``.

        ``hold`` is called with the number of a block, its bytes and their raw digest, unchecked.
        """
        from ftpkit.client.transfer.udp_session import receive_blocks

        session = partial(receive_blocks, name=name, version=version, sizes=sizes, hold=hold)
        self._run(connection, session, on_moved, on_retry)

    def _run(
        self,
        connection: Connection,
        session: Callable[[Connection, OnMoved, float | None], int],
        on_moved: OnMoved,
        on_retry: OnRetry,
    ) -> int:
        moved = 0
        with self._exclusive(connection):
            if not self.enabled:
                return 0  # another thread found UDP blocked
            try:
                if _FEATURE not in connection.features:
                    raise UdpBlockedError(f"{connection.address} does not accept UDP")
                moved = session(connection, on_moved, self._bytes_per_s)
            except UdpBlockedError as error:
                if self._mode is UdpMode.ONLY:
                    hint = "use --udp to continue over TCP"
                    raise UdpBlockedError(f"{error}; {hint}") from None
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
