"""A connection that is opened on first use, and opened again after it was lost."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from ftpkit.client.cancel import CancelToken
from ftpkit.client.connection import Connection, UrlProvider
from ftpkit.client.dial import Dialer
from ftpkit.client.retry import Backoff, OnRetry
from ftpkit.errors import FtpkitError
from ftpkit.net.token_bucket import TokenBucket

T = TypeVar("T")


class ReconnectingConnection:
    """At most one open connection, which one thread at a time uses.

    ``cancel_token`` interrupts the transfer that uses it; replace it only between transfers.
    """

    def __init__(
        self,
        url_provider: UrlProvider,
        *,
        timeout_s: float,
        limiter: TokenBucket | None,
        dialer: Dialer,
    ) -> None:
        self._dialer = dialer
        self._url_provider, self._timeout_s, self._limiter = url_provider, timeout_s, limiter
        self._lock = threading.RLock()
        self._connection: Connection | None = None
        self.cancel_token = CancelToken()

    @contextlib.contextmanager
    def acquire(self) -> Iterator[Connection]:
        """Have the connection exclusively; one that cannot be used after an error is closed."""
        with self._lock:
            try:
                yield self._open()
            except FtpkitError:
                if self._connection is not None and not self._connection.usable:
                    self.close()
                raise
            except BaseException:
                self.close()
                raise
            finally:
                self.cancel_token.detach()

    def run(self, work: Callable[[Connection], T], backoff: Backoff, on_retry: OnRetry) -> T:
        """Run ``work`` with a connection; after a retryable error, wait and run it again."""
        while True:
            try:
                with self.acquire() as connection:
                    return work(connection)
            except FtpkitError as error:
                self.cancel_token.check()
                backoff.wait(error, on_retry)

    def close(self) -> None:
        """Close the connection; the next use opens another one."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _open(self) -> Connection:
        if self._connection is not None and not self._connection.usable:
            self.close()
        if self._connection is None:
            self._connection = Connection(
                self._url_provider,
                timeout_s=self._timeout_s,
                limiter=self._limiter,
                dialer=self._dialer,
                on_socket=lambda sock: self.cancel_token.attach(sock),  # of the current transfer
            )
        else:
            self.cancel_token.attach(self._connection.sock)
        return self._connection
