"""Both ends of a session of datagrams: the path, and the row of blocks that moves over it."""

from collections.abc import Callable
from typing import Protocol

from ftpkit.protocol.udp.packet import (
    FROM_SERVER,
    Datagram,
    Header,
    Kind,
    PacketNumbers,
    pack_header,
)
from ftpkit.protocol.udp.path_probe import PathProber
from ftpkit.protocol.udp.receiver import Receiver


class BlockSender(Protocol):
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


DatagramTransfer = BlockSender | Receiver

StartTransfer = Callable[[int, float, float], DatagramTransfer]
"""Makes one half of a row: bytes a piece, seconds a round trip, the time now."""

AnswerProbe = Callable[[Header, bytes | memoryview], Datagram | None]


class DatagramSession(Protocol):
    """One end of a session: takes what arrives, and gives what is to leave."""

    def receive(self, header: Header, payload: bytes | memoryview, now: float) -> None:
        """Take a datagram in; ProtocolError if a peer that holds the key sent nonsense."""

    def datagrams_to_send(self, now: float) -> list[Datagram]:
        """Return what is to leave now."""

    def next_event(self, now: float) -> float:
        """Return when there is something to do, if nothing arrives before."""


class ClientDatagramSession:
    """The client's end: finds a path, and lets ``start`` make what moves over it."""

    def __init__(self, path: PathProber, start: StartTransfer) -> None:
        self.path, self._start = path, start
        self.transfer: DatagramTransfer | None = None
        self.ended = False
        """Whether the server said that it goes on no further."""

    @property
    def done(self) -> bool:
        """Whether all blocks have arrived."""
        return self.transfer is not None and self.transfer.done

    def receive(self, header: Header, payload: bytes | memoryview, now: float) -> None:
        """Take a datagram in."""
        if not header.kind & FROM_SERVER:
            return
        if header.kind & ~FROM_SERVER == Kind.ECHO:
            self.path.receive(header, payload, now)
            return
        self.path.note_received(now)
        if header.kind & ~FROM_SERVER == Kind.END:
            self.ended = True
        elif self.transfer is not None:
            _dispatch(self.transfer, header, payload, now)

    def datagrams_to_send(self, now: float) -> list[Datagram]:
        """Return what is to leave now: probes first, for nothing else is heard before them."""
        datagrams = self.path.datagrams_to_send(now)
        if self.transfer is None and self.path.piece:
            self.transfer = self._start(self.path.piece, self.path.rtt_s, now)
        return datagrams + (self.transfer.datagrams_to_send(now) if self.transfer else [])

    def next_event(self, now: float) -> float:
        """Return when there is something to do, if nothing arrives before."""
        at = self.path.next_event(now)
        return min(at, self.transfer.next_event(now)) if self.transfer else at


class ServerDatagramSession:
    """The server's end, from when the client's address is proven.

    ``answer`` returns the echo of a probe, or None for one that is not to be answered.
    """

    def __init__(self, session: int, transfer: DatagramTransfer, answer: AnswerProbe) -> None:
        self.transfer = transfer
        self.heard_at = 0.0
        """When a datagram arrived last."""
        self._session, self._answer = session, answer
        self._numbers = PacketNumbers()
        self._echoes: list[Datagram] = []

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to do; a receiver stays, for its last words may be lost."""
        return not isinstance(self.transfer, Receiver) and self.transfer.done

    def receive(self, header: Header, payload: bytes | memoryview, now: float) -> None:
        """Take a datagram in."""
        if header.kind & FROM_SERVER:
            return
        self.heard_at = now
        if header.kind == Kind.PROBE:
            echo = self._answer(header, payload)
            self._echoes += [echo] if echo else []
        else:
            _dispatch(self.transfer, header, payload, now)

    def datagrams_to_send(self, now: float) -> list[Datagram]:
        """Return what is to leave now."""
        echoes, self._echoes = self._echoes, []
        return echoes + self.transfer.datagrams_to_send(now)

    def next_event(self, now: float) -> float:
        """Return when there is something to do, if nothing arrives before."""
        return now if self._echoes else self.transfer.next_event(now)

    def end_datagram(self) -> Datagram:
        """Return what tells the client that this end goes on no further."""
        number = self._numbers.next()
        return Datagram(pack_header(self._session, number, Kind.END | FROM_SERVER), b"")


def _dispatch(
    transfer: DatagramTransfer, header: Header, payload: bytes | memoryview, now: float
) -> None:
    """Give a row what concerns it."""
    kind = header.kind & ~FROM_SERVER
    if isinstance(transfer, Receiver):
        if kind == Kind.DATA:
            transfer.receive(header, payload, now)
    elif kind == Kind.ACK:
        transfer.receive_ack(payload, now)
