"""One status out of several workers', some of which do not answer, or end meanwhile."""

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.status import ServerStatus
from ftpkit.server.status import nothing
from ftpkit.server.workers import status as survey_module
from ftpkit.server.workers.ipc import IpcChannel
from ftpkit.server.workers.pool import WorkerHandle
from ftpkit.server.workers.status import StatusAggregator
from tests.support.status import status, transfer

LONG_S = 20.0
Join = Callable[[int], WorkerHandle]


@pytest.fixture
def survey() -> StatusAggregator:
    return StatusAggregator()


@pytest.fixture
def join(survey: StatusAggregator) -> Iterator[Join]:
    """Let workers join that say nothing by themselves."""
    ends: list[IpcChannel] = []

    def start(number: int) -> WorkerHandle:
        ours, theirs = socket.socketpair()
        member = WorkerHandle(number, IpcChannel(ours))
        ends.extend((member.channel, IpcChannel(theirs)))
        survey.join(member)
        return member

    yield start
    for end in ends:
        end.close()


@pytest.fixture
def asked(survey: StatusAggregator) -> Iterator[Callable[[int], "Future[ServerStatus]"]]:
    """Ask, and return once so many workers have heard of it."""
    with ThreadPoolExecutor() as threads:

        def start(workers: int) -> "Future[ServerStatus]":
            heard = threading.Semaphore(0)
            future = threads.submit(survey.status, lambda member, call: heard.release())
            for _ in range(workers):
                assert heard.acquire(timeout=LONG_S)
            return future

        yield start


Asked = Callable[[int], "Future[ServerStatus]"]


def part(name: str, uploads: int = 1) -> ServerStatus:
    return status(transfer(name=name), totals=nothing() | {"uploads": uploads})


def names(whole: ServerStatus) -> set[str]:
    return {each["name"] for each in whole["transfers"]}


def test_all_parts_are_one_status(survey: StatusAggregator, join: Join, asked: Asked) -> None:
    one, other = join(3), join(5)
    answer = asked(2)
    survey.heard(one, 0, part("a"))
    assert not answer.done()
    survey.heard(other, 0, part("b"))
    whole = answer.result(LONG_S)
    assert names(whole) == {"a", "b"}
    assert [worker["number"] for worker in whole["workers"]] == [3, 5]
    assert whole["totals"]["uploads"] == 2


def test_one_that_ends_keeps_nobody_waiting_and_counts_with_what_it_last_told(
    survey: StatusAggregator, join: Join, asked: Asked
) -> None:
    one, other = join(1), join(2)
    survey.heard(other, None, part("b", uploads=7))
    answer = asked(2)
    survey.heard(one, 0, part("a"))
    survey.leave(other)
    whole = answer.result(LONG_S)
    assert names(whole) == {"a"}
    assert whole["totals"]["uploads"] == 8
    survey.leave(other)
    survey.heard(other, 0, part("b", uploads=7))
    answer = asked(1)
    survey.heard(one, 1, part("a"))
    assert answer.result(LONG_S)["totals"]["uploads"] == 8, "counted once"


def test_one_that_is_silent_is_left_out(
    survey: StatusAggregator, join: Join, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey_module, "_PATIENCE_S", 0.05)
    one, silent = join(1), join(2)
    answer = asked(2)
    survey.heard(one, 0, part("a"))
    assert names(answer.result(LONG_S)) == {"a"}
    survey.heard(silent, 0, part("b"))  # too late for that one


def test_where_nobody_answers_it_is_refused(
    survey: StatusAggregator, join: Join, asked: Asked
) -> None:
    member = join(1)
    answer = asked(1)
    survey.leave(member)
    with pytest.raises(RefusedError) as caught:
        answer.result(LONG_S)
    assert caught.value.code == Code.BUSY


def test_two_questions_at_a_time_get_their_own_answers(
    survey: StatusAggregator, join: Join, asked: Asked
) -> None:
    member = join(1)
    first, second = asked(1), asked(1)
    survey.heard(member, 1, part("b"))
    assert names(second.result(LONG_S)) == {"b"}
    survey.heard(member, 0, part("a"))
    assert names(first.result(LONG_S)) == {"a"}
