"""Tracks the transfers of one connection: their turns, and a log line at the end of each."""

import logging
import time
from dataclasses import dataclass, field

from ftpkit.errors import RefusedError
from ftpkit.protocol import messages as m
from ftpkit.scheduling.blocking import TurnHandle
from ftpkit.scheduling.rate_limit import Direction
from ftpkit.server.context import SessionContext
from ftpkit.server.udp.listener import UdpConversation

log = logging.getLogger("ftpkit.server")


@dataclass(slots=True, eq=False)
class _TrackedTransfer:
    direction: Direction
    name: str
    since: float = field(default_factory=time.monotonic)
    handle: TurnHandle | None = None
    count: int = 0
    version: str = ""


class TransferTracker:
    """Follows the requests of one connection: its uploads by id, its ``put``, and its download.

    The session calls it before each body, for each piece of a body, and with the outcome of
    each request.
    """

    def __init__(self, context: SessionContext) -> None:
        self._context = context
        self._open: dict[str | type[m.Put | m.Get], _TrackedTransfer] = {}
        self._datagrams: tuple[_TrackedTransfer, UdpConversation] | None = None
        self._moving: TurnHandle | None = None

    @property
    def downloading(self) -> bool:
        """Whether the end of a file that was requested is still to be requested."""
        return m.Get in self._open

    def begin_request(self, request: m.Request) -> None:
        """Schedule the body of ``request`` as part of its transfer."""
        match request:
            case m.Put():
                handle = self._context.join_transfer(request.name, Direction.UP, request.size)
                self._open[m.Put] = _TrackedTransfer(Direction.UP, request.name, handle=handle)
                self._move(handle)
            case m.Write():
                self._move(self._upload(request.upload).handle)
            case _:
                self._move(None)

    def begin_reply(self, reply: m.Reply | m.Pending) -> None:
        if isinstance(reply, m.GetReply):
            self._move(self._downloaded(reply).handle)

    def on_bytes(self, count: int) -> None:
        if self._moving is not None:
            if self._context.stream.limiter is None:
                self._moving.release(count)
            # Limits may have been set or removed meanwhile.
            self._move(self._moving)

    def interrupt(self) -> None:
        """End a wait for a turn; any thread may call this."""
        handle = self._moving
        if handle is not None:
            handle.close()

    def on_reply(self, request: m.Request, reply: m.Reply | m.Pending, since: float) -> None:
        if not isinstance(request, m.Ping):
            self._end_datagrams()
        conversation = self._context.udp_conversation
        match request, reply:
            case m.Put(), m.FileReply():
                self._end(m.Put, "ok", request.size)
            case m.Put(), m.Pending() if m.Put in self._open and reply.job is not None:
                put = self._open[reply.job] = self._open.pop(m.Put)
                put.count = request.size
                if put.handle is not None:
                    put.handle.close()
            case m.Wait(), m.FileReply():
                self._end(request.job, "ok")
            case m.Begin(), m.BeginReply():
                self._upload(reply.upload)
            case m.Write(), _:
                self._upload(request.upload).count += request.size
            case m.Commit(), m.FileReply():
                committed = _TrackedTransfer(Direction.UP, reply.name, since)
                self._open.setdefault(request.upload, committed)
                self._end(request.upload, "ok")
            case m.Push(), _ if conversation is not None:
                self._datagrams = self._upload(request.upload), conversation
            case m.Pull(), _ if conversation is not None:
                pulled = _TrackedTransfer(Direction.DOWN, request.name, since)
                self._datagrams = pulled, conversation
            case m.Abort(), m.OkReply():
                self._end(request.upload, "aborted")
            case m.Get(), m.GetReply():
                self._downloaded(reply).count += reply.size
                if reply.offset + reply.size == reply.total:
                    self._end(m.Get, "ok")

    def on_refusal(self, request: m.Request | None, refusal: RefusedError, since: float) -> None:
        """Record a request that was refused, whose body is not scheduled."""
        self._move(None)
        match request:
            case m.Put():
                self._end(m.Put, refusal.code)
            case m.Wait():
                self._end(request.job, refusal.code)
            case m.Get():
                self._log(_TrackedTransfer(Direction.DOWN, request.name, since), refusal.code)
            case m.Begin():
                self._log(_TrackedTransfer(Direction.UP, request.name, since), refusal.code)

    def on_interruption(self, request: m.Request | None, count: int, since: float) -> None:
        """Record a request whose body ended after ``count`` bytes."""
        match request:
            case m.Put():
                self._end(m.Put, "unfinished", count)
            case m.Get():
                interrupted = _TrackedTransfer(Direction.DOWN, request.name, since)
                self._open.setdefault(m.Get, interrupted).count += count

    def close(self) -> None:
        self._end_datagrams()
        for key in list(self._open):
            self._end(key, "unfinished")

    def _move(self, handle: TurnHandle | None) -> None:
        self._moving = handle
        limited = handle is not None and self._context.registry.scheduler.has_limits
        self._context.stream.limiter = handle if limited else None

    def _upload(self, upload_id: str) -> _TrackedTransfer:
        transfer = self._open.get(upload_id)
        if transfer is None:
            upload = self._context.upload(upload_id)
            handle = self._context.join_upload(upload)
            transfer = _TrackedTransfer(Direction.UP, upload.spec.name, handle=handle)
            self._open[upload_id] = transfer
        return transfer

    def _downloaded(self, reply: m.GetReply) -> _TrackedTransfer:
        transfer = self._open.get(m.Get)
        if transfer is None or transfer.version != reply.version:
            self._end(m.Get, "unfinished")
            handle = self._context.join_transfer(
                reply.name, Direction.DOWN, reply.total, reply.offset
            )
            transfer = _TrackedTransfer(
                Direction.DOWN, reply.name, handle=handle, version=reply.version
            )
            self._open[m.Get] = transfer
        return transfer

    def _end_datagrams(self) -> None:
        if self._datagrams is None:
            return
        (transfer, conversation), self._datagrams = self._datagrams, None
        transfer.count += conversation.moved
        if transfer not in self._open.values():
            self._log(transfer, "ok" if conversation.done else "unfinished")

    def _end(self, key: str | type[m.Put | m.Get], outcome: str, count: int = 0) -> None:
        transfer = self._open.pop(key, None)
        if transfer is not None:
            transfer.count += count
            self._log(transfer, outcome)

    def _log(self, transfer: _TrackedTransfer, outcome: str) -> None:
        if transfer.handle is not None:
            transfer.handle.close()
        seconds = time.monotonic() - transfer.since
        fields = {
            "direction": transfer.direction,
            "name": transfer.name,
            "bytes": transfer.count,
            "seconds": round(seconds, 3),
            "rate": round(transfer.count / seconds) if seconds else 0,
            "outcome": outcome,
            **self._context.log_fields,
            "peer": self._context.peer,
        }
        self._context.registry.ended.add(transfer.direction, transfer.count, whole=outcome == "ok")
        log.info("transfer", extra={"fields": fields})
