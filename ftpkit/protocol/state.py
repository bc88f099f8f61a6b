"""Both sides of a session: which requests are allowed when, and which reply is whose.

Neither side does I/O: the caller reads headers with a ``Decoder``, passes them to
``receive``, and sends the bytes that the other methods return (WIRE.md section 2).
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

from ftpkit.errors import Code, ProtocolError, RefusedError
from ftpkit.protocol.codec import (
    refusal_to_header,
    reply_from_header,
    reply_to_header,
    request_from_header,
    request_to_header,
)
from ftpkit.protocol.frame import Header, encode_header
from ftpkit.protocol.messages import LONG, PROTOCOL_VERSION, Auth, Hello, Pending, Reply, Request

MAX_BAD_TOKENS: Final = 3
# In bytes. A reply repeats the id, so without a limit its header could exceed MAX_HEADER.
MAX_ID: Final = 1024


class ServerProtocol:
    """The server's side: one reply to each request, in order.

    Call ``receive`` with a header, carry out the request that it returns, then call
    ``accept`` or ``refuse`` once and send the bytes that it returns. The caller moves
    the bodies of requests and replies.
    """

    def __init__(self, *, must_authenticate: bool = False) -> None:
        self.closed = False
        """Whether the last reply announced that the server closes the connection."""
        self._greeting = True  # no request yet: hello is allowed
        self._locked = must_authenticate
        self._bad_tokens = 0
        self._id: str | int | None = None

    def receive(self, header: Header) -> Request:
        """Return the request in ``header``, or raise the RefusedError to pass to ``refuse``.

        RuntimeError after the last reply.
        """
        if self.closed:
            raise RuntimeError("the session is closed")
        greeting, self._greeting = self._greeting, False
        self._id = _checked_id(header.get("id"))
        # Checked first, so that an unauthenticated client learns nothing else.
        if self._locked and header.get("op") not in (Hello.op, Auth.op):
            raise RefusedError(Code.AUTH_REQUIRED, "send auth with a token first")
        request = request_from_header(header)
        if isinstance(request, Hello):
            if not greeting:
                raise RefusedError(Code.BAD_REQUEST, "hello must be the first request")
            if request.version != PROTOCOL_VERSION:
                raise RefusedError(
                    Code.UNSUPPORTED, f"the protocol version here is {PROTOCOL_VERSION}"
                )
        return request

    def accept(self, reply: Reply | Pending) -> bytes:
        """Return the wire bytes of ``reply`` to the last request."""
        return self._reply(reply_to_header(reply), close=False)

    def refuse(self, refusal: RefusedError, *, close: bool = False) -> bytes:
        """Return the wire bytes that refuse the last request; ``close``: as the last reply.

        The third refused token closes as well.
        """
        if refusal.code is Code.AUTH_FAILED:
            self._bad_tokens += 1
            close = close or self._bad_tokens >= MAX_BAD_TOKENS
        return self._reply(refusal_to_header(refusal), close=close)

    def mark_authenticated(self) -> None:
        """Allow all requests from now on."""
        self._locked = False

    def _reply(self, header: Header, *, close: bool) -> bytes:
        if self.closed:
            raise RuntimeError("the session is closed")
        if close:
            header["close"] = True
            self.closed = True
        # A closing refusal without a request may follow; it must not repeat this id.
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
    """A request and the server's reply to it."""

    request: Request
    reply: Reply | Pending | RefusedError


class ClientProtocol:
    """The client's side: pipelines requests and matches the replies to them."""

    def __init__(self) -> None:
        self._unanswered: deque[Request] = deque()
        self.closed = False
        """Whether the server announced that it closes the connection."""

    @property
    def unanswered(self) -> int:
        """How many requests have no reply yet."""
        return len(self._unanswered)

    def send_request(self, request: Request) -> bytes:
        """Return the wire bytes of ``request``; send its body, if it has one, after them."""
        header = encode_header(request_to_header(request))
        self._unanswered.append(request)
        return header

    def receive(self, header: Header) -> Response:
        """Return the reply in ``header`` with the request that it belongs to.

        Raises the RefusedError of a closing refusal that replies to no request (from a
        server that is full or stops), and ProtocolError for a header that is no reply.
        """
        self.closed = self.closed or header.get("close") is True
        if not self._unanswered:
            error = reply_from_header(Hello.reply, header) if header.get("ok") is False else None
            if isinstance(error, RefusedError) and self.closed:
                raise error
            raise ProtocolError("a reply without a request")
        request = self._unanswered.popleft()
        reply = reply_from_header(request.reply, header)
        if isinstance(reply, Pending) and not isinstance(request, LONG):
            raise ProtocolError(f"bad reply: {request.op} cannot be pending")
        return Response(request, reply)
