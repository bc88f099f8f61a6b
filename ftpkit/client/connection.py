"""A connection to a server that is made when it is needed, and again where it was lost."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from ftpkit.client.link import Link, Where
from ftpkit.client.retry import Backoff, OnRetry
from ftpkit.client.stop import Stop
from ftpkit.errors import FtpkitError
from ftpkit.net.pacing import Pace

T = TypeVar("T")


class Connection:
    """One conversation at a time; threads take turns.

    ``stop`` ends what is done over it; it is exchanged between two transfers alone.
    """

    def __init__(self, where: Where, *, timeout_s: float, pace: Pace | None) -> None:
        self._where, self._timeout_s, self._pace = where, timeout_s, pace
        self._turn = threading.RLock()
        self._link: Link | None = None
        self.stop = Stop()

    @contextlib.contextmanager
    def link(self) -> Iterator[Link]:
        """Have the conversation for oneself; after a failure that left it in the middle, end it."""
        with self._turn:
            try:
                yield self._open()
            except FtpkitError:
                if self._link is not None and not self._link.usable:
                    self.close()
                raise
            except BaseException:
                self.close()
                raise
            finally:
                self.stop.release()

    def persist(self, work: Callable[[Link], T], backoff: Backoff, on_retry: OnRetry) -> T:
        """Do ``work``, over a new conversation after each failure that may pass."""
        while True:
            try:
                with self.link() as link:
                    return work(link)
            except FtpkitError as error:
                self.stop.check()
                backoff.wait(error, on_retry)

    def close(self) -> None:
        """Hang up; what comes next connects again."""
        with self._turn:
            if self._link is not None:
                self._link.close()
                self._link = None

    def _open(self) -> Link:
        if self._link is not None and not self._link.usable:
            self.close()
        if self._link is None:
            self._link = Link(
                self._where,
                timeout_s=self._timeout_s,
                pace=self._pace,
                on_socket=self.stop.watch,
            )
        else:
            self.stop.watch(self._link.sock)
        return self._link
