"""The gate of a service, on lines that are made for the case: who waits there, and who is in."""

import json
import queue
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from ftpkit.protocol.status import ServerStatus
from ftpkit.server import handler as service_module
from ftpkit.server.auth.shared_limits import LocalLimits, SharedLimits
from ftpkit.server.connection_limit import ConnectionLimiter
from ftpkit.server.context import Handoff
from ftpkit.server.handler import ConnectionHandler
from ftpkit.server.limits import Limits
from ftpkit.server.workers.worker import pack, unpack
from ftpkit.storage import DirectoryStore
from ftpkit.tokens import Grant, Permission, Tokens
from tests.support.raw import TIMEOUT_S, Raw, frame
from tests.support.trees import published

PEER: Final = "192.0.2.1:4711"


class Wired(Raw):
    """The client's end of a line to a service."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(TIMEOUT_S)


@dataclass
class Leaving:
    """Takes all connections from a service whose process is to end."""

    leaving: bool = True
    came: queue.SimpleQueue[tuple[socket.socket, Handoff]] = field(
        default_factory=queue.SimpleQueue
    )

    def hand_over(self, sock: socket.socket, moved: Handoff, to: int, *, lent: bool) -> None:
        self.came.put((sock.dup(), moved))

    def status(self) -> ServerStatus:
        raise AssertionError


@dataclass
class Slow:
    """A house in which bad tokens are answered when the server stops."""

    house: SharedLimits
    asked: threading.Event = field(default_factory=threading.Event)
    hosts: list[str] = field(default_factory=list)

    def login_failed(self, host: str) -> float:
        self.hosts.append(host)
        self.asked.set()
        return 1000.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.house, name)


class Inside:
    """Services of one root and one house, as the processes of a server have them."""

    def __init__(self, root: Path, tokens: Tokens) -> None:
        self.tokens = tokens
        self._stack = ExitStack()
        self._store = self._stack.enter_context(DirectoryStore(root))
        self.house = LocalLimits(self._store.used_bytes)
        self._stack.callback(self.house.close)
        self._threads = self._stack.enter_context(ThreadPoolExecutor())

    def service(self, house: Any = None) -> tuple[ConnectionHandler, ConnectionLimiter]:
        admission = ConnectionLimiter(1, 1)
        service = ConnectionHandler(
            self._store, admission, Limits(), tokens=self.tokens, shared_limits=house or self.house
        )
        self._stack.callback(service.close)
        return service, admission

    def line(self) -> tuple[socket.socket, Wired]:
        ours, theirs = socket.socketpair()
        self._stack.enter_context(ours)
        return ours, self._stack.enter_context(Wired(theirs))

    def serve(self, service: ConnectionHandler, *args: Any) -> Future[None]:
        return self._threads.submit(service.handle, *args)

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def inside(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Inside]:
    """Services that look after nobody between requests."""
    monkeypatch.setattr(service_module, "CHECK_INTERVAL_S", 1000.0)
    inside = Inside(root, Tokens(tmp_path / "tokens.json"))
    yield inside
    inside.close()


def test_a_request_that_comes_after_its_token_has_gone_is_refused(
    inside: Inside, root: Path
) -> None:
    service = inside.service()[0]
    token = inside.tokens.add(Grant(user="ada"))
    ours, client = inside.line()
    served = inside.serve(service, ours, PEER, None)
    client.granted("auth", token=token)
    inside.tokens.remove("ada")
    reply = client.ask("put", b"one", name="f")
    assert (reply.code, reply.closes) == ("auth-required", True)
    client.close()
    served.result(TIMEOUT_S)
    assert published(root) == {}


@pytest.mark.parametrize(
    ("peer", "host"), [("192.0.2.1:4711", "192.0.2.1"), ("[2001:db8::1]:4711", "2001:db8::1")]
)
def test_nobody_who_waits_for_the_answer_to_a_bad_token_keeps_a_server_from_stopping(
    inside: Inside, peer: str, host: str
) -> None:
    house = Slow(inside.house)
    service, admission = inside.service(house)
    ours, client = inside.line()
    admission.acquire(host)
    served = inside.serve(service, ours, peer, None)
    served.add_done_callback(lambda _: admission.release(host))
    client.send({"op": "auth", "token": "wrong"})
    assert house.asked.wait(TIMEOUT_S)
    service.stop(grace_s=1000.0)
    assert client.receive().code == "auth-failed"
    served.result(TIMEOUT_S)
    assert house.hosts == [host]


def test_who_moves_to_another_process_is_not_asked_again_and_counted_once(
    inside: Inside, root: Path
) -> None:
    one, other = inside.service()[0], inside.service()[0]
    grant = Grant(
        user="ada", can=frozenset({Permission.READ, Permission.WRITE}), under="d", connections=1
    )
    token = inside.tokens.add(grant)
    siblings = Leaving(leaving=False)
    ours, client = inside.line()
    served = inside.serve(one, ours, PEER, None, siblings)
    client.granted("auth", token=token)
    siblings.leaving = True
    client.sock.sendall(
        frame({"op": "mkdir", "name": "a"})
        + frame({"op": "status"})
        + frame({"op": "auth", "token": token})
    )
    sock, moved = siblings.came.get(timeout=TIMEOUT_S)
    served.result(TIMEOUT_S)
    fields, body = pack(moved)
    moved = unpack(json.loads(json.dumps(fields)), body)
    with sock:
        served = inside.serve(other, sock, PEER, None, Leaving(leaving=False), moved)
        assert client.receive()["name"] == "a"
        assert client.receive().code == "forbidden"
        assert client.receive().code == "bad-request"
        assert (root / "d" / "a").is_dir()
        assert not inside.house.acquire("ada", 1)
        client.finish()
        served.result(TIMEOUT_S)
    assert inside.house.acquire("ada", 1)


def test_who_moves_to_another_process_and_has_lost_its_token_is_not_served(
    inside: Inside, root: Path
) -> None:
    one, other = inside.service()[0], inside.service()[0]
    token = inside.tokens.add(Grant(user="ada"))
    siblings = Leaving(leaving=False)
    ours, client = inside.line()
    inside.serve(one, ours, PEER, None, siblings)
    client.granted("auth", token=token)
    siblings.leaving = True
    client.send({"op": "mkdir", "name": "a"})
    sock, moved = siblings.came.get(timeout=TIMEOUT_S)
    inside.tokens.remove("ada")
    with sock:
        served = inside.serve(other, sock, PEER, None, Leaving(leaving=False), moved)
        reply = client.receive()
        client.close()
        served.result(TIMEOUT_S)
    assert (reply.code, reply.closes) == ("auth-required", True)
    assert not (root / "a").exists()


def test_who_moves_to_another_process_without_a_token_must_show_one_there(inside: Inside) -> None:
    one, other = inside.service()[0], inside.service()[0]
    token = inside.tokens.add(Grant(user="ada"))
    siblings = Leaving()
    ours, client = inside.line()
    inside.serve(one, ours, PEER, None, siblings)
    client.sock.sendall(frame({"op": "hello", "version": 1}) + frame({"op": "ping"}))
    sock, moved = siblings.came.get(timeout=TIMEOUT_S)
    moved = unpack(*pack(moved))
    assert moved.grant is None
    with sock:
        served = inside.serve(other, sock, PEER, None, Leaving(leaving=False), moved)
        assert client.receive()["auth"] is True
        assert client.receive().code == "auth-required"
        client.granted("auth", token=token)
        client.granted("ping")
        client.finish()
        served.result(TIMEOUT_S)
