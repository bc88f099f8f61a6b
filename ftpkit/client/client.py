"""The client: one server, one conversation at a time, opened when it is needed."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self, TypeVar

from ftpkit.client.datagrams import Carrier, Udp
from ftpkit.client.link import Link
from ftpkit.client.retry import Backoff, OnRetry
from ftpkit.client.upload import OnProgress, Source, Upload
from ftpkit.errors import DamagedError, FtpkitError, ProtocolError
from ftpkit.net.address import Address
from ftpkit.net.pacing import Pace
from ftpkit.protocol.digest import digest_of
from ftpkit.protocol.messages import (
    MAX_PAGE,
    Delete,
    DigestOf,
    Done,
    Entry,
    List,
    ListReply,
    Mkdir,
    Named,
    Ping,
    Published,
    Rename,
    Stat,
    StatReply,
    entry_from_line,
)
from ftpkit.protocol.names import check_name

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """A file that was moved, whole and verified: ``total`` bytes in ``seconds``."""

    name: str
    path: str
    total: int
    seconds: float
    version: str
    content_digest: str | None


class Client:
    """Moves files to and from the server at ``url``.

    It connects with the first operation, keeps the conversation for the next
    ones, and connects again where that has ended. ``timeout_s`` is how long
    the server may move no byte; ``rate_bps`` limits both directions, in bytes
    a second. Every operation raises a FtpkitError where it fails: RefusedError
    for the server's no, CannotConnectError and LinkError for the connection,
    LocalFileError for files on this side. Threads take turns.

    ``put`` and ``get`` go on over new connections until there was no progress
    for ``retry_for_s``; their ``on_retry`` hears of each failure and of the
    wait that follows. ``memory`` is a directory in which digests of sent blocks are
    kept, so that an upload which is continued reads only what is new. With ``udp`` blocks
    travel as datagrams, which pays where loss or distance slows TCP down; where UDP is
    blocked, ``on_retry`` hears that, and they go on over TCP.
    """

    def __init__(
        self,
        url: str | Address = "ftpk://127.0.0.1",
        *,
        timeout_s: float = 30.0,
        rate_bps: float | None = None,
        retry_for_s: float = 0.0,
        memory: str | os.PathLike[str] | None = None,
        udp: Udp = Udp.NO,
    ) -> None:
        self.address = Address.parse(url) if isinstance(url, str) else url
        self._timeout_s = timeout_s
        self._pace = Pace(rate_bps) if rate_bps else None
        self._carrier = Carrier(udp, rate_bps)
        self._retry_for_s = retry_for_s
        self._memory = None if memory is None else os.fspath(memory)
        self._turn = threading.RLock()
        self._link: Link | None = None

    def put(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        *,
        overwrite: bool = True,
        on_progress: OnProgress | None = None,
        on_retry: OnRetry | None = None,
    ) -> Transfer:
        """Upload the file ``path`` as ``name`` (its own last part, if None).

        It appears under its name in one step, when all of it is there, verified and on
        stable storage. SourceChangedError says that somebody wrote to it meanwhile.
        """
        path = os.fspath(path)
        name = check_name(os.path.basename(path) if name is None else name)
        started = time.monotonic()
        backoff = self._backoff()
        with Source(path) as source:
            upload = Upload(
                source,
                name,
                overwrite=overwrite,
                memory=self._memory,
                on_progress=_watched(backoff, on_progress),
                on_retry=on_retry or _untold,
                carrier=self._carrier,
            )
            reply = self._persist(upload.run, backoff, on_retry)
        return Transfer(
            name=name,
            path=path,
            total=source.total,
            seconds=time.monotonic() - started,
            version=reply.version,
            content_digest=reply.content_digest,
        )

    def get(
        self,
        name: str,
        path: str | os.PathLike[str] | None = None,
        *,
        overwrite: bool = True,
        on_progress: OnProgress | None = None,
        on_retry: OnRetry | None = None,
    ) -> Transfer:
        """Download ``name`` to ``path``: a file, or a directory to put it into (here, if None).

        It appears at ``path`` in one step, when all of it is there and verified.
        """
        # Here, because a download is staged as on a server: nothing else needs all of storage/.
        from ftpkit.client.download import Download, Target

        check_name(name)
        path = os.curdir if path is None else os.fspath(path)
        if os.path.isdir(path):
            path = os.path.normpath(os.path.join(path, name.rpartition("/")[2]))
        started = time.monotonic()
        backoff = self._backoff()
        with Target(path, overwrite=overwrite) as target:
            progress = _watched(backoff, on_progress)
            download = Download(
                name,
                str(self.address),
                target,
                progress,
                on_retry or _untold,
                self._carrier,
            )
            reply, entry = self._persist(download.run, backoff, on_retry)
        return Transfer(
            name=name,
            path=path,
            total=reply.total,
            seconds=time.monotonic() - started,
            version=reply.version,
            content_digest=entry.content_digest,
        )

    def list(self, name: str = "", *, recursive: bool = False) -> Iterator[Entry]:
        """Yield what is in a directory, in the byte order of full names, page by page."""
        check_name(name, root=True)
        after: str | None = None
        while True:
            with self._conversation() as link:
                reply = link.ask(List(name=name, recursive=recursive, after=after), ListReply)
                if reply.size > MAX_PAGE:
                    raise ProtocolError("the server sent too long a page")
                page = link.stream.read_body()
                if digest_of(page, link.algorithm) != link.check_algorithm(reply.digest):
                    raise DamagedError("the list arrived damaged")
            for line in page.splitlines():
                yield entry_from_line(line)
            if reply.next is None:
                return
            if after is not None and reply.next.encode() <= after.encode():
                raise ProtocolError("the server's list does not get on")
            after = reply.next

    def stat(self, name: str = "") -> StatReply:
        """Tell what stands under ``name``."""
        check_name(name, root=True)
        with self._conversation() as link:
            return link.ask(Stat(name=name), StatReply)

    def mkdir(self, name: str) -> None:
        """Make a directory and its parents; an existing directory is fine."""
        check_name(name)
        with self._conversation() as link:
            link.ask(Mkdir(name=name), Named)

    def rename(self, name: str, to: str, *, overwrite: bool = False) -> None:
        """Move a file or directory."""
        check_name(name)
        check_name(to)
        with self._conversation() as link:
            link.ask(Rename(name=name, to=to, overwrite=overwrite), Named)

    def delete(self, name: str, *, recursive: bool = False) -> None:
        """Delete a file or an empty directory; with ``recursive`` also a full one."""
        check_name(name)
        with self._conversation() as link:
            link.ask(Delete(name=name, recursive=recursive), Named)

    def digest(self, name: str, algorithm: str | None = None) -> str:
        """Let the server read a file, and return the digest of its content."""
        check_name(name)
        with self._conversation() as link:
            reply = link.ask(DigestOf(name=name, digest=algorithm), Published)
        if reply.content_digest is None:
            raise ProtocolError("the server told no digest")
        return reply.content_digest

    def ping(self) -> float:
        """Return how many seconds a request and its reply take."""
        with self._conversation() as link:
            started = time.monotonic()
            link.ask(Ping(), Done)
            return time.monotonic() - started

    def close(self) -> None:
        """Hang up; the next operation connects again."""
        with self._turn:
            if self._link is not None:
                self._link.close()
                self._link = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _backoff(self) -> Backoff:
        return Backoff(self._retry_for_s)

    def _persist(self, work: Callable[[Link], T], backoff: Backoff, on_retry: OnRetry | None) -> T:
        """Do ``work``, over a new connection after each failure that may pass."""
        while True:
            try:
                with self._conversation() as link:
                    return work(link)
            except FtpkitError as error:
                backoff.wait(error, on_retry or _untold)

    @contextlib.contextmanager
    def _conversation(self) -> Iterator[Link]:
        """Have the conversation for oneself; after a failure that left it in the middle, end it."""
        with self._turn:
            if self._link is None or not self._link.usable:
                self.close()
                self._link = Link(self.address, timeout_s=self._timeout_s, pace=self._pace)
            try:
                yield self._link
            except FtpkitError:
                if not self._link.usable:
                    self.close()
                raise
            except BaseException:
                self.close()
                raise


def _watched(backoff: Backoff, on_progress: OnProgress | None) -> OnProgress:
    """Return what tells both of them how far a transfer is."""

    def moved(count: int, total: int) -> None:
        backoff.progress(count)
        if on_progress is not None:
            on_progress(count, total)

    return moved


def _untold(error: FtpkitError, delay: float) -> None:
    """Tell nobody of a retry."""
