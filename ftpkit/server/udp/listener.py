"""The UDP side of a server: one port, and a socket and a thread for each session."""

import contextlib
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

from ftpkit.errors import ConnectionLostError, FtpkitError
from ftpkit.net.cipher import DatagramCipher
from ftpkit.net.udp_socket import DatagramSocket, Parts, drive_session
from ftpkit.osapi import sockets as os_sockets
from ftpkit.protocol.digest import keyed_number
from ftpkit.protocol.udp.packet import (
    KEY,
    MIN_PIECE,
    OVERHEAD,
    Datagram,
    Header,
    Kind,
    Probe,
    read_header,
    read_probe,
)
from ftpkit.protocol.udp.path_probe import echo_of
from ftpkit.protocol.udp.sender import Sender
from ftpkit.protocol.udp.session import DatagramTransfer, ServerDatagramSession

# A client that is not heard for so long has gone, or fallen back to its conversation.
_SILENCE_S: Final = 30.0
_WAIT_S: Final = 1.0
# A client that has measured none says 0.
_LEAST_RTT_S: Final = 0.001

Turn = Callable[[Callable[[], int]], AbstractContextManager[int | None]]
"""Makes the turn in which a row moves, given what tells how many bytes it has moved."""
Begin = Callable[[int, int, float, float], DatagramTransfer]
"""Makes the server's half of a row: session, bytes a piece, seconds a round trip, the time now."""

log = logging.getLogger("ftpkit.server")


class UdpPort(Protocol):
    """Where the datagrams arrive that no session's own socket takes."""

    def wait(self, seconds: float) -> bool:
        """Wait until something has arrived; False says that the time has passed."""

    def receive(self) -> Iterator[tuple[memoryview, Any]]:
        """Yield what has arrived, and from where."""

    def shutdown(self) -> None:
        """Wake up who waits."""

    def close(self) -> None:
        """Close it."""

    @property
    def send_to(self) -> Callable[[Parts, tuple[Any, ...], tuple[Any, ...]], None]:
        """Send one datagram to an address, from an address of this machine."""


class UdpListener:
    """Answers probes on a UDP port; whoever proves an address gets a socket of its own.

    Nothing but an echo, which is as long as what it answers, goes to an address
    that has not proven that it receives. ``session`` draws a number for a new session.
    """

    def __init__(
        self, port: UdpPort, session: Callable[[], int] = lambda: secrets.randbits(32)
    ) -> None:
        self._session = session
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._exchanges: dict[int, UdpConversation] = {}
        self._closed = threading.Event()
        self._port = port
        self._thread = threading.Thread(target=self._serve, name="ftpkit-door", daemon=True)

    def open(
        self,
        begin: Begin,
        let_go: Callable[[], None],
        turn: Turn,
        local: tuple[int, tuple[Any, ...]],
    ) -> "UdpConversation":
        """Open a session; ``local`` is the family and address that the client knows us by."""
        with self._lock:
            while (session := self._session()) in self._exchanges:
                pass
            exchange = UdpConversation(self, session, begin, let_go, turn, local)
            self._exchanges[session] = exchange
        return exchange

    def forget(self, exchange: "UdpConversation") -> None:
        """Answer nothing more to a session."""
        with self._lock:
            self._exchanges.pop(exchange.session, None)

    def start(self) -> None:
        """Answer probes, in a thread."""
        self._thread.start()

    def _serve(self) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(ConnectionLostError):
                self._port.wait(_WAIT_S)
                for raw, address in self._port.receive():
                    try:
                        self._answer(raw, address)
                    except Exception:  # of one session, which must not close the door to all
                        log.exception("error", extra={"fields": {"peer": repr(address)}})

    def send(self, parts: Parts, address: tuple[Any, ...], local: tuple[Any, ...]) -> None:
        """Send one datagram from the port itself, as if that were bound to ``local``."""
        self._port.send_to(parts, address, local)

    def proof_for(self, session: int, address: tuple[Any, ...]) -> int:
        """Return the number that only who receives at ``address`` can know."""
        return keyed_number(self._secret, repr((session, address)).encode())

    def close(self) -> None:
        """Close the port; every session must have ended."""
        self._closed.set()
        self._port.shutdown()
        if self._thread.is_alive():
            self._thread.join()
        self._port.close()

    def _answer(self, raw: memoryview, address: tuple[Any, ...]) -> None:
        header = read_header(raw)
        if header is None:
            return
        with self._lock:
            exchange = self._exchanges.get(header.session)
        if exchange is None:
            return
        if header.kind == Kind.PROBE:
            exchange.probed(raw, address)
        else:
            exchange.missed(raw, address)


class UdpConversation:
    """One session: from ``open`` it answers probes, and once an address is proven it moves blocks.

    The socket and the thread that do so are its own, so that no session waits for
    the disk of another. A client whose address changes proves the new one.
    """

    def __init__(
        self,
        udp_listener: UdpListener,
        session: int,
        begin: Begin,
        let_go: Callable[[], None],
        turn: Turn,
        local: tuple[int, tuple[Any, ...]],
    ) -> None:
        self.session = session
        self.key = secrets.token_bytes(KEY)
        self._listener, self._begin, self._let_go, self._local = udp_listener, begin, let_go, local
        self._turn = turn
        self._cipher = DatagramCipher(self.key)
        self._lock = threading.Lock()
        self._last_probe = 0
        self._peer: tuple[Any, ...] | None = None
        self._end: ServerDatagramSession | None = None
        self._sock: DatagramSocket | None = None
        self._thread: threading.Thread | None = None
        self._heard_at = time.monotonic()
        self._stopped = self._over = False

    @property
    def running(self) -> bool:
        """Whether blocks are on their way."""
        return self._end is not None and not self._over and not self.done

    @property
    def done(self) -> bool:
        """Whether all blocks are over."""
        return self._end is not None and self._end.transfer.done

    @property
    def moved(self) -> int:
        """How many bytes of blocks have gone over, or come."""
        return self._end.transfer.moved if self._end else 0

    def probed(self, raw: memoryview, address: tuple[Any, ...]) -> None:
        """Answer a probe that came to the port itself, if it was sealed with our key."""
        opened = self._cipher.decrypt(raw)
        if opened is None:
            return
        with contextlib.suppress(FtpkitError), self._lock:
            answer = self._answer(*opened, address)
            if answer is not None:
                (parts,) = self._cipher.encrypt(answer)
                self._listener.send(parts, address, self._local[1])

    def missed(self, raw: memoryview, address: tuple[Any, ...]) -> None:
        """Hand on what came just before our own socket heard of its address."""
        with self._lock:
            if self._sock is not None and address == self._peer:
                self._sock.inject(bytes(raw), address)

    def stop(self) -> None:
        """End the session, and wait until it has."""
        self._listener.forget(self)
        with self._lock:
            self._stopped = True
            if self._sock is not None:
                self._sock.shutdown()
        # Nobody is admitted any more, so that there is a thread to wait for or there never is.
        if self._thread is not None:
            self._thread.join()
        else:
            self._let_go()

    def _answer(
        self, header: Header, payload: bytes | memoryview, address: tuple[Any, ...]
    ) -> Datagram | None:
        """Return the echo of a probe; one that shows the proof for its address opens the way there.

        Numbers only grow, so that a probe which somebody kept and sends again moves nothing.
        """
        if header.number <= self._last_probe or self._stopped:
            return None
        self._last_probe = header.number
        probe = read_probe(payload)
        proof = self._listener.proof_for(self.session, address)
        if probe.proof == proof and probe.piece >= MIN_PIECE:
            try:
                self._admit(address, probe)
            except (OSError, RuntimeError) as error:  # no descriptor or no thread is left
                self._over = self._over or self._thread is None
                self._tell(error)
            if self._over and self._end is not None:
                return self._end.end_datagram()
        size = len(payload) + OVERHEAD
        return echo_of(header, size, Probe(proof, probe.piece, probe.rtt_us))

    def _admit(self, address: tuple[Any, ...], probe: Probe) -> None:
        """Send to ``address`` from now on."""
        if self._over or address == self._peer:
            return
        if self._sock is not None:
            self._sock.connect(address)
            self._peer = address
            return
        now = time.monotonic()
        rtt_s = max(probe.rtt_us / 1e6, _LEAST_RTT_S)
        transfer = self._begin(self.session, probe.piece, rtt_s, now)
        session = self._end = ServerDatagramSession(self.session, transfer, self._probed_again)
        sock = DatagramSocket(bound(*self._local))
        try:
            sock.connect(address)
            thread = threading.Thread(
                target=self._run, args=(session, sock), name="ftpkit-exchange", daemon=True
            )
            self._heard_at = now
            thread.start()
        except BaseException:
            sock.close()
            raise
        self._sock, self._thread, self._peer = sock, thread, address

    def _probed_again(self, header: Header, payload: bytes | memoryview) -> Datagram | None:
        """Answer a probe that came to our own socket, which hears one address alone."""
        with self._lock:
            return self._answer(header, payload, self._peer) if self._peer else None

    def _run(self, session: ServerDatagramSession, sock: DatagramSocket) -> None:
        def goes_on(now: float) -> bool:
            silence_s = now - max(session.last_received_at, self._heard_at)
            return not self._stopped and not session.done and silence_s < _SILENCE_S

        cipher = DatagramCipher(self.key)
        try:
            drive_session(
                sock,
                cipher,
                session,
                while_=goes_on,
                quantum=lambda: self._turn(lambda: _passed(session.transfer)),
            )
        except (FtpkitError, OSError) as error:
            self._tell(error)
        except Exception:  # the thread ends, and the log says why
            log.exception("error", extra={"fields": {"session": self.session}})
        finally:
            # The door may be about to connect this socket to another address.
            with self._lock:
                self._over = True
                with contextlib.suppress(FtpkitError):
                    sock.send(cipher.encrypt(session.end_datagram()))
                sock.close()
            self._let_go()

    def _tell(self, error: Exception) -> None:
        # The conversation gives the client the same answer, and a person reads it there.
        log.info("datagrams", extra={"fields": {"session": self.session, "error": str(error)}})


def _passed(transfer: DatagramTransfer) -> int:
    """Return how many bytes have passed here: what has left counts before it has arrived."""
    return transfer.sent.first if isinstance(transfer, Sender) else transfer.moved


def bound(family: int, address: tuple[Any, ...]) -> socket.socket:
    """Return a UDP socket that shares ``address`` with others of this server."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        os_sockets.share_port(sock)
        if family == socket.AF_INET6:
            # Like the TCP socket of this address: a mapped one is of IPv4.
            mapped = address[0] == "::" or address[0].startswith("::ffff:")
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not mapped)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock
