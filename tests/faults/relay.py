"""A TCP relay that does to a connection, at an exact byte, what networks do to them."""

import contextlib
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from ftpkit.net.address import Address

WAIT_S: Final = 60.0
_CHUNK: Final = 256 * 1024
_RESET: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Cut:
    """End the connection as soon as ``at`` bytes have passed; they arrive."""

    at: int


@dataclass(frozen=True, slots=True)
class Swallow:
    """Drop what follows ``at`` bytes, and end the connection once there was something."""

    at: int


@dataclass(frozen=True, slots=True)
class Freeze:
    """Let nothing more through, not even the end, and keep everything open."""

    at: int


@dataclass(frozen=True, slots=True)
class Flip:
    """Turn over ``bit`` of the byte behind the first ``at`` bytes."""

    at: int
    bit: int = 0


@dataclass(frozen=True, slots=True)
class Rubbish:
    """Say ``data`` in the sender's place, and end the connection."""

    at: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Hold:
    """Let nothing more through until ``until`` is set."""

    at: int
    until: threading.Event


Fault = Cut | Swallow | Freeze | Flip | Rubbish | Hold


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens to one connection, by direction; ``refuse`` resets it at once."""

    up: tuple[Fault, ...] = ()
    down: tuple[Fault, ...] = ()
    refuse: bool = False


class Relay:
    """Forwards connections to ``target``; each new one gets the next of the expected plans.

    ``up`` and ``down`` count the bytes that were forwarded to and from the
    server, ``accepted`` the connections.
    """

    def __init__(self, target: Address) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address(*self._listener.getsockname())
        self._changed = threading.Condition()
        self._plans: deque[Plan] = deque()
        self._closed = threading.Event()
        self._threads: set[threading.Thread] = set()
        self._pairs: set[_Pair] = set()
        self.up = self.down = self.accepted = 0
        self._most: int | None = None
        self._start(self._accept)

    def expect(self, *plans: Plan) -> None:
        """Let the next connections have these plans, and those behind them none; count anew."""
        with self._changed:
            self._plans = deque(plans)
            self.up = self.down = self.accepted = 0

    def limit(self, most: int | None) -> None:
        """Let no more through than about ``most`` bytes in all, until there is another limit."""
        with self._changed:
            self._most = most
            self._changed.notify_all()

    def wait(self, condition: Callable[["Relay"], bool]) -> None:
        """Wait until ``condition`` holds, which may also depend on more than the relay."""
        deadline = time.monotonic() + WAIT_S
        with self._changed:
            while not self._changed.wait_for(lambda: condition(self), 0.1):
                assert time.monotonic() < deadline

    def cut(self) -> None:
        """End every connection now."""
        with self._changed:
            pairs = list(self._pairs)
        for pair in pairs:
            pair.abort()

    def close(self) -> None:
        """End everything, and wait until it has."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._changed:
            pairs = list(self._pairs)
            self._changed.notify_all()
        for pair in pairs:
            pair.abort()
        while self._threads:
            with self._changed:
                threads = list(self._threads)
            for thread in threads:
                thread.join(WAIT_S)
                assert not thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _start(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            finally:
                with self._changed:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=run, name="relay", daemon=True)
        with self._changed:
            self._threads.add(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self._closed.is_set():
                client, _ = self._listener.accept()
                with self._changed:
                    plan = self._plans.popleft() if self._plans else Plan()
                    self.accepted += 1
                    self._changed.notify_all()
                self._connect(client, plan)

    def _connect(self, client: socket.socket, plan: Plan) -> None:
        try:
            if plan.refuse:
                raise ConnectionRefusedError
            server = socket.create_connection(self._target)
        except OSError:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            client.close()
            return
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = _Pair(client, server)
        with self._changed:
            self._pairs.add(pair)
        if self._closed.is_set():
            pair.abort()
        self._start(lambda: self._pump(pair, client, server, plan.up, self._count_up))
        self._start(lambda: self._pump(pair, server, client, plan.down, self._count_down))

    def _count_up(self, count: int) -> None:
        with self._changed:
            self.up += count
            self._changed.notify_all()

    def _count_down(self, count: int) -> None:
        with self._changed:
            self.down += count
            self._changed.notify_all()

    def _wait_while_limited(self) -> None:
        """Wait while as much as may be has been forwarded."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._most is None or self.up + self.down < self._most or self._closed.is_set()
                )
            )

    def _pump(
        self,
        pair: "_Pair",
        source: socket.socket,
        sink: socket.socket,
        faults: tuple[Fault, ...],
        count: Callable[[int], None],
    ) -> None:
        waiting, passed = deque(sorted(faults, key=lambda fault: fault.at)), 0
        try:
            while True:
                room, flip = _CHUNK, 0
                if waiting:
                    room = min(room, waiting[0].at - passed)
                if room == 0:
                    fault = waiting.popleft()
                    if not self._strike(fault, pair, source, sink):
                        break
                    if not isinstance(fault, Flip):
                        continue
                    room, flip = 1, 1 << fault.bit
                data = source.recv(room)
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    break
                # Counted first: a peer that has read the bytes finds them in the count.
                count(len(data))
                sink.sendall(bytes([data[0] ^ flip]) if flip else data)
                passed += len(data)
                self._wait_while_limited()
        except OSError:
            pair.cut(source)
        pair.drain(source)
        if pair.ended():
            with self._changed:
                self._pairs.discard(pair)

    def _strike(
        self, fault: Fault, pair: "_Pair", source: socket.socket, sink: socket.socket
    ) -> bool:
        """Do what ``fault`` says; return whether the direction goes on."""
        match fault:
            case Cut():
                pair.cut(source)
                return False
            case Swallow():
                source.recv(1)
                pair.cut(source)
                return False
            case Freeze():
                self._closed.wait()
                return False
            case Rubbish(_, data):
                sink.sendall(data)
                pair.cut(source)
                return False
            case Hold(_, until):
                assert until.wait(WAIT_S)
                return True
            case Flip():
                return True


class _Pair:
    """The two sockets of one connection, closed when both directions have ended."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self._client, self._server = client, server
        self._lock = threading.Lock()
        self._running = 2
        self._cut: socket.socket | None = None

    def cut(self, source: socket.socket) -> None:
        """End both directions, in the middle of what ``source`` sends; what was forwarded arrives.

        Whoever it was forwarded to may go on talking: answered with a reset, it would
        not read what has arrived. So the server is always listened to, and the client
        where the server was cut short; else the client's next bytes are met with a reset.
        """
        with self._lock:
            self._cut = self._cut or source
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_WR if self._cut is self._server else socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_WR)

    def drain(self, source: socket.socket) -> None:
        """Read and discard until the peer closes."""
        if self._server in (source, self._cut):
            with contextlib.suppress(OSError):
                while source.recv(_CHUNK):
                    pass

    def abort(self) -> None:
        """End both directions, whatever is under way."""
        for sock in (self._client, self._server):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def ended(self) -> bool:
        """Note that one direction has ended; return whether that was the last."""
        with self._lock:
            self._running -= 1
            if self._running:
                return False
        for sock in (self._client, self._server):
            sock.close()
        return True
