"""One log line for each transfer, however many requests it takes."""

import logging
import time
from dataclasses import dataclass
from typing import Protocol

from ftpkit.errors import RefusedError
from ftpkit.protocol import messages as m

log = logging.getLogger("ftpkit.server")


class Row(Protocol):
    """Blocks that travel as datagrams."""

    @property
    def moved(self) -> int:
        """Bytes of blocks that are over."""

    @property
    def done(self) -> bool:
        """Whether all of them are."""


@dataclass(slots=True, eq=False)
class _Running:
    name: str
    since: float
    count: int = 0


class Transfers:
    """Follows the requests of one connection: its uploads by id, and the file it downloads."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._uploads: dict[str, _Running] = {}
        self._download: tuple[str, _Running] | None = None
        self._row: tuple[_Running, Row] | None = None

    @property
    def downloading(self) -> bool:
        """Whether a file was asked for and its end was not."""
        return self._download is not None

    def served(
        self, request: m.Request, reply: m.Reply | m.Pending, since: float, row: Row | None = None
    ) -> None:
        """Note a request that was answered; ``row`` is what a push or pull has begun."""
        if not isinstance(request, m.Ping):
            self._end_row()
        match request, reply:
            case m.Put(), m.Published():
                self._log("up", _Running(request.name, since, request.size), "ok")
            case m.Begin(), m.BeginReply():
                self._uploads.setdefault(reply.upload, _Running(request.name, since))
            case m.Write(), _:
                running = self._uploads.setdefault(
                    request.upload, _Running(f"upload {request.upload}", since)
                )
                running.count += request.size
            case m.Commit(), m.Published():
                self._uploads.setdefault(request.upload, _Running(reply.name, since))
                self._end_upload(request.upload, "ok")
            case m.Push(), _ if row is not None:
                upload = self._uploads.setdefault(
                    request.upload, _Running(f"upload {request.upload}", since)
                )
                self._row = upload, row
            case m.Pull(), _ if row is not None:
                self._row = _Running(request.name, since), row
            case m.Abort(), m.Done():
                self._end_upload(request.upload, "aborted")
            case m.Get(), m.GetReply():
                self._downloaded(reply, since)
            case _:
                pass

    def refused(self, request: m.Request | None, refusal: RefusedError, since: float) -> None:
        """Note a request that was refused."""
        match request:
            case m.Put():
                self._log("up", _Running(request.name, since), refusal.code)
            case m.Get():
                self._log("down", _Running(request.name, since), refusal.code)
            case m.Begin():
                self._log("up", _Running(request.name, since), refusal.code)
            case _:
                pass

    def broken(self, request: m.Request | None, count: int, since: float) -> None:
        """Note a request in the middle of whose ``count`` bytes of body the connection ended."""
        match request:
            case m.Put():
                self._log("up", _Running(request.name, since, count), "unfinished")
            case m.Get():
                if self._download is None:
                    self._download = "", _Running(request.name, since)
                self._download[1].count += count
            case _:
                pass

    def close(self) -> None:
        """Note that whatever is still running is not finished."""
        self._end_row()
        for upload in list(self._uploads):
            self._end_upload(upload, "unfinished")
        self._end_download("unfinished")

    def _downloaded(self, reply: m.GetReply, since: float) -> None:
        if self._download is None or self._download[0] != reply.version:
            self._end_download("unfinished")
            self._download = reply.version, _Running(reply.name, since)
        self._download[1].count += reply.size
        if reply.offset + reply.size == reply.total:
            self._end_download("ok")

    def _end_row(self) -> None:
        if self._row is None:
            return
        running, row = self._row
        self._row = None
        running.count += row.moved
        if running not in self._uploads.values():
            self._log("down", running, "ok" if row.done else "unfinished")

    def _end_download(self, outcome: str) -> None:
        if self._download is not None:
            self._log("down", self._download[1], outcome)
            self._download = None

    def _end_upload(self, upload: str, outcome: str) -> None:
        running = self._uploads.pop(upload, None)
        if running is not None:
            self._log("up", running, outcome)

    def _log(self, direction: str, running: _Running, outcome: str) -> None:
        seconds = time.monotonic() - running.since
        fields = {
            "direction": direction,
            "name": running.name,
            "bytes": running.count,
            "seconds": round(seconds, 3),
            "rate": round(running.count / seconds) if seconds else 0,
            "outcome": outcome,
            "peer": self._peer,
        }
        log.info("transfer", extra={"fields": fields})
