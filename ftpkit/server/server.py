"""The server of one process: listens, and serves each connection in a thread."""

import contextlib
import logging
import os
import socket
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

from ftpkit.net.address import DEFAULT_PORT, Address
from ftpkit.net.tls_identity import Identity
from ftpkit.protocol.status import ServerStatus
from ftpkit.server.handler import ConnectionHandler, open_store, sweep_hourly
from ftpkit.server.limits import DEFAULT_LIMITS, Limits
from ftpkit.server.listener import Listeners, peer_name
from ftpkit.server.sockets import ListeningSocket
from ftpkit.server.udp.listener import UdpListener
from ftpkit.storage.api import Store
from ftpkit.tokens import Tokens

log = logging.getLogger("ftpkit.server")


class Server:
    """Serves a store over the ftpkit protocol, in background threads.

    ``store`` is a directory, created if missing, or a ``Store``, which the server does not close.
    If not ``durable``, uploads to a directory are acknowledged before they are on stable storage.

    ``host`` is an address or a name to listen on; None means the loopback interface, "*" every
    interface. ``port`` 0 lets the system choose a port, the same for TCP and, with ``datagrams``,
    UDP. ``sockets`` that listen already replace both at the first start.

    With an ``identity`` the server requires TLS, unless ``plain`` also accepts unencrypted
    connections. Without ``tokens`` clients need no token and may do everything.

    Use it as a context manager, or call ``start`` and ``stop``.
    """

    def __init__(
        self,
        store: Store | str | os.PathLike[str],
        *,
        host: str | None = None,
        port: int = DEFAULT_PORT,
        identity: Identity | None = None,
        plain: bool = False,
        tokens: Tokens | None = None,
        limits: Limits = DEFAULT_LIMITS,
        durable: bool = True,
        datagrams: bool = True,
        sockets: Sequence[ListeningSocket] = (),
    ) -> None:
        self._store, self._durable = store, durable
        self.identity, self._plain, self._tokens = identity, plain, tokens
        self._listeners = Listeners(
            host, port, limits, self._handle, datagrams=datagrams, sockets=sockets
        )
        self.connection_limiter = self._listeners.connection_limiter
        self._udp_listeners: list[UdpListener] = []
        self._stack = contextlib.ExitStack()
        self.handler: ConnectionHandler | None = None

    @property
    def addresses(self) -> list[Address]:
        """The addresses that the server listens on; empty while it does not run."""
        return self._listeners.addresses

    @property
    def address(self) -> Address:
        """The first of ``addresses``; RuntimeError while the server does not run."""
        return self._listeners.address

    def start(self) -> None:
        """Open the store, listen, and serve in the background; raises OSError."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._listeners.close)
            store = stack.enter_context(open_store(self._store, durable=self._durable))
            ports = self._listeners.open()
            self._stack = stack.pop_all()
        handler = self.handler = ConnectionHandler(
            store,
            self.connection_limiter,
            self._listeners.limits,
            tokens=self._tokens,
            identity=self.identity,
            plain=self._plain,
        )
        self._stack.callback(handler.close)
        self._udp_listeners = [UdpListener(port) for port in ports]
        for udp_listener in self._udp_listeners:
            self._stack.callback(udp_listener.close)
        self._listeners.start_thread("ftpkit-sweep", partial(sweep_hourly, store, self._listeners))
        self._listeners.accept()
        self._listeners.log_start()

    def stop(self, grace_s: float = 30.0) -> None:
        """Stop accepting, wait up to ``grace_s`` for running transfers, then interrupt the rest.

        Interrupted uploads are checkpointed and can be resumed.
        """
        self._listeners.close()
        self._listeners.join()
        if self.handler is not None:
            self.handler.stop(grace_s)
            self.handler = None
        self._stack.close()
        log.info("stopped", extra={"fields": {}})

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def change(self, limits: Limits, identity: Identity | None = None) -> None:
        """Apply other limits: timeouts to new connections, the rest to all at once.

        An ``identity`` replaces the present one for new connections.
        """
        self._listeners.limits = limits
        self.identity = identity or self.identity
        if self.handler is not None:
            self.handler.change(limits, identity)

    def status(self) -> ServerStatus:
        """Return what the server does now; WIRE.md section 6 lists the keys.

        RuntimeError: the server does not run.
        """
        if self.handler is None:
            raise RuntimeError("the server was not started")
        return self.handler.status()

    def _handle(self, sock: socket.socket, address: tuple[Any, ...], index: int) -> None:
        if self.handler is not None:
            udp_listener = self._udp_listeners[index] if self._udp_listeners else None
            self.handler.handle(sock, peer_name(address), udp_listener)
