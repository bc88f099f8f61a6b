"""The status of several workers, some of which do not reply, or end meanwhile."""

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.status import ServerStatus
from ftpkit.server.status import NO_TOTALS
from ftpkit.server.workers import status as status_module
from ftpkit.server.workers.ipc import IpcChannel
from ftpkit.server.workers.pool import WorkerHandle
from ftpkit.server.workers.status import StatusAggregator
from tests.support.status import status, transfer

LONG_S = 20.0
Join = Callable[[int], WorkerHandle]


@pytest.fixture
def aggregator() -> StatusAggregator:
    return StatusAggregator()


@pytest.fixture
def join(aggregator: StatusAggregator) -> Iterator[Join]:
    """Let workers join that send nothing by themselves."""
    ends: list[IpcChannel] = []

    def start(number: int) -> WorkerHandle:
        ours, theirs = socket.socketpair()
        worker = WorkerHandle(number, IpcChannel(ours))
        ends.extend((worker.channel, IpcChannel(theirs)))
        aggregator.join(worker)
        return worker

    yield start
    for end in ends:
        end.close()


@pytest.fixture
def ask(aggregator: StatusAggregator) -> Iterator[Callable[[int], "Future[ServerStatus]"]]:
    """Request a status; return when so many workers have received the request."""
    with ThreadPoolExecutor() as threads:

        def start(workers: int) -> "Future[ServerStatus]":
            received = threading.Semaphore(0)
            future = threads.submit(aggregator.status, lambda worker, call: received.release())
            for _ in range(workers):
                assert received.acquire(timeout=LONG_S)
            return future

        yield start


RequestStatus = Callable[[int], "Future[ServerStatus]"]


def part(name: str, uploads: int = 1) -> ServerStatus:
    return status(transfer(name=name), totals=NO_TOTALS | {"uploads": uploads})


def names(whole: ServerStatus) -> set[str]:
    return {each["name"] for each in whole["transfers"]}


def test_the_statuses_of_all_workers_are_merged(
    aggregator: StatusAggregator, join: Join, ask: RequestStatus
) -> None:
    one, other = join(3), join(5)
    future = ask(2)
    aggregator.receive(one, 0, part("a"))
    assert not future.done()
    aggregator.receive(other, 0, part("b"))
    whole = future.result(LONG_S)
    assert names(whole) == {"a", "b"}
    assert [worker["number"] for worker in whole["workers"]] == [3, 5]
    assert whole["totals"]["uploads"] == 2


def test_a_worker_that_ends_is_not_waited_for_and_keeps_its_latest_totals(
    aggregator: StatusAggregator, join: Join, ask: RequestStatus
) -> None:
    one, other = join(1), join(2)
    aggregator.receive(other, None, part("b", uploads=7))
    future = ask(2)
    aggregator.receive(one, 0, part("a"))
    aggregator.leave(other)
    whole = future.result(LONG_S)
    assert names(whole) == {"a"}
    assert whole["totals"]["uploads"] == 8
    aggregator.leave(other)
    aggregator.receive(other, 0, part("b", uploads=7))
    future = ask(1)
    aggregator.receive(one, 1, part("a"))
    assert future.result(LONG_S)["totals"]["uploads"] == 8, "counted once"


def test_a_worker_that_does_not_reply_is_left_out(
    aggregator: StatusAggregator, join: Join, ask: RequestStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_module, "_TIMEOUT_S", 0.05)
    one, silent = join(1), join(2)
    future = ask(2)
    aggregator.receive(one, 0, part("a"))
    assert names(future.result(LONG_S)) == {"a"}
    aggregator.receive(silent, 0, part("b"))  # after the timeout


def test_without_any_reply_it_is_refused(
    aggregator: StatusAggregator, join: Join, ask: RequestStatus
) -> None:
    worker = join(1)
    future = ask(1)
    aggregator.leave(worker)
    with pytest.raises(RefusedError) as caught:
        future.result(LONG_S)
    assert caught.value.code == Code.BUSY


def test_concurrent_requests_get_their_own_replies(
    aggregator: StatusAggregator, join: Join, ask: RequestStatus
) -> None:
    worker = join(1)
    first, second = ask(1), ask(1)
    aggregator.receive(worker, 1, part("b"))
    assert names(second.result(LONG_S)) == {"b"}
    aggregator.receive(worker, 0, part("a"))
    assert names(first.result(LONG_S)) == {"a"}
