"""One connection: requests in, work done, replies out, in order."""

import contextlib
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final

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
from ftpkit.protocol.messages import Abort, AuthReply, Begin, Commit, Push, Request, Write
from ftpkit.protocol.state import ServerProtocol
from ftpkit.server.context import Handoff, Result, SessionContext
from ftpkit.server.operations import OPERATIONS
from ftpkit.server.permissions import permitted
from ftpkit.server.transfers.tracker import TransferTracker
from ftpkit.storage.api import DescriptorReader, Reader

# A refused body up to this size is read and dropped, and the conversation goes on.
MAX_DROPPED: Final = 1024 * 1024
_GENTLE_S: Final = 10.0
# So much of a file is held back until it is seen to be unchanged: small files wholly, and
# not much of large ones, which travel without a copy.
_LAST: Final = 64 * 1024
# Who shows no token for so long takes the place of somebody who has one, whatever it asks for.
_UNKNOWN_S: Final = 60.0

log = logging.getLogger("ftpkit.server")


class Session:
    """Serves one connection until it ends, in the thread that calls ``run``.

    ``open_up`` decides what the conversation travels over; RefusedError ends it.
    """

    def __init__(
        self,
        stream: FrameStream,
        context: SessionContext,
        peer: str,
        moved: Handoff | None = None,
        open_up: Callable[[FrameStream], None] | None = None,
    ) -> None:
        self.peer = context.peer = peer
        self._stream = stream
        self._context = context
        self._open_up = open_up
        self._transfers = TransferTracker(context)
        self._requests = 0
        self._sent = 0
        self._since = time.monotonic()
        self._state = threading.Lock()
        self._busy = moved is not None
        self._stopping = False
        self._revoked = False
        self._handed_over = False
        self._next: Header | None = None
        context.on_datagrams_ended = self._rest
        context.passed = self._transfers.passed
        if moved is not None:
            if moved.grant is not None and context.authenticator is not None:
                context.authenticated(moved.grant, context.authenticator.store_for(moved.grant))
            context.algorithm = moved.algorithm
            self._next, self._requests, self._since = moved.header, moved.requests, moved.since
            stream.resume(moved.header, moved.ahead, moved.local)
        self._protocol = ServerProtocol(must_authenticate=context.unauthenticated)
        stream.unauthenticated = context.unauthenticated

    def run(self) -> None:
        """Serve until the client ends, fails, or is shown out; never raises."""
        outcome = "closed"
        try:
            if self._open_up is not None:
                self._open_up(self._stream)
            self._converse()
        except RefusedError as refusal:
            outcome = refusal.code
            self._last_word(refusal)
        except EndOfStreamError:
            if self._revoked:
                self._last_word(self._deauthenticated())
            elif self._stopping:
                outcome = Code.SHUTTING_DOWN
                self._last_word(RefusedError(Code.SHUTTING_DOWN, "the server is stopping"))
        except HeaderTooLongError as error:
            outcome = Code.AUTH_REQUIRED
            self._last_word(RefusedError(outcome, f"show a token first: {error}"))
        except ProtocolError as error:
            outcome = error.code
            self._last_word(RefusedError(Code.BAD_FRAME, str(error)))
        except StallTimeoutError as error:
            outcome = error.code
            self._last_word(RefusedError(Code.TIMEOUT, str(error)))
        except (ConnectionLostError, SourceChangedError) as error:
            outcome = error.code
        finally:
            self._transfers.close()
            self._context.close()
            self._stream.close()
            if not self._handed_over:
                self._context.leave()
                log.info("connection", extra={"fields": self._summary(outcome)})

    def stop(self, *, now: bool) -> None:
        """End after the transfers that are under way, or ``now``."""
        with self._state:
            self._stopping = True
            if now and (not self._handed_over or self._stream.is_tls):
                self._stream.shutdown()
                self._transfers.interrupt()
        self._rest()

    def check(self) -> None:
        """End if the token that was shown is good no longer, or none was shown in time.

        With a word, where one can be said.
        """
        late = self._context.unauthenticated and time.monotonic() - self._since > _UNKNOWN_S
        if self._revoked or (self._context.still_authorized and not late):
            return
        with self._state:
            self._revoked = True
            if self._handed_over:
                return
            if self._busy:
                self._stream.shutdown()
                self._transfers.interrupt()
            else:
                self._stream.shutdown_read()

    @property
    def handed_over(self) -> bool:
        """Whether another process answers its requests."""
        return self._handed_over

    @property
    def _transferring(self) -> bool:
        exchange = self._context.udp_conversation
        return (
            bool(self._context.uploads)
            or self._transfers.downloading
            or (exchange is not None and exchange.running)
        )

    def _converse(self) -> None:
        while not self._protocol.closed:
            header = self._next_header()
            with self._state:
                self._busy = True
            self._requests += 1
            self._serve(header)
            if self._handed_over:
                return
            with self._state:
                self._busy = False
            self._rest()
        self._close_gently()

    def _next_header(self) -> Header:
        """Return the next header; who sends datagrams meanwhile is not silent."""
        if self._next is not None:
            header, self._next = self._next, None
            return header
        while True:
            try:
                return self._stream.read_header()
            except StallTimeoutError:
                exchange = self._context.udp_conversation
                if exchange is None or not exchange.running:
                    raise

    def _rest(self) -> None:
        """End if we are to stop, and this was the last that was under way."""
        with self._state:
            if self._stopping and not self._busy and not self._transferring:
                self._stream.shutdown_read()

    def _serve(self, header: Header) -> None:
        started = time.monotonic()
        request: Request | None = None
        try:
            request = self._protocol.receive(header)
            self._stay_for(request)
            request = self._allowed(request)
            self._transfers.arriving(request)
            result = OPERATIONS[type(request)](self._context, request)
        except RefusedError as refusal:
            self._transfers.refused(request, refusal, started)
            self._refuse(refusal)
        except WrongWorkerError as error:
            self._hand_over(header, error.holder)
        except (ConnectionLostError, SourceChangedError):
            self._transfers.broken(request, header.get("size", 0) - self._stream.left, started)
            raise
        except Exception:  # the client gets a reference, the log the rest
            reference = secrets.token_hex(4)
            log.exception("error", extra={"fields": {"reference": reference, "peer": self.peer}})
            failure = RefusedError(Code.INTERNAL, f"internal error, reference {reference}")
            self._transfers.refused(request, failure, started)
            self._refuse(failure)
        else:
            if result.reader is None:
                # What was done stays done, whether its reply arrives or not.
                row = self._context.udp_conversation
                self._transfers.served(request, result.reply, started, row)
                if isinstance(result.reply, AuthReply):
                    self._protocol.mark_authenticated()
                    self._stream.unauthenticated = False
                self._answer(result)
                return
            self._transfers.leaving(result.reply)
            try:
                self._answer(result)
            except (ConnectionLostError, SourceChangedError):
                self._transfers.broken(request, self._sent, started)
                raise
            self._transfers.served(request, result.reply, started)

    def _stay_for(self, request: Request) -> None:
        """Let others serve a request, where we only finish what is begun; of uploads they know."""
        other_workers = self._context.other_workers
        if other_workers is None or not other_workers.leaving or self._transferring:
            return
        if self._stream.is_tls:  # it would be here all the same
            return
        if not isinstance(request, Begin | Write | Commit | Abort | Push):
            raise WrongWorkerError(0)

    def _allowed(self, request: Request) -> Request:
        """Return ``request`` as whoever is at the other end may have it done now."""
        if not self._context.still_authorized:
            self._revoked = True
            raise self._deauthenticated()
        return permitted(request, self._context.grant)

    def _hand_over(self, header: Header, to: int) -> None:
        """Let another process answer this request, and all that follow it."""
        context = self._context
        # The keys of its TLS cannot be given away. If there is no descriptor, nothing has begun.
        lent = socket.socketpair() if self._stream.is_tls else None
        with self._state:
            self._handed_over = True
        self._transfers.close()
        context.close()
        sock, ahead = self._stream.detach()
        answered = self._requests - 1
        grant = context.grant if context.authenticator and not context.unauthenticated else None
        local = self._stream.local
        moved = Handoff(header, ahead, grant, context.algorithm, answered, self._since, local)
        if context.other_workers is None:
            return
        if lent is None:
            context.other_workers.hand_over(sock, moved, to, lent=False)
            return
        ours, theirs = lent
        with ours:
            with theirs:
                context.other_workers.hand_over(theirs, moved, to, lent=True)
            self._stream.proxy_to(ours)
            self._stream.lingering_close(_GENTLE_S)

    def _answer(self, result: Result) -> None:
        self._sent = 0
        header = self._protocol.accept(result.reply)
        if result.reader is None:
            self._stream.send(header, result.body)
            return
        with result.reader as reader:
            self._send_file(header, reader, result.offset, result.count)

    def _send_file(self, header: bytes, reader: Reader, offset: int, count: int) -> None:
        """Send a range, and its last bytes only after the file was found to be unchanged.

        A client that has the whole body has one state of the file; one that has less knows
        that the transfer failed.
        """

        def check(count: int) -> None:
            self._sent += count
            self._transfers.passed(count)
            if not reader.unchanged():
                raise SourceChangedError("the file was written to while it was sent")

        last = min(count, _LAST)
        if last < count and isinstance(reader, DescriptorReader):
            self._stream.send_range(header, reader.fileno(), offset, count - last, check)
            header = b""
        else:
            piece = memoryview(bytearray(min(PIECE, count - last)))
            for at in range(offset, offset + count - last, PIECE):
                piece = piece[: offset + count - last - at]
                _read(reader, piece, at)
                self._stream.send_body(header, piece, check)
                header = b""
        end = memoryview(bytearray(last))
        _read(reader, end, offset + count - last)
        check(0)
        self._sent += last
        self._stream.send_body(header, end, self._transfers.passed)

    def _refuse(self, refusal: RefusedError) -> None:
        self._transfers.still()
        close = (
            self._revoked
            or refusal.code == Code.TOO_MANY_CONNECTIONS
            or self._stream.left > MAX_DROPPED
        )
        if not close:
            self._stream.skip_body()
        self._stream.send(self._protocol.refuse(refusal, close=close))

    def _last_word(self, refusal: RefusedError) -> None:
        if self._protocol.closed:
            return
        with contextlib.suppress(ConnectionLostError):
            self._stream.send(self._protocol.refuse(refusal, close=True))
            self._close_gently()

    def _close_gently(self) -> None:
        # Datagrams must not go on while the peer takes its time.
        self._context.end_datagram_session()
        self._stream.lingering_close(_GENTLE_S)

    def _summary(self, outcome: str) -> dict[str, Any]:
        return {
            "peer": self.peer,
            **self._context.log_fields,
            "requests": self._requests,
            "seconds": round(time.monotonic() - self._since, 3),
            "outcome": Code.AUTH_REQUIRED if self._revoked else outcome,
        }

    def _deauthenticated(self) -> RefusedError:
        why = (
            "no token was shown in time"
            if self._context.unauthenticated
            else "the token is good no longer"
        )
        return RefusedError(Code.AUTH_REQUIRED, why)


def _read(reader: Reader, view: memoryview, offset: int) -> None:
    if reader.read_into(view, offset) != len(view):
        raise SourceChangedError("the file became shorter while it was sent")
