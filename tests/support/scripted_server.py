"""A scripted server for TLS, hello, auth and ping."""

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

from ftpkit.errors import Code, ConnectionLostError, ProtocolError, RefusedError
from ftpkit.net.address import Address, Url
from ftpkit.net.frame_stream import FrameStream
from ftpkit.net.tls_identity import Identity
from ftpkit.protocol.messages import Auth, AuthReply, Hello, HelloReply, OkReply, Reply, Request
from ftpkit.protocol.state import ServerProtocol
from tests.support.hostile import listening
from tests.support.raw import TIMEOUT_S

USER = "ada"
TLS = b"\x16"


@dataclass
class Guard:
    """Requires TLS if it has an ``identity``, and ``token`` if there is one."""

    identity: Identity | None = None
    token: str | None = None
    plain: bool = False
    address: Address = field(default_factory=lambda: Address("127.0.0.1", 0))
    firsts: list[bytes] = field(default_factory=list)
    """The first byte of each connection."""
    heard: list[str] = field(default_factory=list)
    """The operation of each request that arrived."""

    @property
    def url(self) -> Url:
        """The login URL."""
        pin = None if self.identity is None else self.identity.pin
        return Url(self.address, pin, self.token, plain=self.identity is None)

    def serve(self, sock: socket.socket) -> None:
        """Serve one connection."""
        stream = FrameStream(sock, stall_timeout_s=TIMEOUT_S)
        with contextlib.suppress(ConnectionLostError, ProtocolError):
            protocol = ServerProtocol(must_authenticate=self.token is not None)
            self.firsts.append(stream.peek(TIMEOUT_S))
            if self.identity is not None and self.firsts[-1] == TLS:
                stream.start_tls(self.identity.context(), TIMEOUT_S)
            elif self.identity is not None and not self.plain:
                protocol.receive(stream.read_header())
                refusal = RefusedError(Code.TLS_REQUIRED, "TLS is required")
                stream.send(protocol.refuse(refusal, close=True))
                return
            while not protocol.closed:
                header = stream.read_header()
                try:
                    request = protocol.receive(header)
                    self.heard.append(str(request.op))
                    stream.send(protocol.accept(self._reply(request, protocol)))
                except RefusedError as refusal:
                    stream.send(protocol.refuse(refusal))

    def _reply(self, request: Request, protocol: ServerProtocol) -> Reply:
        match request:
            case Hello():
                return HelloReply(
                    version=1, agent="guard/1", digest="blake3", auth=self.token is not None,
                    features=[], limits={},
                )  # fmt: skip
            case Auth(token=token) if self.token is None:
                raise RefusedError(Code.UNSUPPORTED, "no token is required")
            case Auth(token=token) if token == self.token:
                protocol.mark_authenticated()
                return AuthReply(user=USER, can=["write", "read"])
            case Auth():
                raise RefusedError(Code.AUTH_FAILED, "no")
        return OkReply()


@contextlib.contextmanager
def guarded(guard: Guard) -> Iterator[Guard]:
    """Run ``guard``, which serves one connection at a time."""
    with listening(guard.serve) as address:
        guard.address = Address(*address)
        yield guard
