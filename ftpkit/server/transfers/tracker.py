"""The transfers of one connection: how each moves, and one log line when it has ended."""

import logging
import time
from dataclasses import dataclass
from typing import Protocol

from ftpkit.errors import RefusedError
from ftpkit.protocol import messages as m
from ftpkit.scheduling.blocking import TurnHandle
from ftpkit.scheduling.rate_limit import Direction
from ftpkit.server.context import SessionContext

log = logging.getLogger("ftpkit.server")


class DatagramProgress(Protocol):
    """Blocks that travel as datagrams."""

    @property
    def moved(self) -> int:
        """Bytes of blocks that are over."""

    @property
    def done(self) -> bool:
        """Whether all of them are."""


@dataclass(slots=True, eq=False)
class _Tracked:
    direction: Direction
    name: str
    since: float
    handle: TurnHandle | None = None
    count: int = 0


class TransferTracker:
    """Follows the requests of one connection: its uploads by id, and the file it downloads.

    Tell it of each request before its body is read, of each piece of a body that has
    moved, and of what became of the request.
    """

    def __init__(self, context: SessionContext) -> None:
        self._context = context
        self._uploads: dict[str, _Tracked] = {}
        self._put: _Tracked | None = None
        self._download: tuple[str, _Tracked] | None = None
        self._row: tuple[_Tracked, DatagramProgress] | None = None
        self._moving: TurnHandle | None = None

    @property
    def downloading(self) -> bool:
        """Whether a file was asked for and its end was not."""
        return self._download is not None

    # What moves

    def arriving(self, request: m.Request) -> None:
        """Let the body of ``request`` move as part of its transfer."""
        match request:
            case m.Put():
                handle = self._context.registry.put(
                    self._context.account, self._context.peer, request.name, request.size
                )
                self._put = _Tracked(Direction.UP, request.name, time.monotonic(), handle)
                self._move(handle)
            case m.Write():
                self._move(self._upload(request.upload).handle)
            case _:
                self._move(None)

    def leaving(self, reply: m.Reply | m.Pending) -> None:
        """Let the body of ``reply`` move as part of its transfer."""
        if isinstance(reply, m.GetReply):
            self._move(self._downloaded(reply).handle)

    def passed(self, count: int) -> None:
        """Note that so many bytes of a body have moved."""
        if self._moving is not None:
            if self._context.stream.limiter is None:
                self._moving.release(count)
            # Limits may have come, or gone, on a running server.
            self._move(self._moving)

    def still(self) -> None:
        """Let what moves now move without turns."""
        self._move(None)

    def interrupt(self) -> None:
        """Let who waits for a turn wait no longer; safe from another thread."""
        handle = self._moving
        if handle is not None:
            handle.close()

    # What became of it

    def served(
        self,
        request: m.Request,
        reply: m.Reply | m.Pending,
        since: float,
        row: DatagramProgress | None = None,
    ) -> None:
        """Note a request that was answered; ``row`` is what a push or pull has begun."""
        if not isinstance(request, m.Ping):
            self._end_row()
        match request, reply:
            case m.Put(), m.FileReply():
                self._end_put(request.size, "ok")
            case m.Begin(), m.BeginReply():
                self._upload(reply.upload)
            case m.Write(), _:
                self._upload(request.upload).count += request.size
            case m.Commit(), m.FileReply():
                self._uploads.setdefault(request.upload, _Tracked(Direction.UP, reply.name, since))
                self._end_upload(request.upload, "ok")
            case m.Push(), _ if row is not None:
                self._row = self._upload(request.upload), row
            case m.Pull(), _ if row is not None:
                self._row = _Tracked(Direction.DOWN, request.name, since), row
            case m.Abort(), m.OkReply():
                self._end_upload(request.upload, "aborted")
            case m.Get(), m.GetReply():
                self._downloaded(reply).count += reply.size
                if reply.offset + reply.size == reply.total:
                    self._end_download("ok")
            case _:
                pass

    def refused(self, request: m.Request | None, refusal: RefusedError, since: float) -> None:
        """Note a request that was refused."""
        match request:
            case m.Put():
                self._end_put(0, refusal.code)
            case m.Get():
                self._log(_Tracked(Direction.DOWN, request.name, since), refusal.code)
            case m.Begin():
                self._log(_Tracked(Direction.UP, request.name, since), refusal.code)
            case _:
                pass

    def broken(self, request: m.Request | None, count: int, since: float) -> None:
        """Note a request in the middle of whose ``count`` bytes of body the connection ended."""
        match request:
            case m.Put():
                self._end_put(count, "unfinished")
            case m.Get():
                if self._download is None:
                    self._download = "", _Tracked(Direction.DOWN, request.name, since)
                self._download[1].count += count
            case _:
                pass

    def close(self) -> None:
        """Note that whatever is still running is not finished."""
        self._end_row()
        for upload in list(self._uploads):
            self._end_upload(upload, "unfinished")
        self._end_download("unfinished")

    def _move(self, handle: TurnHandle | None) -> None:
        self._moving = handle
        shaped = handle is not None and self._context.registry.scheduler.has_limits
        self._context.stream.limiter = handle if shaped else None

    def _upload(self, identity: str) -> _Tracked:
        running = self._uploads.get(identity)
        if running is None:
            context, upload = self._context, self._context.upload(identity)
            name = upload.spec.name
            handle = context.registry.upload(context.account, self._context.peer, upload)
            running = _Tracked(Direction.UP, name, time.monotonic(), handle)
            self._uploads[identity] = running
        return running

    def _downloaded(self, reply: m.GetReply) -> _Tracked:
        if self._download is None or self._download[0] != reply.version:
            self._end_download("unfinished")
            context = self._context
            handle = context.registry.download(
                context.account, self._context.peer, reply.name, reply.total, reply.offset
            )
            running = _Tracked(Direction.DOWN, reply.name, time.monotonic(), handle)
            self._download = reply.version, running
        return self._download[1]

    def _end_put(self, count: int, outcome: str) -> None:
        running, self._put = self._put, None
        if running is not None:
            running.count = count
            self._log(running, outcome)

    def _end_row(self) -> None:
        if self._row is None:
            return
        running, row = self._row
        self._row = None
        running.count += row.moved
        if running not in self._uploads.values():
            self._log(running, "ok" if row.done else "unfinished")

    def _end_download(self, outcome: str) -> None:
        if self._download is not None:
            self._log(self._download[1], outcome)
            self._download = None

    def _end_upload(self, upload: str, outcome: str) -> None:
        running = self._uploads.pop(upload, None)
        if running is not None:
            self._log(running, outcome)

    def _log(self, running: _Tracked, outcome: str) -> None:
        if running.handle is not None:
            running.handle.close()
        seconds = time.monotonic() - running.since
        fields = {
            "direction": running.direction,
            "name": running.name,
            "bytes": running.count,
            "seconds": round(seconds, 3),
            "rate": round(running.count / seconds) if seconds else 0,
            "outcome": outcome,
            **self._context.log_fields,
            "peer": self._context.peer,
        }
        ended = self._context.registry.ended
        ended.add(running.direction, running.count, whole=outcome == "ok")
        log.info("transfer", extra={"fields": fields})
