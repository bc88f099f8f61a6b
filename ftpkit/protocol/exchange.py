"""Both ends of a session of datagrams: the path, and the row of blocks that moves over it."""

from collections.abc import Callable
from typing import Protocol

from ftpkit.protocol.datagram import FROM_SERVER, Datagram, Header, Kind, Numbers, pack_header
from ftpkit.protocol.path import Path
from ftpkit.protocol.receiver import Receiver


class Sending(Protocol):
    """The sending half of a row of blocks: ``Sender``, or another that is compared with it."""

    @property
    def moved(self) -> int:
        """Bytes of blocks that have arrived."""

    @property
    def done(self) -> bool:
        """Whether there is nothing more to do."""

    def receive_ack(self, payload: bytes | memoryview, now: float) -> None:
        """Take an acknowledgement in; ProtocolError if it is none."""

    def datagrams_to_send(self, now: float) -> list[Datagram]:
        """Return what is to leave now."""

    def next_event(self, now: float) -> float:
        """Return when there is something to do, if nothing arrives before."""


Row = Sending | Receiver

Start = Callable[[int, float, float], Row]
"""Makes one half of a row: bytes a piece, seconds a round trip, the time now."""

Answer = Callable[[Header, bytes | memoryview], Datagram | None]


class End(Protocol):
    """One end of a session: takes what arrives, and gives what is to leave."""

    def receive(self, header: Header, payload: bytes | memoryview, now: float) -> None:
        """Take a datagram in; ProtocolError if a peer that holds the key sent nonsense."""

    def datagrams_to_send(self, now: float) -> list[Datagram]:
        """Return what is to leave now."""

    def next_event(self, now: float) -> float:
        """Return when there is something to do, if nothing arrives before."""


class ClientEnd:
    """The client's end: finds a path, and lets ``start`` make what moves over it."""

    def __init__(self, path: Path, start: Start) -> None:
        self.path, self._start = path, start
        self.row: Row | None = None
        self.ended = False
        """Whether the server said that it goes on no further."""

    @property
    def done(self) -> bool:
        """Whether all blocks have arrived."""
        return self.row is not None and self.row.done

    def receive(self, header: Header, payload: bytes | memoryview, now: float) -> None:
        """Take a datagram in."""
        if not header.kind & FROM_SERVER:
            return
        if header.kind & ~FROM_SERVER == Kind.ECHO:
            self.path.receive(header, payload, now)
            return
        self.path.hear(now)
        if header.kind & ~FROM_SERVER == Kind.END:
            self.ended = True
        elif self.row is not None:
            _hand_over(self.row, header, payload, now)

    def datagrams_to_send(self, now: float) -> list[Datagram]:
        """Return what is to leave now: probes first, for nothing else is heard before them."""
        datagrams = self.path.datagrams_to_send(now)
        if self.row is None and self.path.piece:
            self.row = self._start(self.path.piece, self.path.rtt_s, now)
        return datagrams + (self.row.datagrams_to_send(now) if self.row else [])

    def next_event(self, now: float) -> float:
        """Return when there is something to do, if nothing arrives before."""
        at = self.path.next_event(now)
        return min(at, self.row.next_event(now)) if self.row else at


class ServerEnd:
    """The server's end, from when the client's address is proven.

    ``answer`` returns the echo of a probe, or None for one that is not to be answered.
    """

    def __init__(self, session: int, row: Row, answer: Answer) -> None:
        self.row = row
        self.heard_at = 0.0
        """When a datagram arrived last."""
        self._session, self._answer = session, answer
        self._numbers = Numbers()
        self._echoes: list[Datagram] = []

    @property
    def over(self) -> bool:
        """Whether there is nothing more to do; a receiver stays, for its last words may be lost."""
        return not isinstance(self.row, Receiver) and self.row.done

    def receive(self, header: Header, payload: bytes | memoryview, now: float) -> None:
        """Take a datagram in."""
        if header.kind & FROM_SERVER:
            return
        self.heard_at = now
        if header.kind == Kind.PROBE:
            echo = self._answer(header, payload)
            self._echoes += [echo] if echo else []
        else:
            _hand_over(self.row, header, payload, now)

    def datagrams_to_send(self, now: float) -> list[Datagram]:
        """Return what is to leave now."""
        echoes, self._echoes = self._echoes, []
        return echoes + self.row.datagrams_to_send(now)

    def next_event(self, now: float) -> float:
        """Return when there is something to do, if nothing arrives before."""
        return now if self._echoes else self.row.next_event(now)

    def last_word(self) -> Datagram:
        """Return what tells the client that this end goes on no further."""
        number = self._numbers.next()
        return Datagram(pack_header(self._session, number, Kind.END | FROM_SERVER), b"")


def _hand_over(row: Row, header: Header, payload: bytes | memoryview, now: float) -> None:
    """Give a row what concerns it."""
    kind = header.kind & ~FROM_SERVER
    if isinstance(row, Receiver):
        if kind == Kind.DATA:
            row.receive(header, payload, now)
    elif kind == Kind.ACK:
        row.receive_ack(payload, now)
