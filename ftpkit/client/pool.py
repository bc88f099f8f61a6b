"""Transfers in the background: several at once, each over its own connection."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from ftpkit.client.cancel import CancelToken
from ftpkit.client.reconnect import ReconnectingConnection

T = TypeVar("T")


class TransferFuture(Future[T]):
    """The future of a transfer; unlike other futures, it can be cancelled while it is running.

    The transfer then ends at its next read or write. Blocks that have arrived are kept: the
    same transfer resumes there when it is submitted again.
    """

    # ``Future`` refuses to cancel in its running state, so the state stays pending to the end.

    def __init__(self) -> None:
        super().__init__()
        self.cancel_token = CancelToken()
        self._claim = threading.Lock()

    def cancel(self) -> bool:
        """Cancel the transfer; return False if it has already ended in another way."""
        self.cancel_token.cancel()
        if self._claim.acquire(blocking=False):
            self._end_cancelled()
        return self.cancelled() or not self.done()

    def running(self) -> bool:
        return self._claim.locked() and not self.done()

    def run(self, work: Callable[[], T]) -> None:
        """Run ``work`` unless cancelled before; once cancelled, any exception means just that."""
        if not self._claim.acquire(blocking=False):
            return
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  ``result`` raises it
            if self.cancel_token.is_cancelled():
                self._end_cancelled()
            else:
                self.set_exception(error)
        else:
            self.set_result(result)

    def _end_cancelled(self) -> None:
        super().cancel()
        self.set_running_or_notify_cancel()  # wakes concurrent.futures.wait


class Pool:
    """Runs up to ``size`` transfers at once, in the order of submission."""

    def __init__(self, size: int, connect: Callable[[], ReconnectingConnection]) -> None:
        self._executor = ThreadPoolExecutor(size, thread_name_prefix="ftpkit-transfer")
        self._connect = connect
        self._idle: list[ReconnectingConnection] = []
        self._futures: set[Future[Any]] = set()

    def submit(self, work: Callable[[ReconnectingConnection], T]) -> TransferFuture[T]:
        """Run ``work`` with a connection as soon as one of the ``size`` threads is free."""
        future: TransferFuture[T] = TransferFuture()
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        self._executor.submit(self._run, future, work)
        return future

    def close(self, *, cancel_futures: bool) -> None:
        try:
            if cancel_futures:
                self._cancel()
            self._executor.shutdown()
        except BaseException:  # Ctrl-C while waiting
            self._cancel()
            raise
        for connection in self._idle:
            connection.close()

    def _run(self, future: TransferFuture[T], work: Callable[[ReconnectingConnection], T]) -> None:
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        connection.cancel_token = future.cancel_token
        try:
            future.run(partial(work, connection))
        finally:
            self._idle.append(connection)

    def _cancel(self) -> None:
        for future in list(self._futures):
            future.cancel()
