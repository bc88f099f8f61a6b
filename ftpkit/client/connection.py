"""One connection to a server: connect, authenticate, send requests and receive replies."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, TypeVar

from ftpkit import __version__
from ftpkit.client.dial import Dialer, OnSocket
from ftpkit.errors import (
    CannotConnectError,
    Code,
    ConnectionLostError,
    EndOfStreamError,
    ProtocolError,
    RefusedError,
    StallTimeoutError,
)
from ftpkit.net.address import Address, Url
from ftpkit.net.frame_stream import FrameStream
from ftpkit.net.local import is_local_connection
from ftpkit.net.token_bucket import TokenBucket
from ftpkit.protocol import messages as m
from ftpkit.protocol.digest import ALGORITHMS, DEFAULT, split_digest
from ftpkit.protocol.state import ClientProtocol, Response

if TYPE_CHECKING:
    from ftpkit.net.trust import ConfirmPin

# Between requests for a result that is pending: each interval is twice as long as the last.
_FIRST_INTERVAL_S: Final = 0.05
_MAX_INTERVAL_S: Final = 1.0

R = TypeVar("R", bound=m.Reply)

SendBody = Callable[[bytes], None]
"""Called with an encoded header; sends it, and the body behind it."""

UrlProvider = Callable[[], Url]
"""Returns the server's address, pin and token; called before each connection."""


class Connection:
    """An open connection, after ``hello`` and, if there is a token, ``auth`` (WIRE.md section 3).

    ``on_socket`` is called with each socket, also while it connects, so that another thread can
    interrupt it. ``confirm_pin`` is called with the pin of a key that is not trusted otherwise.

    Raises CannotConnectError if no ftpkit server answers, UntrustedError if its key is not the
    right one, and RefusedError if it does not accept the token.
    """

    def __init__(
        self,
        url_provider: UrlProvider,
        *,
        timeout_s: float,
        limiter: TokenBucket | None,
        on_socket: OnSocket | None = None,
        confirm_pin: "ConfirmPin | None" = None,
        dialer: Dialer | None = None,
    ) -> None:
        self._dialer = dialer or Dialer()
        self.timeout_s, self._limiter = timeout_s, limiter
        self._on_socket, self._confirm_pin = on_socket, confirm_pin
        self.algorithm = DEFAULT
        self.features: list[str] = []
        self.auth: m.AuthReply | None = None
        """The user and the permissions of the token; None if the server requires no token."""
        self.url = url_provider()
        try:
            self._open(tls=False)
        except RefusedError as refusal:
            tls_required = refusal.code == Code.TLS_REQUIRED
            missing = tls_required or refusal.code == Code.AUTH_REQUIRED
            if not (missing and self._local_plaintext):
                raise
            # A local server may have announced its URL only after the first look-up.
            url = url_provider()
            if not tls_required and url == self.url:
                raise
            self.url = url
            self._open(tls=tls_required)

    @property
    def address(self) -> Address:
        return self.url.address

    def allows(self, permission: str) -> bool:
        """Whether the token has a permission: "read", "write", "delete" or "admin"."""
        return self.auth is None or permission in self.auth.can

    def _open(self, *, tls: bool) -> None:
        """Connect and greet; ``tls`` forbids plaintext to a local server."""
        with _connect_errors(self.address):
            self.sock = self._dialer.connect(self.address, self.timeout_s, self._on_socket)
            """The socket below ``stream``, to tune and to measure it."""
            self.stream = FrameStream(
                self.sock, stall_timeout_s=self.timeout_s, limiter=self._limiter
            )
            self._protocol = ClientProtocol()
            try:
                # On this computer nothing can intercept the connection: plaintext is safe.
                unknown = not tls and self.url == Url(self.address)
                self._local_plaintext = unknown and is_local_connection(self.sock)
                if not self.url.plain and not self._local_plaintext:
                    # Imported here, because a plaintext connection needs none of it.
                    from ftpkit.net import trust

                    host, pin = self.address.host, self.url.pin
                    trust.connect(self.stream, host, pin, self._confirm_pin, self.timeout_s)
                self._greet()
            except BaseException:
                self.close()
                raise

    def _greet(self) -> None:
        hello = m.Hello(
            version=m.PROTOCOL_VERSION, agent=f"ftpkit/{__version__}", digests=list(ALGORITHMS)
        )
        token = self.url.token
        self.send(hello)
        if token is not None:
            # Sent before the server asks for it: that saves a round trip.
            self.send(m.Auth(token=token))
        reply = self._receive(m.HelloReply)
        if reply.digest not in ALGORITHMS:
            raise ProtocolError(f"unknown digest algorithm {reply.digest!a}")
        if reply.auth:
            self.auth = self._authenticate()
        elif token is not None:
            self.receive()
        self.algorithm, self.features = reply.digest, reply.features

    def _authenticate(self) -> m.AuthReply:
        if self.url.token is None:
            raise RefusedError(
                Code.AUTH_REQUIRED,
                f"{self.address} requires a token: log in with the URL that the server printed"
                " (ftpkit login URL)",
            )
        try:
            return self._receive(m.AuthReply)
        except RefusedError as refusal:
            if refusal.code != Code.AUTH_FAILED:
                raise
            raise RefusedError(
                Code.AUTH_FAILED,
                f"{self.address} rejected the token: it is unknown, expired or revoked."
                " Log in with a new URL (ftpkit login URL)",
            ) from None

    def _receive(self, expected: type[R]) -> R:
        return expect(self.receive().reply, expected)

    def request(self, request: m.Request, expected: type[R]) -> R:
        """Send a request without a body, again while its result is pending; return the reply.

        Raises RefusedError if the server refuses it, and StallTimeoutError if it reports no
        progress for ``timeout_s``.
        """
        interval_s, last = _FIRST_INTERVAL_S, None
        moved_at = time.monotonic()
        while True:
            requested_at = time.monotonic()
            self.send(request)
            reply = self.receive().reply
            if not isinstance(reply, m.Pending):
                return expect(reply, expected)
            now = time.monotonic()
            if reply != last:
                last, moved_at = reply, now
            elif now - moved_at > self.timeout_s:
                raise StallTimeoutError("the server reported no progress for too long")
            # A server that holds each request for a while is asked again at once.
            if self.stream.wait_readable(max(0.0, requested_at + interval_s - now)):
                self.receive()  # raises: no reply is due
            interval_s = min(2 * interval_s, _MAX_INTERVAL_S)

    def send(self, request: m.Request, send: SendBody | None = None) -> None:
        """Send a request; ``send`` is called with its header if it has a body to send."""
        header = self._protocol.send_request(request)
        try:
            (send or self.stream.send)(header)
        except ConnectionLostError:
            self._raise_refusal()
            raise

    def receive(self) -> Response:
        """Return the next reply; its body, if it has one, must then be read from ``stream``."""
        return self._protocol.receive(self.stream.read_header())

    def poll(self) -> bool:
        """Receive a reply without a body if one has arrived; return whether one had.

        Raises ConnectionLostError if the server closed the connection.
        """
        if not self.stream.wait_readable(0):
            return False
        self.receive()
        return True

    def pipeline(
        self, requests: Iterable[tuple[m.Request, SendBody | None]], window: int
    ) -> Iterator[Response]:
        """Send ``requests`` with up to ``window`` unanswered; yield the replies in order."""
        for request, send in requests:
            self.send(request, send)
            while self._protocol.unanswered >= window:
                yield self.receive()
        while self._protocol.unanswered:
            yield self.receive()

    def drain(self) -> None:
        while self._protocol.unanswered:
            self.receive()
            self.stream.skip_body()

    def _raise_refusal(self) -> None:
        """Raise the refusal that the server sent before it closed the connection, if any."""
        with contextlib.suppress(ConnectionLostError, ProtocolError):
            while True:
                reply = self.receive().reply
                if isinstance(reply, RefusedError) and self._protocol.closed:
                    raise reply
                self.stream.skip_body()

    @property
    def usable(self) -> bool:
        """Whether the next request can be sent: no reply is outstanding, and no side closed."""
        if self._protocol.unanswered or self._protocol.closed or self.stream.left:
            return False
        if self.sock.fileno() < 0:
            return False
        return not self.stream.wait_readable(0)

    def check_algorithm(self, digest: str) -> str:
        """Return ``digest``; raise ProtocolError if it is not in the negotiated algorithm."""
        if split_digest(digest)[0] != self.algorithm:
            raise ProtocolError("the reply uses another digest algorithm than the negotiated one")
        return digest

    def reconnect(self) -> None:
        self.close()
        self._open(tls=not self._local_plaintext)

    def close(self) -> None:
        """Close the connection; safe to call twice."""
        self.stream.close()


def expect(reply: object, expected: type[R]) -> R:
    """Return ``reply``; raise it if it is a refusal, ProtocolError if it is not as ``expected``."""
    if isinstance(reply, RefusedError):
        raise reply
    if not isinstance(reply, expected):
        raise ProtocolError("the reply does not match the request")
    return reply


@contextlib.contextmanager
def _connect_errors(address: Address) -> Iterator[None]:
    permanent = False
    try:
        yield
        return
    except CannotConnectError:
        raise
    except ProtocolError:
        message, permanent = f"{address} is not an ftpkit server", True
    except StallTimeoutError:  # an HTTP server, for example, waits for the end of a line
        message = f"{address} does not answer; is it an ftpkit server?"
    except EndOfStreamError:
        message = f"connected to {address}, but it closed the connection; is it an ftpkit server?"
    except ConnectionLostError as error:
        message = f"cannot connect to {address}: {error}"
    except OSError as error:
        message = f"cannot connect to {address}: {error.strerror or error}"
        permanent = isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN
    except UnicodeError:  # from IDNA, for an empty label or one of more than 63 letters
        message, permanent = f"cannot connect to {address}: invalid host name", True
    raise CannotConnectError(message, permanent=permanent)
