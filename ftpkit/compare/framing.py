"""What becomes of messages that are sent over TCP, over TCP in frames, and as UDP datagrams."""

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
# A datagram of this size still fits into the receive buffer below, on every system.
MAX_SIZE: Final = 1024
# What recv is given in most introductions to sockets.
READ_SIZE: Final = 1024
# Linux doubles what it is asked for and counts its own bookkeeping in: room for about five
# small datagrams. Its least would be three.
RECEIVE_BUFFER: Final = 2048

_LOOPBACK: Final = "127.0.0.1"
# A receiver that hears nothing for so long gives up, and so does a sender that cannot send.
_STALL_S: Final = 10.0
# The end is told over another socket and may overtake the last datagrams.
_OVERTAKEN_S: Final = 0.05
_MAX_DATAGRAM: Final = 65_535


class Fate(StrEnum):
    """What became of one message; each has exactly one fate.

    - WHOLE: one read returned this message, all of it and nothing else.
    - GLUED: one read returned all of it, together with bytes of its neighbours.
    - SPLIT: its bytes came in two or more reads, whatever else these returned.
    - LOST: not all of its bytes came out as they were sent.
    """

    WHOLE = "whole"
    GLUED = "glued"
    SPLIT = "split"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How many messages were sent in one way, and what became of them.

    ``reads`` counts the calls of ``recv`` that returned bytes. The other
    counts are of messages, one Fate each, so that ``whole + glued + split +
    lost == messages``. What a "read" of a Fate is differs by ``transport``:

    - ``tcp``: a call of ``recv(READ_SIZE)``, compared with the true borders
      of the messages, which the receiver itself cannot see.
    - ``tcp-framed``: the body of a frame, as the decoder cut it out of the
      same kind of calls. So ``reads`` tells nothing of ``whole`` here.
    - ``udp``: a call of ``recv``, which returns one datagram as it was sent:
      a message that no datagram equals is lost, and none can be glued or split.
    """

    transport: str
    messages: int
    reads: int
    whole: int
    glued: int
    split: int
    lost: int


def compare_framing(count: int, largest: int, seed: int = 0) -> list[Outcome]:
    """Send ``count`` messages of up to ``largest`` bytes in each way, as fast as possible.

    They go over loopback, one ``send`` a message, to a receiver in a thread
    of its own, which takes turns with the sender as two programs on one core
    would; they are the same for the same ``seed``. The sockets are as the
    system makes them, except that the receive buffer for datagrams is small
    (RECEIVE_BUFFER): it overflows whenever the receiver does not get its turn
    for a moment, as a large one would where the sender is faster for longer.

    Returns the outcomes of ``tcp``, ``tcp-framed`` and ``udp``. Raises
    ValueError as ``numbered_messages`` does, ConnectionLostError where loopback fails.
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
    """Return ``count`` messages of MIN_SIZE to ``largest`` bytes: its number, then seeded noise.

    ValueError unless ``count`` is at least 1 and ``largest`` between MIN_SIZE and MAX_SIZE.
    """
    if count < 1:
        raise ValueError(f"{count} messages are too few")
    if not MIN_SIZE <= largest <= MAX_SIZE:
        raise ValueError(f"a message has {MIN_SIZE} to {MAX_SIZE} bytes, not {largest}")
    noise = random.Random(seed)  # noqa: S311  (not a secret: a run that can be repeated)
    return [
        NUMBER.pack(number) + noise.randbytes(noise.randint(0, largest - MIN_SIZE))
        for number in range(count)
    ]


def stream_fates(messages: Sequence[bytes], reads: Sequence[bytes]) -> list[Fate]:
    """Return what became of each message of a stream that came out as ``reads``.

    ValueError if a message or a read is empty: it would have no place in the stream.
    """
    if not all(messages) or not all(reads):
        raise ValueError("a message or a read is empty")
    stream = b"".join(reads)
    read_ends = list(accumulate(map(len, reads)))
    fates, start = [], 0
    for message in messages:
        end = start + len(message)
        if stream[start:end] == message:
            fates.append(_fate(start, end, read_ends))
        else:
            fates.append(Fate.LOST)
        start = end
    return fates


def datagram_fates(messages: Sequence[bytes], datagrams: Iterable[bytes]) -> list[Fate]:
    """Return what became of each message, all of them different, in whatever order they came."""
    came = set(datagrams)
    return [Fate.WHOLE if message in came else Fate.LOST for message in messages]


def bodies(reads: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the body of each whole frame of a stream (WIRE.md section 1) that came as ``reads``.

    Raises ProtocolError for what is no frame.
    """
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
    """Return the fate of the bytes from ``start`` to ``end``, all of which came."""
    first = bisect_right(read_ends, start)
    last = bisect_left(read_ends, end)
    if first < last:
        return Fate.SPLIT
    read_start = read_ends[first - 1] if first else 0
    return Fate.WHOLE if (read_start, read_ends[first]) == (start, end) else Fate.GLUED


def _outcome(transport: str, reads: Sequence[bytes], fates: Sequence[Fate]) -> Outcome:
    count = Counter(fates)
    return Outcome(
        transport=transport,
        messages=len(fates),
        reads=len(reads),
        whole=count[Fate.WHOLE],
        glued=count[Fate.GLUED],
        split=count[Fate.SPLIT],
        lost=count[Fate.LOST],
    )


def _frame(message: bytes) -> bytes:
    return encode_header({"size": len(message)}) + message


def _through_tcp(parts: Iterable[bytes]) -> list[bytes]:
    """Send ``parts``, a call for each; return what each call of ``recv`` returned."""
    with _connection() as (sender, receiver), ThreadPoolExecutor(1) as pool:
        receiving = pool.submit(_read_to_end, receiver)
        with sender:  # closed first, for this is what ends the receiver
            for part in parts:
                sender.sendall(part)
        return receiving.result()


def _read_to_end(receiver: socket.socket) -> list[bytes]:
    with receiver:
        return list(iter(lambda: receiver.recv(READ_SIZE), b""))


def _through_udp(messages: Iterable[bytes]) -> list[bytes]:
    """Send each message as a datagram; return what each call of ``recv`` returned."""
    with (
        _connection() as (control, ended),
        datagram_sockets() as (sender, receiver),
        ThreadPoolExecutor(1) as pool,
    ):
        receiving = pool.submit(take_datagrams, receiver, ended)
        with control:  # its end says that everything has been sent
            for message in messages:
                sender.send(message)
        return receiving.result()


def take_datagrams(receiver: socket.socket, ended: socket.socket) -> list[bytes]:
    """Return what comes until ``ended`` can be read and then nothing comes for 0.05 s.

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
        raise TimeoutError("neither a datagram nor the end came")
    return taken


@contextlib.contextmanager
def _connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Make a TCP connection on loopback; yield its two ends."""
    with contextlib.ExitStack() as stack:
        with socket.create_server((_LOOPBACK, 0)) as listener:
            listener.settimeout(_STALL_S)
            near = stack.enter_context(socket.create_connection(listener.getsockname(), _STALL_S))
            far, peer = listener.accept()
            stack.enter_context(far)
            if peer != near.getsockname():
                raise ConnectionAbortedError("a stranger connected")
        for sock in (near, far):
            os_sockets.set_socket_timeout(sock, _STALL_S)
        yield near, far


@contextlib.contextmanager
def datagram_sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Make two UDP sockets on loopback that hear nobody but each other; yield both."""
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
