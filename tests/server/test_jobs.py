"""Work that outlives its request: how much of it there may be."""

import threading

import pytest

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.messages import Pending
from ftpkit.server.jobs import Jobs


def test_the_number_of_running_jobs_is_limited() -> None:
    jobs, go_on = Jobs(patience_s=0.01, max_running=2), threading.Event()
    try:
        for key in "ab":
            assert isinstance(jobs.run(key, lambda progress: go_on.wait()), Pending)
        with pytest.raises(RefusedError) as caught:
            jobs.run("c", lambda progress: None)
        assert caught.value.code is Code.BUSY
        assert isinstance(jobs.run("a", lambda progress: None), Pending)
    finally:
        go_on.set()
        jobs.stop()
    assert jobs.run("b", lambda progress: None) is True
