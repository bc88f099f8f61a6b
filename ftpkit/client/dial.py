"""Connects to the first address of a host that answers (RFC 8305, "Happy Eyeballs")."""

import contextlib
import errno
import os
import selectors
import socket
import time
from collections.abc import Callable, Iterable
from itertools import chain, zip_longest
from typing import Any, Final

from ftpkit.net.address import Address

OnSocket = Callable[[socket.socket], None]
Target = tuple[int, int, int, Any]
"""Family, type, protocol and socket address."""

# RFC 8305, section 5: the recommended Connection Attempt Delay.
_STAGGER_S: Final = 0.25
_IN_PROGRESS: Final = {0, errno.EINPROGRESS, errno.EWOULDBLOCK}


class Dialer:
    """Connects to hosts, and remembers which of their addresses answered.

    An attempt begins each 250 ms, or as soon as the last one failed, with IPv6 and IPv4 in turn;
    the first connection is used. The address that answered last comes first.
    """

    def __init__(self) -> None:
        self._answered: dict[Address, Any] = {}

    def connect(
        self, address: Address, timeout_s: float, on_socket: OnSocket | None = None
    ) -> socket.socket:
        """Return a connected socket with the timeout; OSError if no address answers within it.

        ``on_socket`` is called again and again with a socket that is used; it may raise.
        """
        found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
        targets = interleaved((family, kind, proto, to) for family, kind, proto, _, to in found)
        last = self._answered.get(address)
        targets.sort(key=lambda target: target[3] != last)
        with _Attempts(timeout_s, on_socket or (lambda sock: None)) as attempts:
            sock = attempts.first(targets)
            self._answered[address] = attempts.answered
        return sock


def interleaved(targets: Iterable[Target]) -> list[Target]:
    """Return the targets in their order, but with the families in turn (RFC 8305, section 4)."""
    families: dict[int, list[Target]] = {}
    for target in targets:
        families.setdefault(target[0], []).append(target)
    return [each for each in chain.from_iterable(zip_longest(*families.values())) if each]


class _Attempts:
    def __init__(self, timeout_s: float, on_socket: OnSocket) -> None:
        self._timeout_s, self._on_socket = timeout_s, on_socket
        self._selector = selectors.DefaultSelector()
        self._ends: dict[socket.socket, float] = {}
        self._failure = OSError("the host has no address")
        self.answered: Any = None

    def first(self, targets: list[Target]) -> socket.socket:
        """Return the first socket that connects; raise the last error if none does."""
        for target in targets:
            self._begin(target)
            until = time.monotonic() + _STAGGER_S
            while self._ends and time.monotonic() < until:
                before = len(self._ends)
                if sock := self._wait(until):
                    return sock
                if len(self._ends) < before:
                    break  # it failed: begin the next at once
        while self._ends:
            if sock := self._wait(time.monotonic() + _STAGGER_S):
                return sock
        raise self._failure

    def _begin(self, target: Target) -> None:
        family, kind, proto, to = target
        try:
            sock = socket.socket(family, kind, proto)
        except OSError as error:  # no such family here
            self._failure = error
            return
        self._ends[sock] = time.monotonic() + self._timeout_s
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_WRITE, to)
        self._on_socket(sock)
        number = sock.connect_ex(to)
        if number not in _IN_PROGRESS:
            self._fail(sock, OSError(number, os.strerror(number)))

    def _wait(self, until: float) -> socket.socket | None:
        """Wait until an attempt ends, or ``until``; return a socket that has connected."""
        # Called before each wait, so that a cancelled transfer ends.
        self._on_socket(next(iter(self._ends)))
        wait_s = min(until, *self._ends.values()) - time.monotonic()
        for key, _ in self._selector.select(max(0.0, wait_s)):
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number == 0:
                self._on_socket(sock)
                self._selector.unregister(sock)
                del self._ends[sock]
                self.answered = key.data
                sock.settimeout(self._timeout_s)
                return sock
            self._fail(sock, OSError(number, os.strerror(number)))
        for sock, end in list(self._ends.items()):
            if time.monotonic() >= end:
                self._fail(sock, TimeoutError("timed out"))
        return None

    def _fail(self, sock: socket.socket, error: OSError) -> None:
        self._failure = error
        self._selector.unregister(sock)
        del self._ends[sock]
        sock.close()

    def __enter__(self) -> "_Attempts":
        return self

    def __exit__(self, *exc: object) -> None:
        self._selector.close()
        for sock in self._ends:
            with contextlib.suppress(OSError):
                sock.close()
