"""The client: every operation on one server."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self, TypeAlias, TypedDict, Unpack

from ftpkit.client.connection import R, UrlProvider
from ftpkit.client.dial import Dialer
from ftpkit.client.reconnect import ReconnectingConnection
from ftpkit.client.retry import Backoff, OnRetry
from ftpkit.client.transfer.blocks import OnProgress
from ftpkit.client.transfer.source import Source
from ftpkit.client.transfer.udp import UdpMode, UdpTransfer
from ftpkit.client.transfer.upload import Upload
from ftpkit.errors import CorruptDataError, LocalFileError, ProtocolError
from ftpkit.net.address import Address, Url
from ftpkit.net.token_bucket import TokenBucket
from ftpkit.protocol import messages as m
from ftpkit.protocol.codec import list_entry_from_json
from ftpkit.protocol.digest import digest_of
from ftpkit.protocol.names import check_name
from ftpkit.protocol.status import MAX_STATUS, ServerStatus, decode_status

if TYPE_CHECKING:
    from ftpkit.client.pool import Pool, TransferFuture
    from ftpkit.client.transfer.download import Download

StrPath: TypeAlias = str | os.PathLike[str]


class TransferOptions(TypedDict, total=False):
    """The options of ``Client.put`` and ``Client.get``."""

    overwrite: bool
    on_progress: OnProgress | None
    on_retry: OnRetry | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferResult:
    """A completed, verified transfer of ``total`` bytes between ``name`` and the local ``path``.

    ``moved`` of them were transferred now, in ``seconds``; the rest was there already.
    ``content_digest`` is None if the server has none for the file.
    """

    name: str
    path: str
    total: int
    moved: int
    seconds: float
    version: str
    content_digest: str | None


class Client:
    """Transfers files to and from the server at ``url``, and manages the files there.

    ``url`` is a login URL, ``ftpk://TOKEN:PIN@HOST:PORT``, as ``ftpkit serve`` prints it; an
    address; or a function that returns a Url, which is called before each connection.
    Without a pin the server's certificate must be valid under the system's authorities. A
    ``ftpk+plain://`` URL, and a server on this computer without pin and token, use no TLS.

    The client connects on first use, keeps the connection, and connects again after it was
    lost. ``timeout_s`` is how long the server may transfer no byte; ``bytes_per_s`` limits each
    direction. Every operation raises a FtpkitError: RefusedError for a refusal of the server,
    CannotConnectError and ConnectionLostError for the connection, LocalFileError for local
    files. Threads may share a client; their operations run one after the other.

    ``submit_put`` and ``submit_get`` transfer files in the background, up to ``jobs`` at once,
    each over its own connection, and all within ``bytes_per_s``. The end of the client's
    ``with`` block waits for them; an exception that leaves the block cancels them.

    ``put`` and ``get`` retry over new connections until there was no progress for
    ``retry_for_s`` seconds; ``on_retry`` is called with each error and the seconds to the next
    try. ``digest_cache`` is a directory for the digests of sent blocks: with it a resumed
    upload reads only the blocks that are missing. ``udp`` sends blocks as datagrams, which is
    faster on paths with loss or a long delay; where UDP is blocked, ``on_retry`` is called and
    the transfer continues over TCP.
    """

    def __init__(
        self,
        url: str | Url | Address | UrlProvider = "ftpk://127.0.0.1",
        *,
        timeout_s: float = 30.0,
        bytes_per_s: float | None = None,
        retry_for_s: float = 0.0,
        digest_cache: StrPath | None = None,
        udp: UdpMode = UdpMode.NO,
        jobs: int = 4,
    ) -> None:
        if jobs < 1:
            raise ValueError("jobs must be at least 1")
        self._url_provider = _url_provider(url)
        self._timeout_s = timeout_s
        self._dialer = Dialer()
        self._limiter = TokenBucket(bytes_per_s) if bytes_per_s else None
        self._udp_transfer = UdpTransfer(udp, bytes_per_s)
        self._retry_for_s = retry_for_s
        self._digest_cache = None if digest_cache is None else os.fspath(digest_cache)
        self._jobs = jobs
        self._pool_lock = threading.Lock()
        self._pool: Pool | None = None
        self._connection = self._connect()

    def put(
        self,
        path: StrPath,
        name: str | None = None,
        *,
        overwrite: bool = True,
        on_progress: OnProgress | None = None,
        on_retry: OnRetry | None = None,
    ) -> TransferResult:
        """Upload the file ``path`` as ``name``, by default the last part of the path.

        The file is published atomically once all of it is verified and on stable storage.
        ``on_progress`` is called with the bytes moved and the total. Raises SourceChangedError
        if the file is written to meanwhile, RefusedError ``exists`` if it may not ``overwrite``.
        """
        path = os.fspath(path)
        name = check_name(os.path.basename(path) if name is None else name)
        with Source(path) as source:
            upload = partial(
                Upload,
                source,
                name,
                overwrite=overwrite,
                digest_cache=self._digest_cache,
                udp_transfer=self._udp_transfer,
            )
            return self._run(upload, path, on_progress, on_retry)

    def get(
        self,
        name: str,
        path: StrPath | None = None,
        *,
        overwrite: bool = True,
        on_progress: OnProgress | None = None,
        on_retry: OnRetry | None = None,
    ) -> TransferResult:
        """Download ``name`` to ``path``, a file or a directory; by default the current one.

        A ``path`` that ends in "/" is a directory, which is made if it is missing.
        The file appears at ``path`` atomically once all of it is verified. ``on_progress`` is
        called as by ``put``. Raises LocalFileError if it may not ``overwrite``.
        """
        # Imported here: only a download needs storage/, with which it stages its blocks.
        from ftpkit.client.transfer.download import Download
        from ftpkit.client.transfer.target import DownloadTarget

        check_name(name)
        path = os.curdir if path is None else os.fspath(path)
        if path.endswith(os.sep):
            try:
                os.makedirs(path, exist_ok=True)
            except OSError as error:
                raise LocalFileError(f"cannot make {path!r}: {error.strerror or error}") from None
        if os.path.isdir(path):
            path = os.path.normpath(os.path.join(path, name.rpartition("/")[2]))
        with DownloadTarget(path, overwrite=overwrite) as target:
            download = partial(
                Download, name, str(self.address), target, udp_transfer=self._udp_transfer
            )
            return self._run(download, path, on_progress, on_retry)

    def submit_put(
        self, path: StrPath, name: str | None = None, **options: Unpack[TransferOptions]
    ) -> "TransferFuture[TransferResult]":
        """Start ``put`` in the background, and return its future.

        The callbacks are called in a thread of the transfer. A cancelled transfer stops at its
        next read or write, and the same upload resumes there later.
        """
        return self._submit(lambda client: client.put(path, name, **options))

    def submit_get(
        self, name: str, path: StrPath | None = None, **options: Unpack[TransferOptions]
    ) -> "TransferFuture[TransferResult]":
        """Start ``get`` in the background, as ``submit_put`` starts ``put``."""
        return self._submit(lambda client: client.get(name, path, **options))

    def list(self, name: str = "", *, recursive: bool = False) -> Iterator[m.ListEntry]:
        """Yield the entries of a directory, by default the root, in the byte order of their names.

        CorruptDataError: a page does not match its digest.
        """
        check_name(name, root=True)
        after: str | None = None
        while True:
            with self._connection.acquire() as connection:
                reply = connection.request(
                    m.List(name=name, recursive=recursive, after=after), m.ListReply
                )
                if reply.size > m.MAX_PAGE:
                    raise ProtocolError(f"invalid list reply: more than {m.MAX_PAGE:,} bytes")
                page = connection.stream.read_body()
                expected = connection.check_algorithm(reply.digest)
                if digest_of(page, connection.algorithm) != expected:
                    raise CorruptDataError("the list does not match its digest: repeat the command")
            yield from map(list_entry_from_json, page.splitlines())
            if reply.next is None:
                return
            if after is not None and reply.next.encode() <= after.encode():
                raise ProtocolError("invalid list reply: the page cursor did not advance")
            after = reply.next

    def stat(self, name: str = "") -> m.StatReply:
        """Return the kind, size, times and version of ``name``; by default of the root."""
        check_name(name, root=True)
        return self._request(m.Stat(name=name), m.StatReply)

    def mkdir(self, name: str) -> None:
        """Create a directory and its parents; it may exist."""
        check_name(name)
        self._request(m.Mkdir(name=name), m.NameReply)

    def rename(self, name: str, to: str, *, overwrite: bool = False) -> None:
        """Rename or move a file or directory; ``to`` is replaced only with ``overwrite``."""
        check_name(name)
        check_name(to)
        self._request(m.Rename(name=name, to=to, overwrite=overwrite), m.NameReply)

    def delete(self, name: str, *, recursive: bool = False) -> None:
        """Delete a file or an empty directory; with ``recursive`` also one with content."""
        check_name(name)
        self._request(m.Delete(name=name, recursive=recursive), m.NameReply)

    def digest(self, name: str, algorithm: str | None = None) -> str:
        """Have the server read a file; return its digest as "ALGORITHM:HEX".

        ``algorithm`` is "blake3" or "sha256"; None is the connection's.
        """
        check_name(name)
        reply = self._request(m.DigestRequest(name=name, digest=algorithm), m.FileReply)
        if reply.content_digest is None:
            raise ProtocolError("invalid digest reply: it has no digest")
        return reply.content_digest

    def ping(self) -> float:
        """Return the round-trip time of a request, in seconds."""
        with self._connection.acquire() as connection:
            started = time.monotonic()
            connection.request(m.Ping(), m.OkReply)
            return time.monotonic() - started

    def status(self) -> ServerStatus:
        """Return the state of the server and its transfers (WIRE.md section 6)."""
        with self._connection.acquire() as connection:
            reply = connection.request(m.Status(), m.StatusReply)
            if reply.size > MAX_STATUS:
                raise ProtocolError(f"invalid status reply: more than {MAX_STATUS:,} bytes")
            return decode_status(connection.stream.read_body())

    def close(self, *, cancel_futures: bool = False) -> None:
        """Wait for submitted transfers, and close the connections.

        ``cancel_futures`` cancels the transfers first. The next operation connects again.
        """
        with self._pool_lock:
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
        """The server's host and port."""
        return self._url_provider().address

    def _request(self, request: m.Request, expected: type[R]) -> R:
        with self._connection.acquire() as connection:
            return connection.request(request, expected)

    def _connect(self) -> ReconnectingConnection:
        return ReconnectingConnection(
            self._url_provider,
            timeout_s=self._timeout_s,
            limiter=self._limiter,
            dialer=self._dialer,
        )

    def _submit(
        self, work: "Callable[[Client], TransferResult]"
    ) -> "TransferFuture[TransferResult]":
        """Run ``work`` in the pool, with a copy of this client that has its own connection."""
        # Imported here: only a client that submits needs it.
        from ftpkit.client.pool import Pool

        def run(connection: ReconnectingConnection) -> TransferResult:
            client = copy(self)
            client._connection = connection
            return work(client)

        with self._pool_lock:
            if self._pool is None:
                self._pool = Pool(self._jobs, self._connect)
            return self._pool.submit(run)

    def _backoff(self, sleep: Callable[[float], None]) -> Backoff:
        return Backoff(self._retry_for_s, sleep=sleep)

    def _run(
        self,
        make: "Callable[..., Upload | Download]",
        path: str,
        on_progress: OnProgress | None,
        on_retry: OnRetry | None,
    ) -> TransferResult:
        """Run the transfer that ``make`` returns, given its callbacks, until it is complete."""
        cancel_token = self._connection.cancel_token
        backoff = self._backoff(cancel_token.sleep)
        now = 0
        last: int | None = None

        def progress(moved: int, total: int) -> None:
            nonlocal now, last
            # The first number is what was there already; a smaller one takes blocks back.
            now, last = now + moved - (moved if last is None else last), moved
            cancel_token.check()
            backoff.progress(moved)
            if on_progress is not None:
                on_progress(moved, total)

        retry = on_retry or (lambda error, delay: None)
        started = time.monotonic()
        transfer = make(on_progress=progress, on_retry=retry)
        reply = self._connection.run(transfer.run, backoff, retry)
        return TransferResult(
            name=reply.name,
            path=path,
            total=reply.total,
            moved=max(0, now),
            seconds=time.monotonic() - started,
            version=reply.version,
            content_digest=reply.content_digest,
        )


def _url_provider(url: str | Url | Address | UrlProvider) -> UrlProvider:
    if callable(url):
        return url
    if isinstance(url, str):
        url = Url.parse(url)
    elif isinstance(url, Address):
        url = Url(url)
    return lambda: url
