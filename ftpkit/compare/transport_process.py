"""The process that sends one file with one transport, reports the outcome and cleans up."""

import contextlib
import json
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
from ftpkit.compare.connections import Connections
from ftpkit.compare.strategies import TcpStrategy, UdpStrategy
from ftpkit.compare.tcp_info import congestion_of
from ftpkit.errors import FtpkitError
from ftpkit.lab.child import reply
from ftpkit.net.address import Url
from ftpkit.protocol.messages import Delete, FileReply, NameReply

# How precisely the time of the first byte is measured, and the most that cleaning up may take.
_GRAIN_S: Final = 0.001
_CLEANING_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Transport:
    """A way to send a file.

    Over ``streams`` TCP connections, with a ``congestion`` control other than the default if
    given. Without streams, over UDP: unrepaired at ``raw_bytes_per_s``, or repaired if None.
    """

    name: str
    streams: int = 0
    congestion: str | None = None
    raw_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Upload the file ``path`` as ``name`` to the server at ``url``, within ``limit_s`` seconds."""

    transport: Transport
    url: str
    path: str
    name: str
    limit_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportResult:
    """What one transport took to upload the file.

    ``bytes`` of the file arrived; ``seconds`` passed from opening the first connection until
    the server held the last of them, ``first_byte_s`` until it held the first.
    ``goodput_bits_per_s`` counts bits of the file, ``sent_bytes`` all that was sent,
    ``resent_bytes`` what was sent again and ``lost_bytes`` what never arrived; None where
    unknown, as the loss of TCP. CPU times include publishing and removing the file; the server's
    is known only for our own. ``verified``: the file was published, complete and verified.
    ``stopped``: the time limit was reached first; ``error``: the reason for another failure.
    ``congestion`` is TCP's congestion control.
    """

    transport: str
    bytes: int
    seconds: float
    first_byte_s: float | None
    goodput_bits_per_s: float
    sent_bytes: int | None
    resent_bytes: int | None
    lost_bytes: int | None
    verified: bool
    client_cpu_s: float
    server_cpu_s: float | None
    congestion: str | None
    stopped: bool
    error: str | None


def main(job: str) -> None:
    """Run ``job``, a ``Job`` in JSON, and print its ``TransportResult`` in JSON.

    The end of standard input cancels it; the server is cleaned up even then.
    """
    fields = json.loads(job)
    outcome = _Attempt(Job(**fields | {"transport": Transport(**fields["transport"])})).run()
    with contextlib.suppress(BrokenPipeError):  # the parent has exited
        reply(asdict(outcome))


class _Attempt:
    def __init__(self, job: Job) -> None:
        self._job, self._transport, self._url = job, job.transport, Url.parse(job.url)
        self._connections = Connections(self._url, job.transport.congestion)
        self._sources = ExitStack()
        self._strategy: TcpStrategy | UdpStrategy = (
            TcpStrategy(self._connections, self._transport.streams, self._join)
            if self._transport.streams
            else UdpStrategy(self._transport.raw_bytes_per_s)
        )
        # Shared by the streams, so that the first need not read what the others sent.
        self._digest_cache: DigestCache | None = None
        self._last_byte_at: float | None = None
        self._congestion: str | None = None
        self._verified = False
        self._error: str | None = None

    def run(self) -> TransportResult:
        cpu_s = time.process_time()
        watchdog = _Watchdog(self._strategy, self._connections, self._job.limit_s)
        with Source(self._job.path) as source, closing(self._connections), self._sources:
            with watchdog:
                try:
                    self._send(source)
                # OSError: a socket that was closed between two calls.
                except (FtpkitError, OSError) as error:
                    self._error = str(error)
            outcome = self._outcome(source.total, watchdog, time.process_time() - cpu_s)
            # Buffered data must not disturb the clean-up or the next transport.
            self._connections.close()
            self._clean_up(source)
        return outcome

    def _send(self, source: Source) -> None:
        connection = self._connections.open()
        self._congestion = congestion_of(connection.sock) if self._transport.streams else None
        upload = self._new_upload(connection, source)
        upload.begin()
        self._last_byte_at = self._strategy.move(connection, upload)
        if self._transport.raw_bytes_per_s is None:
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
        """Return another stream of the upload that ``first`` has begun."""
        upload = self._new_upload(connection, self._sources.enter_context(Source(self._job.path)))
        upload.upload = first.upload
        return upload

    def _outcome(self, total: int, watchdog: "_Watchdog", cpu_s: float) -> TransportResult:
        ended_at = self._last_byte_at or time.monotonic()
        repaired = self._transport.raw_bytes_per_s is None and self._last_byte_at is not None
        moved = total if repaired else min(self._strategy.moved, total)
        # The watchdog may notice the first byte after the last.
        first_byte_at = min(watchdog.first_byte_at or ended_at, ended_at) if moved else None
        seconds = ended_at - watchdog.started
        return TransportResult(
            transport=self._transport.name,
            bytes=moved,
            seconds=seconds,
            first_byte_s=None if first_byte_at is None else first_byte_at - watchdog.started,
            goodput_bits_per_s=moved * 8 / seconds,
            **self._strategy.traffic()._asdict(),
            verified=self._verified,
            client_cpu_s=cpu_s,
            server_cpu_s=None,
            congestion=self._congestion,
            stopped=watchdog.stopped,
            error=None if watchdog.stopped else self._error,
        )

    def _clean_up(self, source: Source) -> None:
        """Remove the file or the unfinished upload from the server."""
        with contextlib.suppress(FtpkitError), closing(Connections(self._url)) as connections:
            connection = connections.open()
            if not self._verified:
                # The upload's id may not have arrived, so begin it again to abort it.
                upload = self._new_upload(connection, source)
                upload.begin()
                upload.abort()
            connection.request(Delete(name=self._job.name), NameReply)


class _Watchdog:
    """Watches an upload from another thread; stops it at the time limit.

    Also at the end of standard input, when the parent no longer waits.
    """

    def __init__(
        self, strategy: TcpStrategy | UdpStrategy, connections: Connections, limit_s: float
    ) -> None:
        self.started = time.monotonic()
        self.first_byte_at: float | None = None
        self.stopped = False
        """Whether it stopped the upload."""
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
        # The parent waits for our exit, but not longer than this.
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
