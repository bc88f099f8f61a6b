"""Fixtures for all tests; each test gives back the threads and descriptors that it took."""

import os
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from ftpkit import Client, Server
from ftpkit.client import digest_cache
from ftpkit.server.limits import Limits
from tests.support.leaks import Held, leaked_since
from tests.support.logs import Log, server_log
from tests.support.pairwise import pairwise
from tests.support.raw import Raw

# How long an example takes says something of the machine, and of what else it does.
settings.register_profile(
    "ftpkit", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile("ftpkit")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return two processes per processor for ``-n auto``: half of their time, tests wait."""
    return 2 * (os.cpu_count() or 1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what a test marked ``pairwise`` has beside a pairwise sample of its cases."""
    cases = defaultdict[object, list[pytest.Function]](list)
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("pairwise"):
            cases[item.parent, item.originalname].append(item)
    for product in cases.values():
        # One identifier for each ``parametrize``: names that it sets together are one parameter.
        sample = pairwise([item.callspec._idlist for item in product])
        for position, item in enumerate(product):
            if position not in sample:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="session")
def _away_from_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a server keeps does not get among what whoever runs the tests keeps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """Fail a test that leaves a thread running or a descriptor open."""
    before = Held.now()
    yield
    leaked = leaked_since(before)
    assert not leaked, f"leaked: {', '.join(leaked)}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The directory that ``server`` serves."""
    path = tmp_path / "root"
    path.mkdir()
    return path


@pytest.fixture
def server(root: Path) -> Iterator[Server]:
    """A server on this machine; what hangs on it, hangs for seconds only."""
    server = Server(root, port=0, limits=Limits(stall_timeout_s=10.0, idle_timeout_s=20.0))
    server.start()
    try:
        yield server
    finally:
        server.stop(grace_s=0.0)


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A client of ``server``."""
    with Client(server.address, timeout_s=20.0) as client:
        yield client


@pytest.fixture
def connect(server: Server) -> Iterator[Callable[[], Raw]]:
    """Open raw connections to ``server``, which the end of the test closes."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Raw(server.address))


@pytest.fixture
def raw(connect: Callable[[], Raw]) -> Raw:
    """One raw connection to ``server``."""
    return connect()


@pytest.fixture
def log() -> Iterator[Log]:
    """What servers log during the test."""
    with server_log() as log:
        yield log


@pytest.fixture
def cache_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cache digests of files that were just written: no program can make a ctime old."""
    monkeypatch.setattr(digest_cache, "_MIN_AGE_NS", -1)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let commands hear SIGINT, also where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
