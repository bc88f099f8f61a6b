"""Work that outlives its request: when it ends, how much of it there may be, what it reports."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.messages import Pending
from ftpkit.server.jobs import Jobs

TICK_S = 0.01


@contextmanager
def running(jobs: Jobs) -> Iterator[threading.Event]:
    """Yield an event that lets work go on; stop the jobs at the end."""
    go_on = threading.Event()
    try:
        yield go_on
    finally:
        go_on.set()
        jobs.stop()


def endless(ended: threading.Event) -> Callable[[Callable[[int, int], None]], None]:
    """Return work that reports progress until it is ended."""

    def work(progress: Callable[[int, int], None]) -> None:
        done = 0
        try:
            while True:
                progress(done := done + 1, 2**62)
                time.sleep(TICK_S)
        finally:
            ended.set()

    return work


def test_what_a_user_runs_while_no_request_waits_is_limited() -> None:
    jobs = Jobs(patience_s=TICK_S, max_unattended=2)
    with running(jobs) as go_on:
        for key in "ab":
            pending = jobs.run(key, lambda progress: go_on.wait(), user="ada")
            assert isinstance(pending, Pending)
        with pytest.raises(RefusedError) as caught:
            jobs.run("c", lambda progress: None, user="ada")
        assert caught.value.code is Code.BUSY
        assert jobs.run("c", lambda progress: 1, user="bob") == 1
        assert isinstance(jobs.run("a", lambda progress: None, user="ada"), Pending)
    assert jobs.run("b", lambda progress: None, user="ada") is True


def test_what_requests_wait_for_is_not_limited() -> None:
    jobs = Jobs(patience_s=20.0, max_unattended=1)
    with running(jobs) as go_on:
        results: list[object] = []

        def ask(key: int) -> None:
            results.append(jobs.run(key, lambda progress: go_on.wait(), user="ada"))

        threads = [threading.Thread(target=ask, args=[key]) for key in range(4)]
        for thread in threads:
            thread.start()
        go_on.set()
        for thread in threads:
            thread.join()
        assert results == [True] * 4


def test_work_that_no_request_waits_for_ends() -> None:
    jobs, ended = Jobs(patience_s=TICK_S, abandoned_s=0.1), threading.Event()
    with running(jobs):
        assert isinstance(jobs.run("a", endless(ended)), Pending)
        assert ended.wait(10.0)
        again = threading.Event()
        assert isinstance(jobs.run("a", endless(again)), Pending)
        assert not again.is_set()


def test_work_that_is_asked_for_goes_on() -> None:
    jobs, ended = Jobs(patience_s=0.1, abandoned_s=0.3), threading.Event()
    with running(jobs):
        for _ in range(8):
            assert isinstance(jobs.run("a", endless(ended)), Pending)
        assert not ended.is_set()


def test_work_that_must_finish_is_not_given_up() -> None:
    jobs = Jobs(patience_s=TICK_S, abandoned_s=0.0)
    with running(jobs) as go_on:

        def work(progress: Callable[[int, int], None]) -> int:
            go_on.wait()
            progress(1, 1)
            return 5

        assert isinstance(jobs.run("a", work, must_finish=True), Pending)
        time.sleep(2 * TICK_S)
        go_on.set()
        while isinstance(result := jobs.wait("a"), Pending):
            pass
        assert result == 5


@pytest.mark.parametrize("must_finish", [False, True])
def test_a_stop_ends_all_work(must_finish: bool) -> None:
    jobs, ended = Jobs(patience_s=TICK_S), threading.Event()
    jobs.run("a", endless(ended), must_finish=must_finish)
    jobs.stop()
    assert ended.is_set()
    with pytest.raises(RefusedError) as caught:
        jobs.run("b", lambda progress: None)
    assert caught.value.code is Code.SHUTTING_DOWN


def test_a_result_can_be_asked_for_twice_by_the_name_of_its_job() -> None:
    jobs = Jobs(patience_s=TICK_S)
    with running(jobs) as go_on:
        assert isinstance(jobs.run("a", lambda progress: go_on.wait()), Pending)
        go_on.set()
        while isinstance(jobs.wait("a"), Pending):
            pass
        assert jobs.wait("a") is True
        with pytest.raises(RefusedError) as caught:
            jobs.wait("b")
        assert caught.value.code is Code.NOT_FOUND


def test_the_time_of_a_flush_are_progress() -> None:
    jobs = Jobs(patience_s=TICK_S)
    with running(jobs) as go_on:
        reported = threading.Event()

        def work(progress: Callable[[int, int], None]) -> None:
            progress(7, 7)
            reported.set()
            go_on.wait()

        jobs.run("a", work)
        assert reported.wait(10.0)
        seen = set[int]()
        while len(seen) < 2:
            pending = jobs.wait("a")
            assert isinstance(pending, Pending)
            assert pending.done == pending.total
            seen.add(pending.done)
        assert min(seen) >= 7


def test_a_read_that_stands_still_reports_no_progress() -> None:
    jobs = Jobs(patience_s=0.1)
    with running(jobs) as go_on:

        def work(progress: Callable[[int, int], None]) -> None:
            progress(3, 7)
            go_on.wait()

        assert jobs.run("a", work) == Pending(done=3, total=7)
        assert jobs.run("a", work) == Pending(done=3, total=7)
