"""A relay of datagrams before a server, which does to them what a network may do."""

import contextlib
import select
import socket
import threading
from collections.abc import Callable
from typing import Final, Self

from ftpkit.net.address import Address
from tests.faults.relay import Relay

_TRIES: Final = 20
_WAIT_S: Final = 30.0

Fate = Callable[[bytes, bool], list[bytes]]
"""What becomes of a datagram on its way up or, False, down: what arrives in its place."""


def _roomy(sock: socket.socket) -> socket.socket:
    """Let a burst wait: what is lost here is lost on purpose. And never wait for it."""
    sock.setblocking(False)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, 4 * 1024 * 1024)
    return sock


class Wire:
    """A TCP and a UDP port of one number before ``target``; counts the bytes of datagrams."""

    def __init__(self, target: Address, *, datagrams: bool = True) -> None:
        self._target = tuple(target)
        family = socket.AF_INET
        for _ in range(_TRIES):
            self.tcp = Relay(target)
            self.address = self.tcp.address
            self._near = _roomy(socket.socket(family, socket.SOCK_DGRAM))
            try:
                self._near.bind(tuple(self.address))
                break
            except OSError:
                self._near.close()
                self.tcp.close()
        self.up = self.down = 0
        self.fate: Fate = lambda raw, up: [raw]
        """Asked for each datagram, in the thread of the relay."""
        self.blocked = threading.Event()
        """While set, nothing gets through."""
        if not datagrams:
            self.blocked.set()
        self._changed = threading.Condition()
        self._far = self._onward()
        self._left: list[socket.socket] = []
        self._client: tuple[str, int] | None = None
        self._wake = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="relay-datagrams", daemon=True)
        self._thread.start()

    def wait(self, condition: Callable[["Wire"], bool]) -> None:
        """Wait until ``condition`` holds."""
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self), _WAIT_S)

    def move(self) -> None:
        """From now on come from another address, as behind a router that has forgotten us."""
        with self._changed:
            self._left.append(self._far)
            self._far = self._onward()
        self._wake[1].send(b"m")

    def close(self) -> None:
        """End both relays."""
        self._wake[1].send(b"q")
        self._thread.join(_WAIT_S)
        assert not self._thread.is_alive()
        for sock in (self._near, self._far, *self._left, *self._wake):
            sock.close()
        self.tcp.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _onward(self) -> socket.socket:
        sock = _roomy(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.connect(self._target)
        return sock

    def _run(self) -> None:
        while True:
            with self._changed:
                far = self._far
            ready, _, _ = select.select([self._near, far, self._wake[0]], [], [])
            if self._wake[0] in ready and self._wake[0].recv(1) == b"q":
                return
            # What was readable may have been an error, which another call received.
            if self._near in ready:
                with contextlib.suppress(OSError):
                    raw, self._client = self._near.recvfrom(65_535)
                    self._pass(raw, up=True)
            if far in ready:
                with contextlib.suppress(OSError):
                    self._pass(far.recv(65_535), up=False)

    def _pass(self, raw: bytes, *, up: bool) -> None:
        if self.blocked.is_set():
            return
        for each in self.fate(raw, up):
            with self._changed, contextlib.suppress(OSError):
                if up:
                    self._far.send(each)
                    self.up += len(each)
                elif self._client is not None:
                    self._near.sendto(each, self._client)
                    self.down += len(each)
                self._changed.notify_all()
