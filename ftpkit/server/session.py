"""One client's conversation on a connection: reads requests, carries them out, replies in order."""

import contextlib
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from ftpkit.errors import (
    Code,
    ConnectionLostError,
    EndOfStreamError,
    HeaderTooLongError,
    ProtocolError,
    RefusedError,
    SourceChangedError,
    StallTimeoutError,
    WrongWorkerError,
)
from ftpkit.net.frame_stream import PIECE, FrameStream
from ftpkit.protocol.frame import Header
from ftpkit.protocol.messages import Abort, AuthReply, Begin, Commit, Push, Request, Wait, Write
from ftpkit.protocol.state import ServerProtocol
from ftpkit.server.context import Handoff, Result, SessionContext
from ftpkit.server.operations import OPERATIONS
from ftpkit.server.permissions import permitted
from ftpkit.server.transfers.tracker import TransferTracker
from ftpkit.storage.api import DescriptorReader, Reader

# A refused body up to this size is read and discarded; after a larger one the connection closes.
MAX_DROPPED: Final = 1024 * 1024
_LINGER_S: Final = 10.0
# So many bytes of a file are held back until it is seen to be unchanged: all of a small file,
# and little of a large one, whose other bytes are sent without a copy.
_HELD_BACK: Final = 64 * 1024
# Without a token by then, a connection makes room for others, whatever it requests.
_LOGIN_S: Final = 60.0

log = logging.getLogger("ftpkit.server")


class Session:
    """Serves one connection until it ends, in the thread that calls ``run``.

    ``open_transport`` starts TLS if the client does; RefusedError ends the session. A
    ``handoff`` continues a session that another worker began.
    """

    def __init__(
        self,
        context: SessionContext,
        handoff: Handoff | None = None,
        open_transport: Callable[[FrameStream], None] | None = None,
    ) -> None:
        self._context, self._stream, self.peer = context, context.stream, context.peer
        self._open_transport = open_transport
        self._transfers = TransferTracker(context)
        self._requests = 0
        self._sent = 0
        self._since = time.monotonic()
        self._state = threading.Lock()
        self._busy = handoff is not None
        self._stopping = False
        self._revoked = False
        self.handed_over = False
        """Whether another worker answers the requests."""
        self._next: Header | None = None
        context.on_datagrams_ended = self._end_if_idle
        context.on_bytes = self._transfers.on_bytes
        if handoff is not None:
            if handoff.grant is not None and context.authenticator is not None:
                store = context.authenticator.store_for(handoff.grant)
                context.authenticated(handoff.grant, store)
            context.algorithm = handoff.algorithm
            self._next, self._requests = handoff.header, handoff.requests
            self._since = handoff.since
            self._stream.resume(handoff.header, handoff.ahead, handoff.local)
        self._protocol = ServerProtocol(must_authenticate=context.unauthenticated)
        self._stream.unauthenticated = context.unauthenticated

    def run(self) -> None:
        """Serve until the client or the server ends the connection; never raises."""
        outcome = "closed"
        try:
            if self._open_transport is not None:
                self._open_transport(self._stream)
            self._converse()
        except RefusedError as refusal:
            outcome = refusal.code
            self._send_last(refusal)
        except EndOfStreamError:
            if self._revoked:
                self._send_last(self._deauthenticated())
            elif self._stopping:
                outcome = Code.SHUTTING_DOWN
                self._send_last(RefusedError(Code.SHUTTING_DOWN, "the server is stopping"))
        except HeaderTooLongError as error:
            outcome = Code.AUTH_REQUIRED
            self._send_last(RefusedError(outcome, f"authenticate first: {error}"))
        except (ProtocolError, StallTimeoutError) as error:
            outcome = error.code
            self._send_last(RefusedError(Code(outcome), str(error)))
        except (ConnectionLostError, SourceChangedError) as error:
            outcome = error.code
        finally:
            self._transfers.close()
            self._context.close()
            self._stream.close()
            if not self.handed_over:
                self._context.leave()
                fields = {
                    "peer": self.peer,
                    **self._context.log_fields,
                    "requests": self._requests,
                    "seconds": round(time.monotonic() - self._since, 3),
                    "outcome": Code.AUTH_REQUIRED if self._revoked else outcome,
                }
                log.info("connection", extra={"fields": fields})

    def stop(self, *, now: bool) -> None:
        """End when the transfers of this session have ended, or ``now``."""
        with self._state:
            self._stopping = True
            if now and (not self.handed_over or self._stream.is_tls):
                self._stream.shutdown()
                self._transfers.interrupt()
        self._end_if_idle()

    def check_token(self) -> None:
        """End if the token has become invalid, or none was presented in time.

        The client gets the reason unless a request is being served.
        """
        late = self._context.unauthenticated and time.monotonic() - self._since > _LOGIN_S
        if self._revoked or (self._context.still_authorized and not late):
            return
        with self._state:
            self._revoked = True
            if self.handed_over:
                return
            if self._busy:
                self._stream.shutdown()
                self._transfers.interrupt()
            else:
                self._stream.shutdown_read()

    @property
    def _transferring(self) -> bool:
        return (
            bool(self._context.uploads)
            or self._transfers.downloading
            or self._context.moves_datagrams
        )

    def _converse(self) -> None:
        while not self._protocol.closed:
            header = self._next_header()
            with self._state:
                self._busy = True
            self._requests += 1
            self._answer(header)
            if self.handed_over:
                return
            with self._state:
                self._busy = False
            self._end_if_idle()
        self._linger()

    def _next_header(self) -> Header:
        """Return the next header; a client that sends datagrams meanwhile is not idle."""
        if self._next is not None:
            header, self._next = self._next, None
            return header
        while True:
            try:
                return self._stream.read_header()
            except StallTimeoutError:
                if not self._context.moves_datagrams:
                    raise

    def _end_if_idle(self) -> None:
        with self._state:
            if self._stopping and not self._busy and not self._transferring:
                self._stream.shutdown_read()

    def _answer(self, header: Header) -> None:
        started = time.monotonic()
        request: Request | None = None
        try:
            request = self._protocol.receive(header)
            self._check_worker(request)
            operation, needs = OPERATIONS[type(request)]
            if not self._context.still_authorized:
                self._revoked = True
                raise self._deauthenticated()
            request = permitted(request, needs, self._context.grant)
            self._transfers.begin_request(request)
            result = operation(self._context, request)
        except RefusedError as refusal:
            self._refuse(request, refusal, started)
        except WrongWorkerError as error:
            self._hand_over(header, error.holder)
        except (ConnectionLostError, SourceChangedError):
            received = header.get("size", 0) - self._stream.left
            self._transfers.on_interruption(request, received, started)
            raise
        except Exception:  # the client gets a reference, the log the traceback
            reference = secrets.token_hex(4)
            log.exception("error", extra={"fields": {"reference": reference, "peer": self.peer}})
            failure = RefusedError(Code.INTERNAL, f"internal error, reference {reference}")
            self._refuse(request, failure, started)
        else:
            self._reply(request, result, started)

    def _check_worker(self, request: Request) -> None:
        """Raise WrongWorkerError if this worker is draining and ``request`` begins something new.

        Requests for uploads stay: whether the upload is here is found by its lock.
        """
        other_workers = self._context.other_workers
        if other_workers is None or not other_workers.draining or self._transferring:
            return
        if self._stream.is_tls:  # this worker would go on relaying its bytes
            return
        if not isinstance(request, Begin | Write | Commit | Abort | Push | Wait):
            raise WrongWorkerError(0)

    def _reply(self, request: Request, result: Result, started: float) -> None:
        if result.reader is None:
            # Recorded before it is sent: the request was carried out even if the reply is lost.
            self._transfers.on_reply(request, result.reply, started)
            if isinstance(result.reply, AuthReply):
                self._protocol.mark_authenticated()
                self._stream.unauthenticated = False
            self._stream.send(self._protocol.accept(result.reply), result.body)
            if result.then is not None:
                result.then()
            return
        self._transfers.begin_reply(result.reply)
        self._sent = 0
        header = self._protocol.accept(result.reply)
        try:
            with result.reader as reader:
                self._send_file(header, reader, result.offset, result.count)
        except (ConnectionLostError, SourceChangedError):
            self._transfers.on_interruption(request, self._sent, started)
            raise
        self._transfers.on_reply(request, result.reply, started)

    def _send_file(self, header: bytes, reader: Reader, offset: int, count: int) -> None:
        """Send a range, its last bytes only if the file is still unchanged then.

        A client that has received the whole body thus has one state of the file.
        """

        def check(count: int) -> None:
            self._sent += count
            self._transfers.on_bytes(count)
            if not reader.unchanged():
                raise SourceChangedError("the file was written to while it was sent")

        last = min(count, _HELD_BACK)
        end = offset + count - last
        if offset < end and isinstance(reader, DescriptorReader):
            self._stream.send_range(header, reader.fileno(), offset, end - offset, check)
            header, offset = b"", end
        buffer = memoryview(bytearray(min(PIECE, max(end - offset, last))))
        for start in range(offset, end, PIECE):
            piece = buffer[: end - start]
            _read(reader, piece, start)
            self._stream.send_body(header, piece, check)
            header = b""
        _read(reader, buffer[:last], end)
        check(0)
        self._sent += last
        self._stream.send_body(header, buffer[:last], self._transfers.on_bytes)

    def _refuse(self, request: Request | None, refusal: RefusedError, started: float) -> None:
        self._transfers.on_refusal(request, refusal, started)
        close = (
            self._revoked
            or refusal.code == Code.TOO_MANY_CONNECTIONS
            or self._stream.left > MAX_DROPPED
        )
        if not close:
            self._stream.skip_body()
        self._stream.send(self._protocol.refuse(refusal, close=close))

    def _hand_over(self, header: Header, to: int) -> None:
        """Let another worker answer this request, and all that follow it."""
        context = self._context
        # A TLS connection cannot move: its keys are in this process, which relays its bytes.
        # Created first: if no descriptor is left, nothing has changed yet.
        relay = socket.socketpair() if self._stream.is_tls else None
        with self._state:
            self.handed_over = True
        self._transfers.close()
        context.close()
        sock, ahead = self._stream.detach()
        answered = self._requests - 1
        grant = context.grant if context.authenticator and not context.unauthenticated else None
        local = self._stream.local
        handoff = Handoff(header, ahead, grant, context.algorithm, answered, self._since, local)
        if context.other_workers is None:
            return
        if relay is None:
            context.other_workers.hand_over(sock, handoff, to, proxied=False)
            return
        ours, theirs = relay
        with ours:
            with theirs:
                context.other_workers.hand_over(theirs, handoff, to, proxied=True)
            self._stream.proxy_to(ours)
            self._stream.lingering_close(_LINGER_S)

    def _send_last(self, refusal: RefusedError) -> None:
        """Send a refusal that answers no request, if the client still listens."""
        if self._protocol.closed:
            return
        with contextlib.suppress(ConnectionLostError):
            self._stream.send(self._protocol.refuse(refusal, close=True))
            self._linger()

    def _linger(self) -> None:
        # Datagrams must not go on while the client takes its time.
        self._context.end_datagram_session()
        self._stream.lingering_close(_LINGER_S)

    def _deauthenticated(self) -> RefusedError:
        late = self._context.unauthenticated
        reason = "no token was presented in time" if late else "the token is no longer valid"
        return RefusedError(Code.AUTH_REQUIRED, reason)


def _read(reader: Reader, view: memoryview, offset: int) -> None:
    if reader.read_into(view, offset) != len(view):
        raise SourceChangedError("the file became shorter while it was sent")
