"""Servers of several processes: killed in part or whole, stopped and reloaded."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ftpkit.errors import FtpkitError
from ftpkit.osapi import sockets as os_sockets
from tests.faults.conftest import MIB, Eager, noise, settled, visible
from tests.faults.crowd import Raw
from tests.faults.processes import Served
from tests.faults.relay import WAIT_S, Hold, Plan, Relay

pytestmark = pytest.mark.skipif(
    not os_sockets.HAS_FD_PASSING or not Path("/proc/self/task").exists(),
    reason="needs passing of descriptors and /proc of Linux",
)

SIZE = 20 * MIB


@pytest.fixture
def served(root: Path) -> Iterator[Served]:
    """A server of two workers."""
    root.mkdir()
    with Served(root, ("--workers", "2")) as served:
        yield served


@pytest.fixture
def source(here: Path) -> Path:
    return settled(here / "large", noise(SIZE, 1))


def children(pid: int) -> dict[int, str]:
    """Return the state of each child of a process ("Z": a zombie)."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if int(parent) == pid:
                found[int(entry.name)] = state
    return found


def workers(served: Served) -> list[int]:
    """Return the workers of a server: its children that have sockets (one helper has none)."""
    return sorted(pid for pid in children(served.process.pid) if sockets(pid))


def sockets(pid: int) -> list[str]:
    """Return the sockets of a process, which may end meanwhile."""
    found = []
    with contextlib.suppress(OSError):
        for entry in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"/proc/{pid}/fd/{entry}"))
    return [target for target in found if target.startswith("socket:")]


def wait_until(holds: Callable[[], bool], seconds: float = WAIT_S) -> None:
    pause, deadline = threading.Event(), time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        pause.wait(0.02)


def lives(pid: int) -> bool:
    """Whether a process runs; a zombie whose new parent has not reaped it does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@contextmanager
def set_at_end(event: threading.Event) -> Iterator[None]:
    """Set an event when the block ends, also with an error."""
    try:
        yield
    finally:
        event.set()


def holder(served: Served) -> int:
    """Return the worker that has the only upload open."""
    (key,) = os.listdir(served.root / ".ftpkit" / "uploads")
    (found,) = [
        pid
        for pid in workers(served)
        if any(key in os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").glob("*"))
    ]
    return found


def unfinished(root: Path) -> list[Path]:
    private = root / ".ftpkit"
    staged = [path for path in (private / "staging").rglob("*") if not path.is_dir()]
    return [*staged, *(private / "uploads").iterdir()]


def test_a_worker_is_killed_in_the_middle_of_an_upload(served: Served, source: Path) -> None:
    event = threading.Event()
    with Relay(served.address) as relay, Eager(relay.address, retry_for_s=WAIT_S) as client:
        relay.expect(Plan(up=(Hold(13 * MIB, event),)))
        with ThreadPoolExecutor(1) as pool, set_at_end(event):
            put = pool.submit(client.put, source)
            relay.wait(lambda relay: relay.up >= 13 * MIB)
            wait_until(lambda: bool(os.listdir(served.root / ".ftpkit" / "uploads")))
            os.kill(holder(served), signal.SIGKILL)
            event.set()
            assert put.result(WAIT_S).total == SIZE
        assert relay.up < 2 * SIZE
    assert (served.root / "large").read_bytes() == source.read_bytes()
    wait_until(lambda: unfinished(served.root) == [])
    wait_until(lambda: len(workers(served)) == 2)


def test_the_staged_files_of_a_killed_worker_are_removed(served: Served) -> None:
    with Raw(served.address) as raw:
        raw.say(b"some", op="put", name="f", size=1000)
        wait_until(lambda: len(unfinished(served.root)) == 1)
        for pid in workers(served):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: unfinished(served.root) == [])
    wait_until(lambda: len(workers(served)) == 2)
    with Raw(served.address) as raw:
        assert raw.ask(op="ping")["ok"]


def test_the_slot_of_a_killed_worker_is_released(root: Path, here: Path, source: Path) -> None:
    root.mkdir()
    options = ("--workers", "2", "--slots", "1", "--rate", "4M")
    with (
        Served(root, options) as served,
        Relay(served.address) as relay,
        Eager(relay.address) as client,
        Eager(served.address) as other,
        ThreadPoolExecutor(2) as pool,
        ExitStack() as stack,
    ):
        # Called before the pool waits for uploads, which take minutes if the slot is lost.
        stack.callback(served.kill)
        put = pool.submit(client.put, source)
        relay.wait(lambda relay: relay.up >= MIB)
        held = holder(served)
        # Most likely it waits for a grant, which it gets and never releases.
        os.kill(held, signal.SIGSTOP)
        beside = pool.submit(other.put, settled(here / "beside", noise(9 * MIB, 2)))
        wait_until(lambda: len(os.listdir(root / ".ftpkit" / "uploads")) == 2)
        os.kill(held, signal.SIGKILL)
        # Without the slot it would get a small grant every four seconds.
        assert beside.result(WAIT_S).total == 9 * MIB
        assert isinstance(put.exception(WAIT_S), FtpkitError)


def test_no_worker_outlives_a_supervisor_that_is_killed(served: Served, source: Path) -> None:
    event = threading.Event()
    with Relay(served.address) as relay, Eager(relay.address) as client:
        relay.expect(Plan(up=(Hold(13 * MIB, event),)))
        with ThreadPoolExecutor(1) as pool, set_at_end(event):
            put = pool.submit(client.put, source)
            relay.wait(lambda relay: relay.up >= 13 * MIB)
            pids = [*children(served.process.pid)]
            served.kill()
            wait_until(lambda: not any(map(lives, pids)), 1.0)
            event.set()
            assert isinstance(put.exception(WAIT_S), FtpkitError)
    served.start()
    with Eager(served.address) as client:
        client.put(source)
    assert (served.root / "large").read_bytes() == source.read_bytes()


def test_workers_end_when_the_channel_closes(tmp_path: Path) -> None:
    """On systems that send no signal when a parent dies."""
    (tmp_path / "root").mkdir()
    portable = Path(__file__).parents[1] / "support" / "orphans"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{portable}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        with Served(tmp_path / "root", ("--workers", "2")) as served:
            pids = workers(served)
            served.kill()
            wait_until(lambda: not any(map(lives, pids)), 1.0)


def test_running_transfers_of_all_workers_finish(served: Served, here: Path) -> None:
    event = threading.Event()
    with ExitStack() as stack:
        relay = stack.enter_context(Relay(served.address))
        clients = [stack.enter_context(Eager(relay.address)) for _ in range(4)]
        pool = stack.enter_context(ThreadPoolExecutor(4))
        stack.callback(event.set)
        puts = []
        for at, client in enumerate(clients):
            relay.expect(Plan(up=(Hold(5 * MIB, event),)))
            puts.append(pool.submit(client.put, settled(here / str(at), noise(9 * MIB, at))))
            relay.wait(lambda relay: relay.up >= 5 * MIB)
        wait_until(lambda: len(os.listdir(served.root / ".ftpkit" / "uploads")) == 4)
        before = workers(served)
        # A Ctrl-C in a terminal and a service manager signal all processes.
        for pid in (*before, served.process.pid):
            os.kill(pid, signal.SIGINT)
        wait_until(lambda: not listens(served))
        assert workers(served) == before
        event.set()
        assert [put.result(WAIT_S).total for put in puts] == [9 * MIB] * 4
        assert served.ended() == (0, "")
    assert visible(served.root) == ["0", "1", "2", "3"]
    assert unfinished(served.root) == []


def test_a_second_signal_ends_all_processes_at_once(served: Served, source: Path) -> None:
    event = threading.Event()
    with Relay(served.address) as relay, Eager(relay.address) as client:
        relay.expect(Plan(up=(Hold(13 * MIB, event),)))
        with ThreadPoolExecutor(1) as pool, set_at_end(event):
            put = pool.submit(client.put, source)
            relay.wait(lambda relay: relay.up >= 13 * MIB)
            pids = workers(served)
            served.ask_to_end()
            wait_until(lambda: not listens(served))
            served.ask_to_end()
            assert served.ended()[0] == 128 + signal.SIGTERM
            wait_until(lambda: not any(map(lives, pids)), 1.0)
            event.set()
            assert isinstance(put.exception(WAIT_S), FtpkitError)


def listens(served: Served) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((served.address.host, served.address.port)) == 0


def reload(served: Served, goes_on: Callable[[], bool] = lambda: True) -> None:
    """Reload the settings of a server, and wait until its workers were replaced."""
    old = set(workers(served))
    served.process.send_signal(signal.SIGHUP)
    wait_until(lambda: goes_on() and len(workers(served)) == 2 and not old & {*workers(served)})


def test_no_connection_is_refused_while_workers_are_replaced(served: Served) -> None:
    over, answered = threading.Event(), []

    def client() -> None:
        while not over.is_set():
            with Raw(served.address) as raw:
                for _ in range(3):
                    assert raw.ask(op="ping")["ok"]
                body = b"x" * 100
                assert raw.ask(body, op="put", name=f"{threading.get_ident()}", size=100)["ok"]
            answered.append(1)

    lasting = Raw(served.address)
    with ThreadPoolExecutor(4) as pool, lasting:
        clients = [pool.submit(client) for _ in range(4)]
        try:
            for _ in range(5):
                # A connection is handed over with its next request.
                reload(served, lambda: bool(lasting.ask(op="ping")["ok"]))
                before = len(answered)
                wait_until(lambda before=before: len(answered) > before)  # type: ignore[misc]
        finally:
            over.set()
        for each in clients:
            each.result(WAIT_S)
    assert served.process.poll() is None


def test_a_put_continues_while_workers_are_replaced(served: Served, source: Path) -> None:
    event = threading.Event()
    with Relay(served.address) as relay, Eager(relay.address) as client:
        relay.expect(Plan(up=(Hold(13 * MIB, event),)))
        with ThreadPoolExecutor(1) as pool, set_at_end(event):
            put = pool.submit(client.put, source)
            relay.wait(lambda relay: relay.up >= 13 * MIB)
            wait_until(lambda: bool(os.listdir(served.root / ".ftpkit" / "uploads")))
            old = holder(served)
            served.process.send_signal(signal.SIGHUP)
            wait_until(lambda: len(workers(served)) == 3)
            event.set()
            assert put.result(WAIT_S).total == SIZE
        assert relay.accepted == 1

        def replaced() -> bool:
            # The next request is handed over once this worker was told to drain.
            client.ping()
            return old not in workers(served)

        wait_until(replaced)
        client.ping()
        assert relay.accepted == 1
    assert (served.root / "large").read_bytes() == source.read_bytes()


@pytest.mark.slow
def test_workers_that_died_or_were_replaced_leave_nothing(served: Served) -> None:
    def held() -> tuple[int, int, int, int]:
        states = [*children(served.process.pid).values()]
        # A process is a zombie only until the supervisor has reaped it.
        return len(states), states.count("Z"), served.descriptors(), served.threads()

    reload(served)
    wait_until(lambda: len(workers(served)) == 2)
    wait_until(lambda: held()[1] == 0)
    before = held()
    for attempt in range(25):
        if attempt % 5:
            reload(served)
        else:
            for pid in (killed := workers(served)):
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: len(set(workers(served)) - set(killed)) == 2)
            wait_until(lambda: not set(children(served.process.pid)) & set(killed))
        with Raw(served.address) as raw:
            assert raw.ask(op="ping")["ok"]
    wait_until(lambda: held() == before)
