"""Both halves of a conversation: what may be said when, and which reply is whose.

Neither half moves a byte: a shell reads headers with a ``Decoder``, hands them
over here, and sends what it gets (WIRE.md section 2).
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from ftpkit.errors import Code, ProtocolError, RefusedError
from ftpkit.protocol.frame import Header, encode_header
from ftpkit.protocol.messages import (
    PROTOCOL_VERSION,
    REPLIES,
    Auth,
    Hello,
    Pending,
    Reply,
    Request,
    refusal_to_header,
    reply_from_header,
    reply_to_header,
    request_from_header,
    request_to_header,
)

MAX_BAD_TOKENS: Final = 3
# A reply repeats the id: this bound is what keeps the reply's header within its own.
MAX_ID: Final = 1024


class Phase(Enum):
    """Where a conversation stands."""

    GREETING = auto()  # nothing was said yet: hello may come
    OPEN = auto()
    CLOSED = auto()  # the last reply is on its way


class ServerProtocol:
    """The server's half: takes requests and gives each exactly one reply, in order.

    Call ``receive`` with a header, do what it returns, then call ``accept`` or
    ``refuse`` once, and send the bytes that it gives. The body of a request or
    of a reply is the shell's to move.
    """

    def __init__(self, *, must_authenticate: bool = False) -> None:
        self._phase = Phase.GREETING
        self._locked = must_authenticate
        self._bad_tokens = 0
        self._id: str | int | None = None

    @property
    def closed(self) -> bool:
        """Whether the last reply said that the server closes after it."""
        return self._phase is Phase.CLOSED

    def receive(self, header: Header) -> Request:
        """Return the request in ``header``, or raise the RefusedError that is its reply."""
        if self.closed:
            raise RuntimeError("the conversation is closed")
        greeting = self._phase is Phase.GREETING
        self._phase = Phase.OPEN
        self._id = _checked_id(header.get("id"))
        # Before a good token nobody learns more of us than that they need one.
        if self._locked and header.get("op") not in (Hello.op, Auth.op):
            raise RefusedError(Code.AUTH_REQUIRED, "show a token first")
        request = request_from_header(header)
        if isinstance(request, Hello):
            if not greeting:
                raise RefusedError(Code.BAD_REQUEST, "hello comes first or not at all")
            if request.version != PROTOCOL_VERSION:
                raise RefusedError(
                    Code.UNSUPPORTED, f"this server speaks version {PROTOCOL_VERSION}"
                )
        return request

    def accept(self, reply: Reply | Pending) -> bytes:
        """Return the header that answers the last request with ``reply``."""
        return self._reply(reply_to_header(reply), close=False)

    def refuse(self, refusal: RefusedError, *, close: bool = False) -> bytes:
        """Return the header that refuses the last request; ``close`` makes it the last reply."""
        if refusal.code is Code.AUTH_FAILED:
            self._bad_tokens += 1
            close = close or self._bad_tokens >= MAX_BAD_TOKENS
        return self._reply(refusal_to_header(refusal), close=close)

    def mark_authenticated(self) -> None:
        """Note that the client has shown a good token."""
        self._locked = False

    def _reply(self, header: Header, *, close: bool) -> bytes:
        if self.closed:
            raise RuntimeError("the conversation is closed")
        if close:
            header["close"] = True
            self._phase = Phase.CLOSED
        # A refusal that comes unasked later must not seem to answer this request again.
        identity, self._id = self._id, None
        if identity is not None:
            header["id"] = identity
        return encode_header(header)


def _checked_id(value: object) -> str | int | None:
    if value is None or type(value) is int:
        return value
    if type(value) is str and len(value.encode()) <= MAX_ID:
        return value
    raise RefusedError(
        Code.BAD_REQUEST, f"id must be an integer or a string of up to {MAX_ID:,} bytes"
    )


@dataclass(frozen=True, slots=True)
class Response:
    """What the server said to ``request``."""

    request: Request
    reply: Reply | Pending | RefusedError


class ClientProtocol:
    """The client's half: sends requests, ahead of their replies if it likes, and matches them."""

    def __init__(self) -> None:
        self._unanswered: deque[Request] = deque()
        self._closed = False

    @property
    def unanswered(self) -> int:
        """How many requests have no reply yet."""
        return len(self._unanswered)

    @property
    def closed(self) -> bool:
        """Whether the server said that it closes."""
        return self._closed

    def send_request(self, request: Request) -> bytes:
        """Return the header of ``request`` to be sent, its body behind it."""
        header = encode_header(request_to_header(request))
        self._unanswered.append(request)
        return header

    def receive(self, header: Header) -> Response:
        """Return what ``header`` answers, and to which request.

        A refusal that closes may come unasked (a server that is full, or
        stops): it is raised. ProtocolError says that this is no reply at all.
        """
        self._closed = self._closed or header.get("close") is True
        if not self._unanswered:
            error = reply_from_header(REPLIES[Hello], header) if header.get("ok") is False else None
            if isinstance(error, RefusedError) and self._closed:
                raise error
            raise ProtocolError("a reply came that nobody asked for")
        request = self._unanswered.popleft()
        return Response(request, reply_from_header(REPLIES[type(request)], header))
