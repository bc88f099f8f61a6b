"""A session of datagrams: opened over a conversation, which is watched meanwhile."""

import contextlib
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from typing import Final

from ftpkit.client.connection import Connection
from ftpkit.client.udp import OnMoved
from ftpkit.errors import ProtocolError, StallTimeoutError, UdpBlockedError
from ftpkit.net.cipher import DatagramCipher
from ftpkit.net.udp_socket import DatagramSocket, drive_session
from ftpkit.osapi import files as os_files
from ftpkit.protocol.messages import Ping, Pull, Push, SessionReply
from ftpkit.protocol.udp.congestion import BbrControl
from ftpkit.protocol.udp.packet import KEY, OVERHEAD, max_open_blocks
from ftpkit.protocol.udp.path_probe import PathProber
from ftpkit.protocol.udp.receiver import Receiver, Take
from ftpkit.protocol.udp.sender import Fill, Sender
from ftpkit.protocol.udp.session import ClientDatagramSession, DatagramTransfer

# Nobody who has asked for UDP should wait longer to learn that it is blocked.
_BLOCKED_S: Final = 2.0
# So long a path may be dead, in the middle, before its datagrams are given up.
_DEAD_S: Final = 10.0
_WATCH_S: Final = 0.25
_PING_S: Final = 15.0

SessionStart = Callable[[int, int, float, float], DatagramTransfer]
"""Makes the client's half of a row: session, bytes a piece, seconds a round trip, the time now."""


def upload_starter(
    block: int, sizes: Mapping[int, int], fill: Fill, bytes_per_s: float | None
) -> Callable[[int, int, float, float], Sender]:
    """Return what makes the sender of an upload's blocks."""

    def start(session: int, piece: int, rtt_s: float, now: float) -> Sender:
        return Sender(
            session,
            piece,
            sizes,
            fill,
            BbrControl(piece + OVERHEAD, rtt_s, now, bytes_per_s),
            most_open=max_open_blocks(block),
            direction=0,
            rtt_s=rtt_s,
            now=now,
        )

    return start


def download_starter(block: int, sizes: Mapping[int, int], take: Take) -> SessionStart:
    """Return what makes the receiver of a download's blocks."""

    def start(session: int, piece: int, rtt_s: float, now: float) -> Receiver:
        return Receiver(
            session,
            sizes,
            take,
            most_open=max_open_blocks(block),
            direction=0,
            allocate=os_files.lazy_memory,
        )

    return start


def run_session(
    connection: Connection,
    request: Push | Pull,
    start: SessionStart,
    on_moved: OnMoved,
    bytes_per_s: float | None,
) -> None:
    """Move a row of blocks until all are over, or the server goes on no further.

    Where ``bytes_per_s`` was asked for, nothing may move for as long as that takes. Raises
    UdpBlockedError where no datagram gets through, ConnectionLostError where nothing does.
    """
    reply = connection.request(request, SessionReply)
    cipher = DatagramCipher(_key(reply))
    with closing(_connected(connection)) as sock:
        path = PathProber(reply.session, sock.sizes(), time.monotonic())
        session = ClientDatagramSession(path, partial(start, reply.session))
        drive_session(
            sock,
            cipher,
            session,
            while_=_Watchdog(connection, session, on_moved, bytes_per_s).is_running,
        )
        # What a receiver says last lets the server rest.
        sock.send(cipher.encrypt(*session.datagrams_to_send(time.monotonic())))


def _connected(connection: Connection) -> DatagramSocket:
    """Return a socket to where the conversation goes; what makes that impossible blocks UDP."""
    try:
        family, address = connection.stream.remote
        with contextlib.ExitStack() as undo:
            sock = undo.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            datagrams = DatagramSocket(sock)
            datagrams.connect(address)
            undo.pop_all()
    except OSError as error:
        reason = error.strerror or error
        raise UdpBlockedError(
            f"no datagram can be sent to {connection.address}: {reason}"
        ) from None
    return datagrams


def _key(reply: SessionReply) -> bytes:
    with contextlib.suppress(ValueError):
        key = bytes.fromhex(reply.key)
        if len(key) == KEY:
            return key
    raise ProtocolError("the server's key is none")


class _Watchdog:
    """Keeps an eye on the conversation and on the path, a few times a second."""

    def __init__(
        self,
        connection: Connection,
        session: ClientDatagramSession,
        on_moved: OnMoved,
        bytes_per_s: float | None,
    ) -> None:
        self._connection, self._session, self._on_moved = connection, session, on_moved
        self._bytes_per_s = bytes_per_s
        self._moved = 0
        now = time.monotonic()
        self._next = now + _WATCH_S
        self._moved_at = self._asked_at = self._answered_at = now
        self._waiting = False

    def is_running(self, now: float) -> bool:
        """Whether there is more to do; raises what says that it cannot be done."""
        if self._session.transfer is not None and self._session.transfer.moved != self._moved:
            moved = self._session.transfer.moved
            self._on_moved(moved - self._moved)
            self._moved, self._moved_at = moved, now
        if now >= self._next:
            self._next = now + _WATCH_S
            self._check(now)
        return not self._session.done and not self._session.ended

    def _check(self, now: float) -> None:
        connection, path = self._connection, self._session.path
        # Only blocks count: echoes alone, or words that move nothing, could go on for ever.
        idle_s, patience_s = now - self._moved_at, _DEAD_S + self._pause_s
        if connection.poll():
            self._waiting, self._answered_at = False, now
        if not path.is_open and idle_s > _BLOCKED_S:
            raise UdpBlockedError(f"no datagram gets through to {connection.address}")
        if idle_s > patience_s and self._answered_at > self._moved_at + patience_s / 2:
            raise UdpBlockedError(f"datagrams get through to {connection.address} no longer")
        if idle_s > max(connection.timeout_s, patience_s):
            raise StallTimeoutError("the peer moved no byte for too long")
        # While blocks move, so that the server sees that we live; in a silence, to see it does.
        due = self._asked_at + (_PING_S if idle_s < patience_s / 2 else _DEAD_S / 4)
        if now > due and not self._waiting:
            self._waiting, self._asked_at = True, now
            connection.send(Ping())

    @property
    def _pause_s(self) -> float:
        """How long nothing may move because it is to be slow."""
        return (
            4 * (self._session.path.piece + OVERHEAD) / self._bytes_per_s
            if self._bytes_per_s
            else 0.0
        )
