"""The process that sends one file in one way, says what became of it, and removes it again."""

import contextlib
import json
import math
import os
import sys
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import Final, Self

from ftpkit.client.connection import Connection
from ftpkit.client.digest_cache import DigestCache
from ftpkit.client.transfer.blocks import BLOCK
from ftpkit.client.transfer.source import Source
from ftpkit.client.transfer.upload import BlockUpload
from ftpkit.compare.strategies import (
    Connections,
    RawUdpStrategy,
    Strategy,
    TcpStrategy,
    UdpStrategy,
)
from ftpkit.compare.tcp_info import congestion_of
from ftpkit.errors import FtpkitError
from ftpkit.net.address import Url
from ftpkit.protocol.messages import Delete, FileReply, NameReply

# How often the first byte is looked for, and how long cleaning up may take.
_GRAIN_S: Final = 0.001
_CLEANING_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Send the file ``path`` to the server that ``link`` leads to, as ``name``.

    Over ``streams`` connections, under a ``congestion`` control if one is named; if that
    is 0, as datagrams: at ``raw_bps`` bytes a second and never again (0: as fast as
    possible), or repaired if that is None. After ``limit_s`` seconds it is broken off.
    """

    url: str
    path: str
    name: str
    limit_s: float
    streams: int = 0
    congestion: str | None = None
    raw_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of a job: ``bytes`` of the file arrived within ``seconds``.

    Times count from before the first connection is opened. ``first_byte_s`` is None if
    none arrived, and the bytes that left are None where nobody tells. ``verified`` says
    that the server has published the file, whole and checked; ``stopped`` that the job was
    broken off, and ``error``, in a sentence, why it failed before. ``congestion`` names
    what TCP used.
    """

    bytes: int
    seconds: float
    first_byte_s: float | None
    sent_bytes: int | None
    resent_bytes: int | None
    lost_bytes: int | None
    verified: bool
    client_cpu_s: float
    congestion: str | None
    stopped: bool
    error: str | None


def main(job: str) -> None:
    """Do the job that a JSON object describes, and print its result as another.

    The end of standard input breaks it off; even then nothing is left on the server.
    """
    result = _Attempt(Job(**json.loads(job))).run()
    with contextlib.suppress(BrokenPipeError):  # nobody is there to be told
        sys.stdout.write(json.dumps(asdict(result)) + "\n")
        sys.stdout.flush()


class _Attempt:
    """One upload: how far it came, and what it took."""

    def __init__(self, job: Job) -> None:
        self._job, self._url = job, Url.parse(job.url)
        self._connections = Connections(self._url, job.congestion)
        self._sources = ExitStack()
        self._strategy = self._choose()
        # Shared by all rows, so that the first knows what the others have sent.
        self._digest_cache: DigestCache | None = None
        self._last_byte_at: float | None = None
        self._congestion: str | None = None
        self._verified = False
        self._error: str | None = None

    def run(self) -> Result:
        """Send, measure, clean up."""
        cpu_s = time.process_time()
        watch = _Watchdog(self._strategy, self._connections, self._job.limit_s)
        with Source(self._job.path) as source, closing(self._connections), self._sources:
            with watch:
                try:
                    self._send(source)
                # OSError: a socket that is broken off between two calls.
                except (FtpkitError, OSError) as error:
                    self._error = str(error)
            result = self._result(source.total, watch, time.process_time() - cpu_s)
            # What they still hold back must not leave beside what comes next.
            self._connections.close()
            self._clean_up(source)
        return result

    def _choose(self) -> Strategy:
        if self._job.streams:
            return TcpStrategy(self._connections, self._job.streams, self._join)
        if self._job.raw_bytes_per_s is None:
            return UdpStrategy()
        return RawUdpStrategy(self._job.raw_bytes_per_s or math.inf)

    def _send(self, source: Source) -> None:
        connection = self._connections.open()
        self._congestion = congestion_of(connection.sock) if self._job.streams else None
        upload = self._new_upload(connection, source)
        upload.begin()
        self._last_byte_at = self._strategy.move(connection, upload)
        if self._job.raw_bytes_per_s is None:
            source.check_unchanged()
            connection.request(upload.commit(), FileReply)
            self._verified = True

    def _new_upload(self, connection: Connection, source: Source) -> BlockUpload:
        if self._digest_cache is None:
            self._digest_cache = DigestCache(
                None, source.status, block=BLOCK, algorithm=connection.algorithm
            )
        return BlockUpload(
            connection,
            source,
            self._job.name,
            self._digest_cache,
            lambda moved, total: None,
            overwrite=True,
        )

    def _join(self, connection: Connection, first: BlockUpload) -> BlockUpload:
        """Return another row of the upload that ``first`` has begun."""
        upload = self._new_upload(connection, self._sources.enter_context(Source(self._job.path)))
        upload.upload = first.upload
        return upload

    def _result(self, total: int, watch: "_Watchdog", cpu_s: float) -> Result:
        ended_at = self._last_byte_at or time.monotonic()
        repaired = self._job.raw_bytes_per_s is None and self._last_byte_at is not None
        moved = total if repaired else min(self._strategy.moved, total)
        # The watch may come to look when all is over.
        first_byte_at = min(watch.first_byte_at or ended_at, ended_at) if moved else None
        traffic = self._strategy.traffic()
        return Result(
            bytes=moved,
            seconds=ended_at - watch.started,
            first_byte_s=None if first_byte_at is None else first_byte_at - watch.started,
            sent_bytes=traffic.sent,
            resent_bytes=traffic.resent,
            lost_bytes=traffic.lost,
            verified=self._verified,
            client_cpu_s=cpu_s,
            congestion=self._congestion,
            stopped=watch.stopped,
            error=None if watch.stopped else self._error,
        )

    def _clean_up(self, source: Source) -> None:
        """Remove the file, and what may be there of an unfinished upload."""
        with (
            contextlib.suppress(FtpkitError),
            closing(Connections(self._url, None)) as connections,
        ):
            connection = connections.open()
            if not self._verified:
                # Perhaps only the reply to a request was lost: it is begun again to be aborted.
                upload = self._new_upload(connection, source)
                upload.begin()
                upload.abort()
            connection.request(Delete(name=self._job.name), NameReply)


class _Watchdog:
    """Follows an upload from another thread, and breaks it off when its time is up.

    So does the end of standard input, for then nobody waits for it any more.
    """

    def __init__(self, strategy: Strategy, connections: Connections, limit_s: float) -> None:
        self.started = time.monotonic()
        self.first_byte_at: float | None = None
        self.stopped = False
        """Whether it broke the upload off."""
        self._strategy, self._connections, self._limit_s = strategy, connections, limit_s
        self._woken = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        threading.Thread(target=self._listen, daemon=True).start()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended = True
        self._woken.set()
        self._thread.join()

    def _listen(self) -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        self._woken.set()
        # Somebody waits for our end: not longer than this.
        time.sleep(_CLEANING_S)
        os._exit(1)

    def _run(self) -> None:
        deadline = self.started + self._limit_s
        while (left_s := deadline - time.monotonic()) > 0:
            looking = self.first_byte_at is None
            if self._woken.wait(min(left_s, _GRAIN_S) if looking else left_s):
                break
            if looking and self._strategy.moved > 0:
                self.first_byte_at = time.monotonic()
        if not self._ended:
            self.stopped = True
            self._connections.stop()
