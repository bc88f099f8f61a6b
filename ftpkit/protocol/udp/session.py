"""Both sides of a UDP session: path probing and the transfer of blocks."""

from collections.abc import Callable
from typing import Protocol

from ftpkit.protocol.udp.packet import FROM_SERVER, Datagram, Header, Kind, PacketNumbers
from ftpkit.protocol.udp.path_probe import PathProber
from ftpkit.protocol.udp.receiver import Receiver


class DatagramSession(Protocol):
    """One side of a session; times are seconds of one clock."""

    def receive(self, header: Header, payload: bytes | memoryview, now: float) -> None:
        """Process a decrypted datagram; ProtocolError if the peer violates the protocol."""

    def datagrams_to_send(self, now: float) -> list[Datagram]:
        """Return the datagrams to send now."""

    def next_event(self, now: float) -> float:
        """Return the time of the next call, if nothing arrives before."""


class DatagramTransfer(DatagramSession, Protocol):
    """The transfer of blocks in a session: a sender or receiver. It ignores other datagrams."""

    @property
    def moved(self) -> int:
        """Bytes of blocks that have arrived."""

    @property
    def done(self) -> bool:
        """Whether nothing is left to transfer."""


StartTransfer = Callable[[int, float, float], DatagramTransfer]
"""Makes a sender or receiver from bytes per piece, round-trip time in seconds, and now."""

StartSession = Callable[[int, int, float, float], DatagramTransfer]
"""As ``StartTransfer``, from the session id and then the same."""

AnswerProbe = Callable[[Header, bytes | memoryview], Datagram | None]


class ClientDatagramSession:
    """The client's side: probes the path, then makes the transfer with ``start``."""

    def __init__(self, path: PathProber, start: StartTransfer) -> None:
        self.path, self._start = path, start
        self.transfer: DatagramTransfer | None = None
        self.closed_by_server = False
        """Whether the server has ended the session."""

    @property
    def done(self) -> bool:
        return self.transfer is not None and self.transfer.done

    def receive(self, header: Header, payload: bytes | memoryview, now: float) -> None:
        if not header.kind & FROM_SERVER:
            return
        kind = header.kind & ~FROM_SERVER
        if kind == Kind.ECHO:
            self.path.receive(header, payload, now)
            return
        self.path.note_received(now)
        if kind == Kind.END:
            self.closed_by_server = True
        elif self.transfer is not None:
            self.transfer.receive(header, payload, now)

    def datagrams_to_send(self, now: float) -> list[Datagram]:
        # Probes first: the server drops everything else from an unproven address.
        datagrams = self.path.datagrams_to_send(now)
        if self.transfer is None and self.path.piece:
            self.transfer = self._start(self.path.piece, self.path.rtt_s, now)
        return datagrams + (self.transfer.datagrams_to_send(now) if self.transfer else [])

    def next_event(self, now: float) -> float:
        at = self.path.next_event(now)
        return min(at, self.transfer.next_event(now)) if self.transfer else at


class ServerDatagramSession:
    """The server's side, once the client's address is proven.

    ``answer`` returns the echo of a probe, or None to drop it.
    """

    def __init__(self, session: int, transfer: DatagramTransfer, answer: AnswerProbe) -> None:
        self.transfer = transfer
        self.last_received_at = 0.0
        """When the last datagram arrived."""
        self._answer = answer
        self._numbers = PacketNumbers(session, Kind.END | FROM_SERVER)
        self._echoes: list[Datagram] = []

    @property
    def done(self) -> bool:
        """Whether nothing is left to do: never for a receiver, whose last ACK may be lost."""
        return not isinstance(self.transfer, Receiver) and self.transfer.done

    def receive(self, header: Header, payload: bytes | memoryview, now: float) -> None:
        if header.kind & FROM_SERVER:
            return
        self.last_received_at = now
        if header.kind == Kind.PROBE:
            echo = self._answer(header, payload)
            self._echoes += [echo] if echo else []
        else:
            self.transfer.receive(header, payload, now)

    def datagrams_to_send(self, now: float) -> list[Datagram]:
        echoes, self._echoes = self._echoes, []
        return echoes + self.transfer.datagrams_to_send(now)

    def next_event(self, now: float) -> float:
        return now if self._echoes else self.transfer.next_event(now)

    def end_datagram(self) -> Datagram:
        """Return the datagram that ends the session."""
        return Datagram(self._numbers.next_header(), b"")
