"""The server: listening sockets, a bounded number of sessions, and a clean stop."""

import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, Self

from ftpkit.net.address import DEFAULT_PORT, Address
from ftpkit.net.tls_identity import Identity
from ftpkit.protocol.status import ServerStatus
from ftpkit.scheduling.policies import DEFAULT_POLICY
from ftpkit.server.connection_limit import ConnectionLimiter
from ftpkit.server.handler import DAY_S, ConnectionHandler, Limits, sweep_hourly
from ftpkit.server.listener import Listener, peer_name
from ftpkit.server.sockets import ListeningSocket, bind
from ftpkit.server.udp.listener import UdpListener
from ftpkit.storage import DirectoryStore
from ftpkit.storage.directory.filesystem import FileSystem
from ftpkit.tokens import Tokens

log = logging.getLogger("ftpkit.server")


class Server:
    """Serves the directory ``root`` over the ftpkit protocol, in background threads.

    ``host`` is an address or a name to listen on; None means this machine
    alone, "*" every interface; ``port`` 0 lets the system pick one, the same for
    TCP and, with ``datagrams``, UDP. At most ``slots`` transfers move at a time, and in each
    direction ``bytes_per_s`` bytes a second; which of them is next, ``schedule`` says.
    With an ``identity`` it speaks TLS, and nothing else unless it is ``plain``, too; without
    ``tokens`` everybody is let in.
    It listens on ``sockets`` once, in place of ``host`` and ``port``, if there are any.
    Use it as a context manager, or call ``start`` and ``stop``.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        host: str | None = None,
        port: int = DEFAULT_PORT,
        identity: Identity | None = None,
        plain: bool = False,
        tokens: Tokens | None = None,
        max_connections: int = 1024,
        max_connections_per_address: int = 1000,
        idle_timeout_s: float = 300.0,
        stall_timeout_s: float = 30.0,
        expire_uploads_s: float = 7 * DAY_S,
        durable: bool = True,
        datagrams: bool = True,
        schedule: str = DEFAULT_POLICY,
        slots: int | None = None,
        bytes_per_s: float | None = None,
        sockets: Sequence[ListeningSocket] = (),
    ) -> None:
        self._root, self._host, self._port = root, host, port
        self._sockets = sockets
        self._identity, self._plain, self._tokens = identity, plain, tokens
        self._durable, self._datagrams = durable, datagrams
        self._limits = Limits(
            max_connections=max_connections,
            max_connections_per_address=max_connections_per_address,
            idle_timeout_s=idle_timeout_s,
            stall_timeout_s=stall_timeout_s,
            expire_uploads_s=expire_uploads_s,
            schedule=schedule,
            slots=slots,
            bytes_per_s=bytes_per_s,
        )
        self.connection_limiter = ConnectionLimiter(max_connections, max_connections_per_address)
        self._listeners: list[Listener] = []
        self._threads: list[threading.Thread] = []
        self._doors: list[UdpListener] = []
        self.service: ConnectionHandler | None = None
        self._stopping = threading.Event()

    @property
    def addresses(self) -> list[Address]:
        """Where the server listens."""
        return [listener.address for listener in self._listeners]

    @property
    def address(self) -> Address:
        """The first address on which the server listens."""
        return self.addresses[0]

    @property
    def identity(self) -> Identity | None:
        """Who the server is, to those that connect from now on."""
        return self._identity

    def start(self) -> None:
        """Listen, open the root, and serve; OSError says why that is impossible."""
        self._stopping.clear()
        sockets = self._sockets or bind(self._host, self._port, datagrams=self._datagrams)
        self._sockets = ()
        try:
            store = DirectoryStore(self._root, FileSystem(durable=self._durable))
        except BaseException:
            for each in sockets:
                each.close()
            raise
        self._listeners = [Listener(self, at, each) for at, each in enumerate(sockets)]
        self.service = ConnectionHandler(
            store,
            self.connection_limiter,
            self._limits,
            tokens=self._tokens,
            identity=self._identity,
            plain=self._plain,
        )
        self._doors = [UdpListener(listener.port) for listener in self._listeners if listener.port]
        self._run("ftpkit-sweep", lambda: sweep_hourly(store, lambda: self._limits, self._stopping))
        for listener in self._listeners:
            self._run("ftpkit-accept", listener.serve_forever)
        for udp_listener in self._doors:
            udp_listener.start()
        addresses = [str(address) for address in self.addresses]
        log.info("listening", extra={"fields": {"addresses": addresses}})

    def stop(self, grace_s: float = 30.0) -> None:
        """Accept nobody, let running transfers go on for ``grace_s``, then end what is left.

        What is unfinished then is checkpointed, to be continued another time.
        """
        self._stopping.set()
        for listener in self._listeners:
            listener.shutdown()
            listener.server_close()
        for thread in self._threads:
            thread.join()
        self._listeners, self._threads = [], []
        if self.service is not None:
            self.service.stop(grace_s)
        # Running transfers may have needed them until now.
        for udp_listener in self._doors:
            udp_listener.close()
        self._doors = []
        if self.service is not None:
            self.service.close()
            self.service = None
        log.info("stopped", extra={"fields": {}})

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def change(self, limits: Limits, identity: Identity | None = None) -> None:
        """Let other limits hold: timeouts for what comes from now on, the rest for all.

        With another ``identity``, who connects from now on finds that.
        """
        self._limits = limits
        self._identity = identity or self._identity
        self.connection_limiter.change(limits.max_connections, limits.max_connections_per_address)
        if self.service is not None:
            self.service.change(limits)
            self.service.identity = self._identity

    def serve(self, sock: socket.socket, address: tuple[Any, ...], at: int) -> None:
        """Serve one connection that was admitted, in this thread, until it ends."""
        if self.service is not None:
            udp_listener = self._doors[at] if self._doors else None
            self.service.serve(sock, peer_name(address), udp_listener)

    def status(self) -> ServerStatus:
        """Tell what the server does now; WIRE.md, section 6, has the keys."""
        if self.service is None:
            raise RuntimeError("the server was not started")
        return self.service.status()

    def pause(self, seconds: float) -> None:
        """Do nothing for a while, or until the server is to stop."""
        self._stopping.wait(seconds)

    def _run(self, name: str, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)
