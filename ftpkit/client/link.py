"""A connection to a server: requests out, many ahead if it pays, and their answers in."""

import contextlib
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from ftpkit import __version__, system
from ftpkit.errors import (
    CannotConnectError,
    LinkError,
    ProtocolError,
    RefusedError,
    StalledError,
)
from ftpkit.net.address import Address
from ftpkit.net.pacing import Pace
from ftpkit.net.stream import Stream
from ftpkit.protocol.conversation import Answer, ClientConversation
from ftpkit.protocol.digest import ALGORITHMS, DEFAULT, split_digest
from ftpkit.protocol.messages import (
    PROTOCOL_VERSION,
    Hello,
    HelloReply,
    Pending,
    Reply,
    Request,
)

R = TypeVar("R", bound=Reply)

Send = Callable[[bytes], None]
"""Sends a header, which it is given, and the body behind it."""

OnSocket = Callable[[socket.socket], None]


class Link:
    """One conversation, opened with ``hello``.

    Raises CannotConnectError where nobody answers, or somebody else. ``on_socket`` is
    given the socket before it connects, so that another thread may break it.
    """

    def __init__(
        self,
        address: Address,
        *,
        timeout_s: float,
        pace: Pace | None,
        on_socket: OnSocket | None = None,
    ) -> None:
        self.address, self.timeout_s = address, timeout_s
        try:
            sock = _connected(address, timeout_s, on_socket)
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
        self.stream = Stream(sock, stall_timeout_s=timeout_s, turns=pace)
        self.sock = sock
        """The connection beneath ``stream``, for those who tune and measure it."""
        self._conversation = ClientConversation()
        self.algorithm = DEFAULT
        self.features: list[str] = []
        try:
            self._greet()
        except BaseException:
            self.close()
            raise

    def _greet(self) -> None:
        hello = Hello(
            version=PROTOCOL_VERSION, agent=f"ftpkit/{__version__}", digests=list(ALGORITHMS)
        )
        try:
            reply = self.ask(hello, HelloReply)
            if reply.digest not in ALGORITHMS:
                raise ProtocolError(f"the server picked a digest {reply.digest!a}")
        except ProtocolError:
            raise CannotConnectError(
                f"{self.address} is no ftpkit server", permanent=True
            ) from None
        except StalledError:
            # Perhaps it waits for a line's end that ours does not have: HTTP does.
            raise CannotConnectError(
                f"{self.address} does not answer; is it an ftpkit server?"
            ) from None
        except LinkError as error:
            raise CannotConnectError(f"cannot connect to {self.address}: {error}") from None
        self.algorithm, self.features = reply.digest, reply.features

    def ask(self, request: Request, expected: type[R]) -> R:
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

    def send(self, request: Request, send: Send | None = None) -> None:
        """Send a request; ``send`` sends its header and body where it has one."""
        header = self._conversation.ask(request)
        try:
            (send or self.stream.send)(header)
        except LinkError:
            self._explain()
            raise

    def receive(self) -> Answer:
        """Return the next answer; the body of its reply must be read from ``stream`` next."""
        return self._conversation.receive(self.stream.read_header())

    def look(self) -> bool:
        """Take an answer without a body if one has come; LinkError if the server has hung up."""
        if not system.wait_readable(self.sock, 0):
            return False
        self.receive()
        return True

    def pipeline(
        self, requests: Iterable[tuple[Request, Send | None]], window: int
    ) -> Iterator[Answer]:
        """Send ``requests``, up to ``window`` ahead of their answers; yield these in order."""
        for request, send in requests:
            self.send(request, send)
            while self._conversation.unanswered >= window:
                yield self.receive()
        while self._conversation.unanswered:
            yield self.receive()

    def settle(self) -> None:
        """Read and drop the answers that are still under way."""
        while self._conversation.unanswered:
            self.receive()
            self.stream.skip_body()

    def _explain(self) -> None:
        """If the server said why it hung up, raise that instead of the broken connection."""
        with contextlib.suppress(LinkError, ProtocolError):
            while True:
                reply = self.receive().reply
                if isinstance(reply, RefusedError) and self._conversation.closed:
                    raise reply
                self.stream.skip_body()

    @property
    def usable(self) -> bool:
        """Whether another request may follow: nothing is under way and nobody has hung up."""
        if self._conversation.unanswered or self._conversation.closed or self.stream.left:
            return False
        if self.sock.fileno() < 0:
            return False
        return not system.wait_readable(self.sock, 0)

    def check_algorithm(self, digest: str) -> str:
        """Return ``digest`` if it is in the conversation's algorithm, else raise ProtocolError."""
        if split_digest(digest)[0] != self.algorithm:
            raise ProtocolError("the reply has another digest than was agreed on")
        return digest

    def again(self) -> "Link":
        """Hang up, and return a new conversation with the same server."""
        self.close()
        return Link(self.address, timeout_s=self.timeout_s, pace=None)

    def close(self) -> None:
        """Hang up; safe to call twice."""
        self.stream.close()


def _connected(address: Address, timeout_s: float, on_socket: OnSocket | None) -> socket.socket:
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
