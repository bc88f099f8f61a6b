"""Whether blocks travel as datagrams; how they do is imported when some do."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from ftpkit.client.connection import Connection
from ftpkit.client.retry import OnRetry
from ftpkit.errors import UdpBlockedError
from ftpkit.protocol.messages import OkReply, Ping, Pull, Push

if TYPE_CHECKING:
    from ftpkit.client.udp_session import SessionStart

OnMoved = Callable[[int], None]
"""Called with how many more bytes of blocks are over."""

_FEATURE: Final = "datagrams"
_PING_S: Final = 1.0


class UdpMode(StrEnum):
    """Whether blocks travel as datagrams."""

    NO = "no"
    FIRST = "first"  # and over the conversation where UDP is blocked
    ONLY = "only"


class UdpTransfer:
    """Carries rows of blocks as datagrams, for one client; remembers where UDP is blocked.

    ``bytes_per_s`` is how many bytes a second may leave, or be asked for, at most. Where
    several threads share it, one row at a time has the whole rate.
    """

    def __init__(self, udp: UdpMode, bytes_per_s: float | None) -> None:
        self._udp, self._bytes_per_s = udp, bytes_per_s
        self._lock = threading.Lock()
        self._blocked = False

    @property
    def wanted(self) -> bool:
        """Whether it is worth a try."""
        return self._udp is not UdpMode.NO and not self._blocked

    def send(
        self,
        connection: Connection,
        upload: str,
        block: int,
        sizes: Mapping[int, int],
        fill: Callable[[int, memoryview], None],
        on_moved: OnMoved,
        on_retry: OnRetry,
    ) -> int:
        """Send blocks of ``upload`` as far as they get; return how many bytes arrived.

        ``sizes`` tells their numbers and bytes, ``fill`` puts the bytes of one into
        memory, and their raw digest behind them. What is missing then, and why, the
        conversation tells. Where UDP is blocked, ``on_retry`` hears of it, or
        UdpBlockedError is raised if there is to be nothing else.
        """
        from ftpkit.client.udp_session import upload_starter

        start = upload_starter(block, sizes, fill, self._bytes_per_s)
        return self._run(connection, Push(upload=upload), start, on_moved, on_retry)

    def receive(
        self,
        connection: Connection,
        pull: Pull,
        sizes: Mapping[int, int],
        take: Callable[[int, memoryview, bytes], None],
        on_moved: OnMoved,
        on_retry: OnRetry,
    ) -> int:
        """Receive the blocks that ``pull`` asks for, as ``send`` sends them.

        ``take`` gets the number of a block, its bytes and their raw digest, unchecked.
        """
        from ftpkit.client.udp_session import download_starter

        if self._bytes_per_s is not None:
            pull = replace(pull, rate=max(1, int(self._bytes_per_s)))
        return self._run(
            connection, pull, download_starter(pull.block, sizes, take), on_moved, on_retry
        )

    def _run(
        self,
        connection: Connection,
        request: Push | Pull,
        start: "SessionStart",
        on_moved: OnMoved,
        on_retry: OnRetry,
    ) -> int:
        from ftpkit.client.udp_session import run_session

        moved = 0

        def count(more: int) -> None:
            nonlocal moved
            moved += more
            on_moved(more)

        with self._exclusive(connection):
            if not self.wanted:
                return 0  # somebody found that out meanwhile
            try:
                if _FEATURE not in connection.features:
                    raise UdpBlockedError(f"{connection.address} takes no datagrams")
                run_session(connection, request, start, count, self._bytes_per_s)
            except UdpBlockedError as error:
                if self._udp is UdpMode.ONLY:
                    raise
                self._blocked = True
                on_retry(error, 0.0)
            connection.drain()
        return moved

    @contextlib.contextmanager
    def _exclusive(self, connection: Connection) -> Iterator[None]:
        """Have the rate for oneself; until then, let the server see that we live."""
        if self._bytes_per_s is None:
            yield
            return
        while not self._lock.acquire(timeout=_PING_S):
            connection.request(Ping(), OkReply)
        try:
            yield
        finally:
            self._lock.release()
