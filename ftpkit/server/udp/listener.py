"""Serves UDP sessions: one port for probes, a socket and a thread for each session."""

import contextlib
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from ftpkit.errors import FtpkitError
from ftpkit.net.cipher import DatagramCipher
from ftpkit.net.udp_socket import DatagramSocket, drive_session
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
from ftpkit.protocol.udp.session import DatagramTransfer, ServerDatagramSession, StartSession
from ftpkit.server.udp.demux import PortReader, SocketAddress, UdpPort

# A client that is silent for so long has gone, or continues over its connection.
_SILENCE_S: Final = 30.0
# A client that has not measured its round trip time says 0.
_MIN_RTT_S: Final = 0.001

TakeTurn = Callable[[Callable[[], int]], AbstractContextManager[int | None]]
"""Waits for a turn of the scheduler; its argument returns the bytes that have moved so far."""

log = logging.getLogger("ftpkit.server")


class UdpListener:
    """Answers probes on a UDP port; a client that proves its address gets a socket of its own.

    An address that is not proven to receive gets echoes only, no longer than its probes, so that
    the server amplifies nothing. ``new_session_id`` draws the number of a session.
    """

    def __init__(
        self, port: UdpPort, new_session_id: Callable[[], int] = lambda: secrets.randbits(32)
    ) -> None:
        self._new_session_id = new_session_id
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._conversations: dict[int, UdpConversation] = {}
        self.send_to = port.send_to
        self.close = PortReader(port, self._receive, "ftpkit-udp").close

    def add(self, conversation: "UdpConversation") -> int:
        """Receive the probes of a new session; return its id."""
        with self._lock:
            while (session := self._new_session_id()) in self._conversations:
                pass
            self._conversations[session] = conversation
        return session

    def forget(self, conversation: "UdpConversation") -> None:
        """Ignore further datagrams of a session."""
        with self._lock:
            self._conversations.pop(conversation.session, None)

    def proof_for(self, session: int, address: SocketAddress) -> int:
        """Return the number that proves, when it comes back, that ``address`` receives."""
        return keyed_number(self._secret, repr((session, address)).encode())

    def _receive(self, raw: memoryview, address: SocketAddress) -> None:
        header = read_header(raw)
        if header is None:
            return
        with self._lock:
            conversation = self._conversations.get(header.session)
        if conversation is None:
            return
        if header.kind == Kind.PROBE:
            conversation.on_probe(raw, address)
        else:
            conversation.on_stray(raw, address)


class UdpConversation:
    """One UDP session: answers probes at first, and moves blocks once an address is proven.

    It has its own socket and thread, so that no session waits for the disk of another. A client
    whose address changes proves the new one. ``local`` is the socket family and address that the
    client knows.
    """

    def __init__(
        self,
        udp_listener: UdpListener,
        start: StartSession,
        on_end: Callable[[], None],
        take_turn: TakeTurn,
        local: tuple[int, SocketAddress],
    ) -> None:
        self.key = secrets.token_bytes(KEY)
        self._listener, self._start, self._on_end = udp_listener, start, on_end
        self._take_turn, self._local = take_turn, local
        self._cipher = DatagramCipher(self.key)
        self._lock = threading.Lock()
        self._last_probe = 0
        self._peer: SocketAddress | None = None
        self._session: ServerDatagramSession | None = None
        self._sock: DatagramSocket | None = None
        self._thread: threading.Thread | None = None
        self._heard_at = time.monotonic()
        self._stopped = self._ended = False
        self.session = udp_listener.add(self)

    @property
    def running(self) -> bool:
        return self._session is not None and not self._ended and not self.done

    @property
    def done(self) -> bool:
        return self._session is not None and self._session.transfer.done

    @property
    def moved(self) -> int:
        return self._session.transfer.moved if self._session else 0

    def on_probe(self, raw: memoryview, address: SocketAddress) -> None:
        """Answer a probe that came to the port, if it is encrypted with this session's key."""
        opened = self._cipher.decrypt(raw)
        if opened is None:
            return
        with contextlib.suppress(FtpkitError), self._lock:
            echo = self._echo_for(*opened, address)
            if echo is not None:
                (parts,) = self._cipher.encrypt(echo)
                self._listener.send_to(parts, address, self._local[1])

    def on_stray(self, raw: memoryview, address: SocketAddress) -> None:
        """Pass on a datagram that came to the port just before the session's socket connected."""
        with self._lock:
            if self._sock is not None and address == self._peer:
                self._sock.inject(bytes(raw), address)

    def stop(self) -> None:
        """End the session, and wait for its thread."""
        self._listener.forget(self)
        with self._lock:
            self._stopped = True
            if self._sock is not None:
                self._sock.shutdown()
        # From here on no thread is started: there is one to wait for, or there never will be.
        if self._thread is not None:
            self._thread.join()
        else:
            self._on_end()

    def _echo_for(
        self, header: Header, payload: bytes | memoryview, address: SocketAddress
    ) -> Datagram | None:
        """Return the echo of a probe; one with the proof for its address connects the session.

        Probe numbers must grow, so that a replayed probe has no effect.
        """
        if header.number <= self._last_probe or self._stopped:
            return None
        self._last_probe = header.number
        probe = read_probe(payload)
        proof = self._listener.proof_for(self.session, address)
        if probe.proof == proof and probe.piece >= MIN_PIECE:
            try:
                self._connect(address, probe)
            except (OSError, RuntimeError) as error:  # no descriptor or no thread is left
                self._ended = self._ended or self._thread is None
                self._log(error)
            if self._ended and self._session is not None:
                return self._session.end_datagram()
        size = len(payload) + OVERHEAD
        return echo_of(header, size, Probe(proof, probe.piece, probe.rtt_us))

    def _connect(self, address: SocketAddress, probe: Probe) -> None:
        """Send to ``address`` from now on; the first time, start the transfer and its thread."""
        if self._ended or address == self._peer:
            return
        if self._sock is not None:
            self._sock.connect(address)
            self._peer = address
            return
        now = time.monotonic()
        rtt_s = max(probe.rtt_us / 1e6, _MIN_RTT_S)
        transfer = self._start(self.session, probe.piece, rtt_s, now)
        session = self._session = ServerDatagramSession(
            self.session, transfer, self._on_connected_probe
        )
        sock = DatagramSocket(bind_shared(*self._local))
        try:
            sock.connect(address)
            thread = threading.Thread(
                target=self._run, args=(session, sock), name="ftpkit-udp-session", daemon=True
            )
            self._heard_at = now
            thread.start()
        except BaseException:
            sock.close()
            raise
        self._sock, self._thread, self._peer = sock, thread, address

    def _on_connected_probe(self, header: Header, payload: bytes | memoryview) -> Datagram | None:
        """Answer a probe that came to the session's socket, which is connected to one address."""
        with self._lock:
            return self._echo_for(header, payload, self._peer) if self._peer else None

    def _run(self, session: ServerDatagramSession, sock: DatagramSocket) -> None:
        def should_continue(now: float) -> bool:
            silence_s = now - max(session.last_received_at, self._heard_at)
            return not self._stopped and not session.done and silence_s < _SILENCE_S

        cipher = DatagramCipher(self.key)
        try:
            drive_session(
                sock,
                cipher,
                session,
                should_continue=should_continue,
                quantum=lambda: self._take_turn(lambda: _moved(session.transfer)),
            )
        except (FtpkitError, OSError) as error:
            self._log(error)
        except Exception:  # the thread ends, and the log says why
            log.exception("error", extra={"fields": {"session": self.session}})
        finally:
            # The listener's thread may be about to connect this socket to another address.
            with self._lock:
                self._ended = True
                with contextlib.suppress(FtpkitError):
                    sock.send(cipher.encrypt(session.end_datagram()))
                sock.close()
            self._on_end()

    def _log(self, error: Exception) -> None:
        # The client gets the same error as a reply on its connection.
        log.info("datagrams", extra={"fields": {"session": self.session, "error": str(error)}})


def _moved(transfer: DatagramTransfer) -> int:
    """Return the bytes that count for the scheduler: a sender's, before they are acknowledged."""
    return transfer.sent.first if isinstance(transfer, Sender) else transfer.moved


def bind_shared(family: int, address: SocketAddress) -> socket.socket:
    """Return a UDP socket bound to ``address``, which other sockets of the server share."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        os_sockets.share_port(sock)
        if family == socket.AF_INET6:
            # As the TCP socket of this address: only an unspecified or mapped one takes IPv4.
            mapped = address[0] == "::" or address[0].startswith("::ffff:")
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not mapped)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock
