"""Transfers in the background: several at once, each over a connection of its own."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from ftpkit.client.cancel import CancelToken
from ftpkit.client.reconnect import ReconnectingConnection

T = TypeVar("T")


class TransferFuture(Future[T]):
    """The future of a transfer; unlike others, ``cancel`` ends one that is running, too.

    It ends at its next piece. What has arrived is kept, so that the same transfer
    goes on there when it is submitted again. True says that it will end without a
    result, unless all of it was over just then.
    """

    # ``Future`` refuses to cancel what is running, so that here stays pending until its end.

    def __init__(self) -> None:
        super().__init__()
        self.cancel_token = CancelToken()
        self._claim = threading.Lock()

    def cancel(self) -> bool:
        """End it; False says that it has ended already, and not so."""
        self.cancel_token.cancel()
        if self._claim.acquire(blocking=False):
            self._end_cancelled()
        return self.cancelled() or not self.done()

    def running(self) -> bool:
        """Whether it has begun, and not ended."""
        return self._claim.locked() and not self.done()

    def begin(self) -> bool:
        """Whether it is to be run; False says that it was cancelled before."""
        return self._claim.acquire(blocking=False)

    def run(self, work: Callable[[], T]) -> None:
        """Do ``work``; it may raise whatever it likes once ``cancel_token`` is set."""
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
        self.set_running_or_notify_cancel()  # wakes up who waits for several of them


class Pool:
    """Runs ``size`` transfers at once, first come, first served."""

    def __init__(self, size: int, connect: Callable[[], ReconnectingConnection]) -> None:
        self._executor = ThreadPoolExecutor(size, thread_name_prefix="ftpkit-transfer")
        self._connect = connect
        self._idle: list[ReconnectingConnection] = []
        self._futures: set[Future[Any]] = set()

    def submit(self, work: Callable[[ReconnectingConnection], T]) -> TransferFuture[T]:
        """Have ``work`` done over a connection, as soon as there is room."""
        future: TransferFuture[T] = TransferFuture()
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        self._executor.submit(self._run, future, work)
        return future

    def close(self, *, cancel_futures: bool) -> None:
        """Wait for what was submitted, or cancel it first, and hang up."""
        try:
            if cancel_futures:
                self._cancel()
            self._executor.shutdown()
        except BaseException:  # whoever waited no longer wants to: Ctrl-C
            self._cancel()
            raise
        for reconnecting in self._idle:
            reconnecting.close()

    def _run(self, future: TransferFuture[T], work: Callable[[ReconnectingConnection], T]) -> None:
        if not future.begin():
            return
        try:
            reconnecting = self._idle.pop()
        except IndexError:
            reconnecting = self._connect()
        reconnecting.cancel_token = future.cancel_token
        try:
            future.run(partial(work, reconnecting))
        finally:
            self._idle.append(reconnecting)

    def _cancel(self) -> None:
        for future in list(self._futures):
            future.cancel()
