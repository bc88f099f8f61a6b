"""A connection to a server: requests out, many ahead if it pays, and their answers in."""

import contextlib
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from ftpkit import __version__
from ftpkit.errors import (
    CannotConnectError,
    Code,
    ConnectionLostError,
    ProtocolError,
    RefusedError,
    StallTimeoutError,
)
from ftpkit.net.address import Address, Url
from ftpkit.net.frame_stream import FrameStream
from ftpkit.net.local import is_local_connection
from ftpkit.net.token_bucket import TokenBucket
from ftpkit.protocol.digest import ALGORITHMS, DEFAULT, split_digest
from ftpkit.protocol.messages import (
    PROTOCOL_VERSION,
    Auth,
    AuthReply,
    Hello,
    HelloReply,
    Pending,
    Reply,
    Request,
)
from ftpkit.protocol.state import ClientProtocol, Response

if TYPE_CHECKING:
    from ftpkit.net.trust import ConfirmPin

R = TypeVar("R", bound=Reply)

SendBody = Callable[[bytes], None]
"""Sends a header, which it is given, and the body behind it."""

OnSocket = Callable[[socket.socket], None]

UrlProvider = Callable[[], Url]
"""Says where the server is, and how it is entered; asked before each connection."""


class Connection:
    """One conversation, opened with ``hello``, and with ``auth`` where there is a token.

    Raises CannotConnectError where nobody answers, or somebody else, and RefusedError
    where there is no good token. ``on_socket`` is given the socket before it connects, so that
    another thread may break it. ``confirm_pin`` is asked about a key that is not known otherwise.
    """

    def __init__(
        self,
        url_provider: UrlProvider,
        *,
        timeout_s: float,
        limiter: TokenBucket | None,
        on_socket: OnSocket | None = None,
        confirm_pin: "ConfirmPin | None" = None,
    ) -> None:
        self._url_provider, self.timeout_s = url_provider, timeout_s
        self.algorithm = DEFAULT
        self.features: list[str] = []
        self.holder: AuthReply | None = None
        """Whose token was shown, and what it allows; None where the server asks for none."""
        self.url = url_provider()
        try:
            self._open(limiter, on_socket, confirm_pin, tls=False)
        except RefusedError as refusal:
            tls_required = refusal.code == Code.TLS_REQUIRED
            if not self._unknown or not (tls_required or refusal.code == Code.AUTH_REQUIRED):
                raise
            # It runs here, and may have told of itself only after it was asked for.
            url = url_provider()
            if not tls_required and url == self.url:
                raise
            self.url = url
            self._open(limiter, on_socket, confirm_pin, tls=tls_required)

    @property
    def address(self) -> Address:
        """Where the server is."""
        return self.url.address

    def allows(self, permission: str) -> bool:
        """Whether the server allows us that: "read", "write", "delete" or "admin"."""
        return self.holder is None or permission in self.holder.can

    def _open(
        self,
        limiter: TokenBucket | None,
        on_socket: OnSocket | None,
        confirm_pin: "ConfirmPin | None",
        *,
        tls: bool,
    ) -> None:
        """Connect and greet; with ``tls`` the server is known to demand that."""
        sock = _connected(self.address, self.timeout_s, on_socket)
        self.sock = sock
        """The connection beneath ``stream``, for those who tune and measure it."""
        self.stream = FrameStream(sock, stall_timeout_s=self.timeout_s, limiter=limiter)
        self._protocol = ClientProtocol()
        try:
            # Of a server on this machine we need not know anything: nobody is in between.
            self._unknown = not tls and self.url == Url(self.address) and is_local_connection(sock)
            if not self.url.plain and not self._unknown:
                self._start_tls(confirm_pin)
            self._greet()
        except BaseException:
            self.close()
            raise

    def _start_tls(self, confirm_pin: "ConfirmPin | None") -> None:
        # Here, because it brings along what a conversation in plaintext has no use for.
        from ftpkit.net.trust import connect

        try:
            connect(self.stream, self.address.host, self.url.pin, confirm_pin, self.timeout_s)
        except CannotConnectError:
            raise
        except ConnectionLostError as error:
            raise CannotConnectError(f"cannot connect to {self.address}: {error}") from None

    def _greet(self) -> None:
        hello = Hello(
            version=PROTOCOL_VERSION, agent=f"ftpkit/{__version__}", digests=list(ALGORITHMS)
        )
        token = self.url.token
        try:
            self.send(hello)
            if token is not None:
                # Not only when the server says that it wants one: that saves a round trip.
                self.send(Auth(token=token))
            reply = self._receive_reply(HelloReply)
            if reply.digest not in ALGORITHMS:
                raise ProtocolError(f"the server picked a digest {reply.digest!a}")
            if reply.auth:
                self.holder = self._authenticate()
            elif token is not None:
                self.receive()
        except ProtocolError:
            raise CannotConnectError(
                f"{self.address} is no ftpkit server", permanent=True
            ) from None
        except StallTimeoutError:
            # Perhaps it waits for a line's end that ours does not have: HTTP does.
            raise CannotConnectError(
                f"{self.address} does not answer; is it an ftpkit server?"
            ) from None
        except ConnectionLostError as error:
            raise CannotConnectError(f"cannot connect to {self.address}: {error}") from None
        self.algorithm, self.features = reply.digest, reply.features

    def _authenticate(self) -> AuthReply:
        """Return what the server says to the token that was sent to it."""
        if self.url.token is None:
            raise RefusedError(
                Code.AUTH_REQUIRED,
                f"{self.address} wants a token: ftpkit login LINK, with a link from who runs it",
            )
        try:
            return self._receive_reply(AuthReply)
        except RefusedError as refusal:
            if refusal.code != Code.AUTH_FAILED:
                raise
            raise RefusedError(
                Code.AUTH_FAILED, f"{self.address} does not know this token, or no longer"
            ) from None

    def _receive_reply(self, expected: type[R]) -> R:
        reply = self.receive().reply
        if isinstance(reply, RefusedError):
            raise reply
        if not isinstance(reply, expected):
            raise ProtocolError("the reply does not fit the request")
        return reply

    def request(self, request: Request, expected: type[R]) -> R:
        """Send a request without a body and return its reply; wait where it is pending."""
        while True:
            self.send(request)
            reply = self.receive().reply
            if isinstance(reply, RefusedError):
                raise reply
            if isinstance(reply, expected):
                return reply
            if not isinstance(reply, Pending):
                raise ProtocolError("the reply does not fit the request")

    def send(self, request: Request, send: SendBody | None = None) -> None:
        """Send a request; ``send`` sends its header and body where it has one."""
        header = self._protocol.send_request(request)
        try:
            (send or self.stream.send)(header)
        except ConnectionLostError:
            self._raise_refusal()
            raise

    def receive(self) -> Response:
        """Return the next answer; the body of its reply must be read from ``stream`` next."""
        return self._protocol.receive(self.stream.read_header())

    def poll(self) -> bool:
        """Read a reply without a body if one has arrived; return whether one had.

        Raises ConnectionLostError if the server closed the connection.
        """
        if not self.stream.wait_readable(0):
            return False
        self.receive()
        return True

    def pipeline(
        self, requests: Iterable[tuple[Request, SendBody | None]], window: int
    ) -> Iterator[Response]:
        """Send ``requests``, up to ``window`` ahead of their answers; yield these in order."""
        for request, send in requests:
            self.send(request, send)
            while self._protocol.unanswered >= window:
                yield self.receive()
        while self._protocol.unanswered:
            yield self.receive()

    def drain(self) -> None:
        """Read and drop the answers that are still under way."""
        while self._protocol.unanswered:
            self.receive()
            self.stream.skip_body()

    def _raise_refusal(self) -> None:
        """If the server said why it hung up, raise that instead of the broken connection."""
        with contextlib.suppress(ConnectionLostError, ProtocolError):
            while True:
                reply = self.receive().reply
                if isinstance(reply, RefusedError) and self._protocol.closed:
                    raise reply
                self.stream.skip_body()

    @property
    def usable(self) -> bool:
        """Whether another request may follow: nothing is under way and nobody has hung up."""
        if self._protocol.unanswered or self._protocol.closed or self.stream.left:
            return False
        if self.sock.fileno() < 0:
            return False
        return not self.stream.wait_readable(0)

    def check_algorithm(self, digest: str) -> str:
        """Return ``digest`` if it is in the conversation's algorithm, else raise ProtocolError."""
        if split_digest(digest)[0] != self.algorithm:
            raise ProtocolError("the reply has another digest than was agreed on")
        return digest

    def reconnect(self) -> "Connection":
        """Hang up, and return a new conversation with the same server."""
        self.close()
        return Connection(self._url_provider, timeout_s=self.timeout_s, limiter=None)

    def close(self) -> None:
        """Hang up; safe to call twice."""
        self.stream.close()


def _connected(address: Address, timeout_s: float, on_socket: OnSocket | None) -> socket.socket:
    try:
        return _first_connected(address, timeout_s, on_socket)
    except OSError as error:
        reason = error.strerror or str(error)
        unknown = isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN
        raise CannotConnectError(
            f"cannot connect to {address}: {reason}", permanent=unknown
        ) from None
    except UnicodeError:  # what IDNA says of an empty part, or one of over 63 letters
        raise CannotConnectError(
            f"cannot connect to {address}: no such host name is possible", permanent=True
        ) from None


def _first_connected(
    address: Address, timeout_s: float, on_socket: OnSocket | None
) -> socket.socket:
    """As ``socket.create_connection``, which shows nobody what it waits for."""
    failure = OSError("the host has no address")
    for family, kind, protocol, _, to in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(timeout_s)
            if on_socket is not None:
                on_socket(sock)
            sock.connect(to)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure
