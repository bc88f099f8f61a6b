"""Comparison of framing: messages sent over TCP, over TCP in frames, and as UDP datagrams."""

import contextlib
import random
import selectors
import socket
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from struct import Struct
from typing import Final

from ftpkit.errors import ConnectionLostError
from ftpkit.osapi import sockets as os_sockets
from ftpkit.protocol import Decoder, encode_header

NUMBER: Final = Struct("!I")
MIN_SIZE: Final = NUMBER.size
# A datagram of this size fits into the receive buffer below on every system.
MAX_SIZE: Final = 1024
# The usual buffer size in introductions to sockets.
READ_SIZE: Final = 1024
# Linux doubles the value and counts its overhead: space for about five small datagrams. The
# minimum would hold three.
RECEIVE_BUFFER: Final = 2048

_LOOPBACK: Final = "127.0.0.1"
# Timeout of a receiver without data, and of a sender that cannot send.
_STALL_S: Final = 10.0
# The end comes over another socket, and may overtake the last datagrams by this.
_OVERTAKEN_S: Final = 0.05
_MAX_DATAGRAM: Final = 65_535


class Fate(StrEnum):
    """What became of one message.

    - WHOLE: one read returned exactly this message.
    - GLUED: one read returned all of it, with bytes of its neighbours.
    - SPLIT: its bytes came in two or more reads.
    - LOST: some of its bytes did not arrive.
    """

    WHOLE = "whole"
    GLUED = "glued"
    SPLIT = "split"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class FramingResult:
    """How many messages were sent over ``transport``, and what became of them.

    ``reads`` counts the calls of ``recv`` that returned bytes. Each message has one Fate:
    ``whole + glued + split + lost == messages``. A "read" of a Fate is:

    - ``tcp``: a call of ``recv(READ_SIZE)``, compared with the boundaries of the messages,
      which the receiver cannot see.
    - ``tcp-framed``: the body of a frame from the decoder, not a call of ``recv``.
    - ``udp``: a call of ``recv``, which returns one datagram: none is glued or split.
    """

    transport: str
    messages: int
    reads: int
    whole: int
    glued: int
    split: int
    lost: int


def compare_framing(count: int, largest: int, seed: int = 0) -> list[FramingResult]:
    """Send ``count`` messages of up to ``largest`` bytes over each transport; return the outcomes.

    They go over loopback as fast as possible, one ``send`` each, to a receiver in another
    thread, and are the same for the same ``seed``. Sockets have the system's defaults, except
    that the receive buffer for datagrams is small (RECEIVE_BUFFER): it overflows whenever the
    receiver pauses, as a large one does when the sender is faster for longer.

    Returns the outcomes of ``tcp``, ``tcp-framed`` and ``udp``. Raises ValueError as
    ``numbered_messages`` does, ConnectionLostError if loopback fails.
    """
    messages = numbered_messages(count, largest, seed)
    try:
        plain = _through_tcp(messages)
        framed = _through_tcp(map(_frame, messages))
        datagrams = _through_udp(messages)
    except OSError as error:
        raise ConnectionLostError(f"loopback failed: {error.strerror or error}") from error
    return [
        _outcome("tcp", plain, stream_fates(messages, plain)),
        _outcome("tcp-framed", framed, stream_fates(messages, list(bodies(framed)))),
        _outcome("udp", datagrams, datagram_fates(messages, datagrams)),
    ]


def numbered_messages(count: int, largest: int, seed: int) -> list[bytes]:
    """Return ``count`` messages of MIN_SIZE to ``largest`` bytes: a number, then seeded noise.

    ValueError unless ``count`` is at least 1 and ``largest`` between MIN_SIZE and MAX_SIZE.
    """
    if count < 1:
        raise ValueError(f"the number of messages must be at least 1, not {count}")
    if not MIN_SIZE <= largest <= MAX_SIZE:
        raise ValueError(f"the size must be {MIN_SIZE} to {MAX_SIZE} bytes, not {largest}")
    noise = random.Random(seed)  # noqa: S311  # must be repeatable
    return [
        NUMBER.pack(number) + noise.randbytes(noise.randint(0, largest - MIN_SIZE))
        for number in range(count)
    ]


def stream_fates(messages: Sequence[bytes], reads: Sequence[bytes]) -> list[Fate]:
    """Return what became of each message of a stream that was received as ``reads``.

    ValueError if a message or a read is empty.
    """
    if not all(messages) or not all(reads):
        raise ValueError("a message or a read is empty")
    stream = b"".join(reads)
    read_ends = list(accumulate(map(len, reads)))
    fates, start = [], 0
    for message in messages:
        end = start + len(message)
        arrived = stream[start:end] == message
        fates.append(_fate(start, end, read_ends) if arrived else Fate.LOST)
        start = end
    return fates


def datagram_fates(messages: Sequence[bytes], datagrams: Iterable[bytes]) -> list[Fate]:
    """Return what became of each message; the messages must differ, their order is ignored."""
    came = set(datagrams)
    return [Fate.WHOLE if message in came else Fate.LOST for message in messages]


def bodies(reads: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the body of each complete frame in ``reads``; ProtocolError for a malformed one."""
    decoder, body = Decoder(), bytearray()
    size: int | None = None
    for read in reads:
        view = memoryview(read)
        while view:
            if size is None:
                taken = view[: decoder.wanted]
                if (header := decoder.feed(taken)) is not None:
                    size = header.get("size", 0)
            else:
                taken = view[: size - len(body)]
                body += taken
            view = view[len(taken) :]
            if len(body) == size:
                yield bytes(body)
                body.clear()
                size = None


def _fate(start: int, end: int, read_ends: Sequence[int]) -> Fate:
    """Return the fate of the bytes from ``start`` to ``end``, which have arrived."""
    first = bisect_right(read_ends, start)
    last = bisect_left(read_ends, end)
    if first < last:
        return Fate.SPLIT
    read_start = read_ends[first - 1] if first else 0
    return Fate.WHOLE if (read_start, read_ends[first]) == (start, end) else Fate.GLUED


def _outcome(transport: str, reads: Sequence[bytes], fates: Sequence[Fate]) -> FramingResult:
    count = Counter(fates)
    return FramingResult(
        transport=transport,
        messages=len(fates),
        reads=len(reads),
        **{fate.value: count[fate] for fate in Fate},
    )


def _frame(message: bytes) -> bytes:
    return encode_header({"size": len(message)}) + message


def _through_tcp(parts: Iterable[bytes]) -> list[bytes]:
    """Send each of ``parts`` with one call; return what each call of ``recv`` returned."""
    with _connection() as (sender, receiver), ThreadPoolExecutor(1) as pool:
        receiving = pool.submit(list, iter(lambda: receiver.recv(READ_SIZE), b""))
        with sender:  # closing it ends the receiver
            for part in parts:
                sender.sendall(part)
        return receiving.result()


def _through_udp(messages: Iterable[bytes]) -> list[bytes]:
    """Send each message as a datagram; return what each call of ``recv`` returned."""
    with (
        _connection() as (control, ended),
        datagram_sockets() as (sender, receiver),
        ThreadPoolExecutor(1) as pool,
    ):
        receiving = pool.submit(take_datagrams, receiver, ended)
        with control:  # closing it reports that everything is sent
            for message in messages:
                sender.send(message)
        return receiving.result()


def take_datagrams(receiver: socket.socket, ended: socket.socket) -> list[bytes]:
    """Return the datagrams until ``ended`` is readable and none has come for 0.05 s.

    TimeoutError after 10 s without either.
    """
    taken: list[bytes] = []
    patience_s = _STALL_S
    receiver.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(receiver, selectors.EVENT_READ)
        selector.register(ended, selectors.EVENT_READ)
        while ready := selector.select(patience_s):
            with contextlib.suppress(BlockingIOError):
                while True:
                    taken.append(receiver.recv(_MAX_DATAGRAM))
            if any(key.fileobj is ended for key, _ in ready):
                selector.unregister(ended)
                patience_s = _OVERTAKEN_S
    if patience_s == _STALL_S:
        raise TimeoutError("no datagram within the timeout")
    return taken


@contextlib.contextmanager
def _connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Make a TCP connection on loopback; yield both sockets."""
    with contextlib.ExitStack() as stack:
        with socket.create_server((_LOOPBACK, 0)) as listener:
            listener.settimeout(_STALL_S)
            near = stack.enter_context(socket.create_connection(listener.getsockname(), _STALL_S))
            far, peer = listener.accept()
            stack.enter_context(far)
            if peer != near.getsockname():
                raise ConnectionAbortedError("another process connected")
        for sock in (near, far):
            os_sockets.set_socket_timeout(sock, _STALL_S)
        yield near, far


@contextlib.contextmanager
def datagram_sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Make two UDP sockets on loopback, connected to each other; yield both."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        for sock in (sender, receiver):
            sock.bind((_LOOPBACK, 0))
            os_sockets.set_socket_timeout(sock, _STALL_S)
        sender.connect(receiver.getsockname())
        receiver.connect(sender.getsockname())
        yield sender, receiver
