"""The client: one server, and all that can be asked of it."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

from ftpkit.client.cancel import CancelToken
from ftpkit.client.connection import UrlProvider
from ftpkit.client.reconnect import ReconnectingConnection
from ftpkit.client.retry import Backoff, OnRetry
from ftpkit.client.transfer.upload import OnProgress, Source, Upload
from ftpkit.client.udp import UdpMode, UdpTransfer
from ftpkit.errors import CorruptDataError, FtpkitError, ProtocolError
from ftpkit.net.address import Address, Url
from ftpkit.net.token_bucket import TokenBucket
from ftpkit.protocol.codec import list_entry_from_json
from ftpkit.protocol.digest import digest_of
from ftpkit.protocol.messages import (
    MAX_PAGE,
    Delete,
    DigestRequest,
    FileReply,
    List,
    ListEntry,
    ListReply,
    Mkdir,
    NameReply,
    OkReply,
    Ping,
    Rename,
    Stat,
    StatReply,
    Status,
    StatusReply,
)
from ftpkit.protocol.names import check_name
from ftpkit.protocol.status import MAX_STATUS, ServerStatus, decode_status

if TYPE_CHECKING:
    from ftpkit.client.pool import Pool, TransferFuture


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferResult:
    """A file that was moved, whole and verified: ``total`` bytes in ``seconds``."""

    name: str
    path: str
    total: int
    seconds: float
    version: str
    content_digest: str | None


class Client:
    """Moves files to and from the server at ``url``: an address, a link, or what returns one.

    A link is ``ftpk://TOKEN:PIN@HOST:PORT``, as ``ftpkit serve`` prints it; what returns one is
    asked before each connection. Without a pin the system's authorities vouch for the server,
    and without pin and token one on this machine is spoken to without TLS, as it is everywhere
    over ``ftpk+plain://``.

    It connects with the first operation, keeps the conversation for the next
    ones, and connects again where that has ended. ``timeout_s`` is how long
    the server may move no byte; ``bytes_per_s`` limits both directions, in bytes
    a second. Every operation raises a FtpkitError where it fails: RefusedError
    for the server's no, CannotConnectError and ConnectionLostError for the connection,
    LocalFileError for files on this side. Threads take turns.

    ``submit_put`` and ``submit_get`` move files in the background, ``jobs`` at once, each
    over a connection of its own, and together within ``bytes_per_s``. Leaving the client's
    ``with`` block waits for them; leaving it by an exception cancels them.

    ``put`` and ``get`` go on over new connections until there was no progress
    for ``retry_for_s``; their ``on_retry`` hears of each failure and of the
    wait that follows. ``memory`` is a directory in which digests of sent blocks are
    kept, so that an upload which is continued reads only what is new. With ``udp`` blocks
    travel as datagrams, which pays where loss or distance slows TCP down; where UDP is
    blocked, ``on_retry`` hears that, and they go on over TCP.
    """

    def __init__(
        self,
        url: str | Url | Address | UrlProvider = "ftpk://127.0.0.1",
        *,
        timeout_s: float = 30.0,
        bytes_per_s: float | None = None,
        retry_for_s: float = 0.0,
        memory: str | os.PathLike[str] | None = None,
        udp: UdpMode = UdpMode.NO,
        jobs: int = 4,
    ) -> None:
        self._url_provider = _url_provider(url)
        self._timeout_s = timeout_s
        self._limiter = TokenBucket(bytes_per_s) if bytes_per_s else None
        self._udp_transfer = UdpTransfer(udp, bytes_per_s)
        self._retry_for_s = retry_for_s
        self._memory = None if memory is None else os.fspath(memory)
        if jobs < 1:
            raise ValueError("jobs is at least 1")
        self._jobs = jobs
        self._submitting = threading.Lock()
        self._pool: Pool | None = None
        self._connection = self._connect()

    def put(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        *,
        overwrite: bool = True,
        on_progress: OnProgress | None = None,
        on_retry: OnRetry | None = None,
    ) -> TransferResult:
        """Upload the file ``path`` as ``name`` (its own last part, if None).

        It appears under its name in one step, when all of it is there, verified and on
        stable storage. SourceChangedError says that somebody wrote to it meanwhile.
        """
        return self._put(self._connection, path, name, overwrite, on_progress, on_retry)

    def get(
        self,
        name: str,
        path: str | os.PathLike[str] | None = None,
        *,
        overwrite: bool = True,
        on_progress: OnProgress | None = None,
        on_retry: OnRetry | None = None,
    ) -> TransferResult:
        """Download ``name`` to ``path``: a file, or a directory to put it into (here, if None).

        It appears at ``path`` in one step, when all of it is there and verified.
        """
        return self._get(self._connection, name, path, overwrite, on_progress, on_retry)

    def submit_put(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        *,
        overwrite: bool = True,
        on_progress: OnProgress | None = None,
        on_retry: OnRetry | None = None,
    ) -> "TransferFuture[TransferResult]":
        """As ``put``, in the background: return at once the future of what that returns or raises.

        The callbacks are called in a thread of the transfer. Cancelled, it stops at its next
        piece; the same upload goes on there later.
        """
        work = partial(
            self._put,
            path=path,
            name=name,
            overwrite=overwrite,
            on_progress=on_progress,
            on_retry=on_retry,
        )
        return self._submit(work)

    def submit_get(
        self,
        name: str,
        path: str | os.PathLike[str] | None = None,
        *,
        overwrite: bool = True,
        on_progress: OnProgress | None = None,
        on_retry: OnRetry | None = None,
    ) -> "TransferFuture[TransferResult]":
        """As ``get``, in the background, as ``submit_put`` does it."""
        work = partial(
            self._get,
            name=name,
            path=path,
            overwrite=overwrite,
            on_progress=on_progress,
            on_retry=on_retry,
        )
        return self._submit(work)

    def list(self, name: str = "", *, recursive: bool = False) -> Iterator[ListEntry]:
        """Yield what is in a directory, in the byte order of full names, page by page."""
        check_name(name, root=True)
        after: str | None = None
        while True:
            with self._connection.acquire() as connection:
                reply = connection.request(
                    List(name=name, recursive=recursive, after=after), ListReply
                )
                if reply.size > MAX_PAGE:
                    raise ProtocolError("the server sent too long a page")
                page = connection.stream.read_body()
                if digest_of(page, connection.algorithm) != connection.check_algorithm(
                    reply.digest
                ):
                    raise CorruptDataError("the list arrived damaged")
            for line in page.splitlines():
                yield list_entry_from_json(line)
            if reply.next is None:
                return
            if after is not None and reply.next.encode() <= after.encode():
                raise ProtocolError("the server's list does not get on")
            after = reply.next

    def stat(self, name: str = "") -> StatReply:
        """Tell what stands under ``name``."""
        check_name(name, root=True)
        with self._connection.acquire() as connection:
            return connection.request(Stat(name=name), StatReply)

    def mkdir(self, name: str) -> None:
        """Make a directory and its parents; an existing directory is fine."""
        check_name(name)
        with self._connection.acquire() as connection:
            connection.request(Mkdir(name=name), NameReply)

    def rename(self, name: str, to: str, *, overwrite: bool = False) -> None:
        """Move a file or directory."""
        check_name(name)
        check_name(to)
        with self._connection.acquire() as connection:
            connection.request(Rename(name=name, to=to, overwrite=overwrite), NameReply)

    def delete(self, name: str, *, recursive: bool = False) -> None:
        """Delete a file or an empty directory; with ``recursive`` also a full one."""
        check_name(name)
        with self._connection.acquire() as connection:
            connection.request(Delete(name=name, recursive=recursive), NameReply)

    def digest(self, name: str, algorithm: str | None = None) -> str:
        """Let the server read a file, and return the digest of its content."""
        check_name(name)
        with self._connection.acquire() as connection:
            reply = connection.request(DigestRequest(name=name, digest=algorithm), FileReply)
        if reply.content_digest is None:
            raise ProtocolError("the server told no digest")
        return reply.content_digest

    def ping(self) -> float:
        """Return how many seconds a request and its reply take."""
        with self._connection.acquire() as connection:
            started = time.monotonic()
            connection.request(Ping(), OkReply)
            return time.monotonic() - started

    def status(self) -> ServerStatus:
        """Tell what the server does now: a dict with the keys that WIRE.md, section 6, lists."""
        with self._connection.acquire() as connection:
            reply = connection.request(Status(), StatusReply)
            if reply.size > MAX_STATUS:
                raise ProtocolError("the server sent too long a status")
            return decode_status(connection.stream.read_body())

    def close(self, *, cancel_futures: bool = False) -> None:
        """Wait for what was submitted, and hang up; the next operation connects again.

        With ``cancel_futures`` what was submitted is cancelled first.
        """
        with self._submitting:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close(cancel_futures=cancel_futures)
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.close(cancel_futures=kind is not None)

    @property
    def address(self) -> Address:
        """Where the server is."""
        return self._url_provider().address

    def _connect(self) -> ReconnectingConnection:
        return ReconnectingConnection(
            self._url_provider, timeout_s=self._timeout_s, limiter=self._limiter
        )

    def _submit(
        self, work: Callable[[ReconnectingConnection], TransferResult]
    ) -> "TransferFuture[TransferResult]":
        # Here, because a client that never submits should not wait for it.
        from ftpkit.client.pool import Pool

        with self._submitting:
            if self._pool is None:
                self._pool = Pool(self._jobs, self._connect)
            return self._pool.submit(work)

    def _put(
        self,
        reconnecting: ReconnectingConnection,
        path: str | os.PathLike[str],
        name: str | None,
        overwrite: bool,
        on_progress: OnProgress | None,
        on_retry: OnRetry | None,
    ) -> TransferResult:
        path = os.fspath(path)
        name = check_name(os.path.basename(path) if name is None else name)
        on_retry = on_retry or _untold
        started = time.monotonic()
        backoff = self._backoff(reconnecting)
        with Source(path) as source:
            upload = Upload(
                source,
                name,
                overwrite=overwrite,
                memory=self._memory,
                on_progress=_watched(backoff, reconnecting.cancel_token, on_progress),
                on_retry=on_retry,
                udp_transfer=self._udp_transfer,
            )
            reply = reconnecting.run(upload.run, backoff, on_retry)
        return TransferResult(
            name=name,
            path=path,
            total=source.total,
            seconds=time.monotonic() - started,
            version=reply.version,
            content_digest=reply.content_digest,
        )

    def _get(
        self,
        reconnecting: ReconnectingConnection,
        name: str,
        path: str | os.PathLike[str] | None,
        overwrite: bool,
        on_progress: OnProgress | None,
        on_retry: OnRetry | None,
    ) -> TransferResult:
        # Here, because a download is staged as on a server: nothing else needs all of storage/.
        from ftpkit.client.transfer.download import Download, DownloadTarget

        check_name(name)
        path = os.curdir if path is None else os.fspath(path)
        if os.path.isdir(path):
            path = os.path.normpath(os.path.join(path, name.rpartition("/")[2]))
        on_retry = on_retry or _untold
        started = time.monotonic()
        backoff = self._backoff(reconnecting)
        with DownloadTarget(path, overwrite=overwrite) as target:
            progress = _watched(backoff, reconnecting.cancel_token, on_progress)
            download = Download(
                name, str(self.address), target, progress, on_retry, self._udp_transfer
            )
            reply, entry = reconnecting.run(download.run, backoff, on_retry)
        return TransferResult(
            name=name,
            path=path,
            total=reply.total,
            seconds=time.monotonic() - started,
            version=reply.version,
            content_digest=entry.content_digest,
        )

    def _backoff(self, reconnecting: ReconnectingConnection) -> Backoff:
        return Backoff(self._retry_for_s, sleep=reconnecting.cancel_token.sleep)


def _url_provider(url: str | Url | Address | UrlProvider) -> UrlProvider:
    if callable(url):
        return url
    if isinstance(url, str):
        url = Url.parse(url)
    elif isinstance(url, Address):
        url = Url(url)
    return lambda: url


def _watched(
    backoff: Backoff, cancel_token: CancelToken, on_progress: OnProgress | None
) -> OnProgress:
    """Return what tells all of them how far a transfer is, and ends it when it is to stop."""

    def moved(count: int, total: int) -> None:
        cancel_token.check()
        backoff.progress(count)
        if on_progress is not None:
            on_progress(count, total)

    return moved


def _untold(error: FtpkitError, delay: float) -> None:
    """Tell nobody of a retry."""
