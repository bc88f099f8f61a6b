"""A client's UDP session: it is opened over a TCP connection, which is watched while it runs."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Final

from ftpkit.client.connection import Connection
from ftpkit.client.transfer.blocks import BLOCK
from ftpkit.errors import ProtocolError, StallTimeoutError, UdpBlockedError
from ftpkit.net.cipher import DatagramCipher
from ftpkit.net.frame_stream import OnBytes
from ftpkit.net.udp_socket import DatagramSocket, drive_session
from ftpkit.osapi import files as os_files
from ftpkit.protocol.messages import Ping, Pull, Push, SessionReply
from ftpkit.protocol.udp.congestion import BbrControl
from ftpkit.protocol.udp.packet import KEY, MAX_BLOCKS, OVERHEAD, max_open_blocks
from ftpkit.protocol.udp.path_probe import PathProber
from ftpkit.protocol.udp.receiver import OnBlock, Receiver
from ftpkit.protocol.udp.sender import Fill, Sender
from ftpkit.protocol.udp.session import ClientDatagramSession, StartSession

# The header of a request holds no more ranges; further blocks are fetched over TCP.
_MAX_RANGES: Final = 1000

# With no datagram back after this time, UDP is taken to be blocked.
_BLOCKED_S: Final = 2.0
# A path that worked may be silent for this time before UDP is given up.
_DEAD_S: Final = 10.0
_CHECK_S: Final = 0.25
_KEEPALIVE_S: Final = 15.0


def send_blocks(
    connection: Connection,
    upload: str,
    sizes: Mapping[int, int],
    fill: Fill,
    on_moved: OnBytes,
    bytes_per_s: float | None,
) -> int:
    """Send blocks of ``upload``; return how many bytes arrived.

    ``sizes`` maps the number of a block to its bytes; ``fill`` puts the bytes of one into
    memory, and its raw digest behind them. Errors as in ``run_session``.
    """
    sizes = dict(islice(sizes.items(), MAX_BLOCKS))
    start = upload_starter(sizes, fill, bytes_per_s)
    return run_session(connection, Push(upload=upload), start, on_moved, bytes_per_s)


def receive_blocks(
    connection: Connection,
    name: str,
    version: str,
    sizes: Mapping[int, int],
    hold: OnBlock,
    on_moved: OnBytes,
    bytes_per_s: float | None,
) -> int:
    """Receive blocks of a version of the file ``name``; return how many bytes arrived.

    ``hold`` is called with a block's number, its bytes and its raw digest, unchecked.
    """
    ranges = _ranges(islice(sizes, MAX_BLOCKS))
    sizes = {number: sizes[number] for first, end in ranges for number in range(first, end)}
    rate = None if bytes_per_s is None else max(1, int(bytes_per_s))
    request = Pull(name=name, version=version, block=BLOCK, ranges=ranges, rate=rate)

    def start(session: int, piece: int, rtt_s: float, now: float) -> Receiver:
        return Receiver(
            session,
            sizes,
            hold,
            max_open=max_open_blocks(BLOCK),
            direction=0,
            allocate=os_files.lazy_memory,
        )

    return run_session(connection, request, start, on_moved, bytes_per_s)


def upload_starter(
    sizes: Mapping[int, int], fill: Fill, bytes_per_s: float | None
) -> Callable[[int, int, float, float], Sender]:
    def start(session: int, piece: int, rtt_s: float, now: float) -> Sender:
        return Sender(
            session,
            piece,
            sizes,
            fill,
            BbrControl(piece + OVERHEAD, rtt_s, now, bytes_per_s),
            max_open=max_open_blocks(BLOCK),
            direction=0,
            rtt_s=rtt_s,
            now=now,
        )

    return start


def run_session(
    connection: Connection,
    request: Push | Pull,
    start: StartSession,
    on_moved: OnBytes,
    bytes_per_s: float | None,
) -> int:
    """Transfer blocks until all have arrived or the server ends the session; return the bytes.

    ``bytes_per_s`` is the limit that was asked for: at a low one, long silences are normal.
    Raises UdpBlockedError where no datagram gets through, ConnectionLostError where TCP fails.
    """
    reply = connection.request(request, SessionReply)
    cipher = DatagramCipher(_key(reply))
    with _connected(connection) as sock:
        path = PathProber(reply.session, sock.sizes(), time.monotonic())
        session = ClientDatagramSession(path, partial(start, reply.session))
        watchdog = _Watchdog(connection, session, on_moved, bytes_per_s)
        drive_session(sock, cipher, session, should_continue=watchdog.is_running)
        # The last acknowledgement: without it the server would send again.
        sock.send(cipher.encrypt(*session.datagrams_to_send(time.monotonic())))
    return watchdog.moved


def _ranges(blocks: Iterable[int]) -> list[list[int]]:
    """Return ascending blocks as ranges [first, end), at most _MAX_RANGES of them."""
    ranges: list[list[int]] = []
    for block in blocks:
        if ranges and ranges[-1][1] == block:
            ranges[-1][1] += 1
        else:
            ranges.append([block, block + 1])
    return ranges[:_MAX_RANGES]


@contextlib.contextmanager
def _connected(connection: Connection) -> Iterator[DatagramSocket]:
    """Yield a UDP socket to the server's address; UdpBlockedError if there can be none."""
    with contextlib.ExitStack() as stack:
        try:
            family, address = connection.stream.remote
            sock = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            datagrams = DatagramSocket(sock)
            datagrams.connect(address)
        except OSError as error:
            reason = error.strerror or error
            raise UdpBlockedError(f"cannot send UDP to {connection.address}: {reason}") from None
        yield datagrams


def _key(reply: SessionReply) -> bytes:
    with contextlib.suppress(ValueError):
        key = bytes.fromhex(reply.key)
        if len(key) == KEY:
            return key
    raise ProtocolError("invalid session reply: not a session key")


class _Watchdog:
    """Reports progress, and checks the TCP connection and the path a few times a second."""

    def __init__(
        self,
        connection: Connection,
        session: ClientDatagramSession,
        on_moved: OnBytes,
        bytes_per_s: float | None,
    ) -> None:
        self._connection, self._session, self._on_moved = connection, session, on_moved
        self._bytes_per_s = bytes_per_s
        self.moved = 0
        now = time.monotonic()
        self._next_check = now + _CHECK_S
        self._moved_at = self._pinged_at = self._answered_at = now
        self._unanswered = False

    def is_running(self, now: float) -> bool:
        """Whether the session goes on; raises the error that ends it."""
        transfer = self._session.transfer
        if transfer is not None and transfer.moved != self.moved:
            more, self.moved, self._moved_at = transfer.moved - self.moved, transfer.moved, now
            self._on_moved(more)
        if now >= self._next_check:
            self._next_check = now + _CHECK_S
            self._check(now)
        return not self._session.done and not self._session.closed_by_server

    def _check(self, now: float) -> None:
        connection, path = self._connection, self._session.path
        # Only blocks count as progress: a hostile server could send other datagrams for ever.
        idle_s, patience_s = now - self._moved_at, _DEAD_S
        if self._bytes_per_s:  # the limit alone can cause a silence as long as this
            patience_s += 4 * (path.piece + OVERHEAD) / self._bytes_per_s
        if connection.poll():
            self._unanswered, self._answered_at = False, now
        if not path.is_open and idle_s > _BLOCKED_S:
            raise UdpBlockedError(f"UDP to {connection.address} is blocked")
        if idle_s > patience_s and self._answered_at > self._moved_at + patience_s / 2:
            raise UdpBlockedError(f"UDP to {connection.address} no longer gets through")
        if idle_s > (timeout_s := max(connection.timeout_s, patience_s)):
            raise StallTimeoutError(f"{connection.address} transferred no data for {timeout_s:g} s")
        # While blocks move, pings keep the TCP session; in a silence they show whether TCP works.
        due = self._pinged_at + (_KEEPALIVE_S if idle_s < patience_s / 2 else _DEAD_S / 4)
        if now > due and not self._unanswered:
            self._unanswered, self._pinged_at = True, now
            connection.send(Ping())
