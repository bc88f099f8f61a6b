"""Authentication in a connection handler: delays, revoked tokens and handoffs."""

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
from ftpkit.server import handler as handler_module
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


class SocketClient(Raw):
    """The client's side of a socket pair."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(TIMEOUT_S)


@dataclass
class FakeOtherWorkers:
    """The other workers of one that is to end: they take over all connections."""

    draining: bool = True
    received: queue.SimpleQueue[tuple[socket.socket, Handoff]] = field(
        default_factory=queue.SimpleQueue
    )

    def hand_over(self, sock: socket.socket, handoff: Handoff, to: int, *, proxied: bool) -> None:
        self.received.put((sock.dup(), handoff))

    def status(self) -> ServerStatus:
        raise AssertionError


@dataclass
class SlowLimits:
    """Limits that delay failed logins until the server stops."""

    limits: SharedLimits
    asked: threading.Event = field(default_factory=threading.Event)
    hosts: list[str] = field(default_factory=list)

    def login_failed(self, host: str) -> float:
        self.hosts.append(host)
        self.asked.set()
        return 1000.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.limits, name)


class Handlers:
    """Connection handlers with one store and the same limits, as several workers have them."""

    def __init__(self, root: Path, tokens: Tokens) -> None:
        self.tokens = tokens
        self._stack = ExitStack()
        self._store = self._stack.enter_context(DirectoryStore(root))
        self.limits = LocalLimits(self._store.used_bytes)
        self._stack.callback(self.limits.quotas.close)
        self._threads = self._stack.enter_context(ThreadPoolExecutor())

    def handler(self, limits: Any = None) -> tuple[ConnectionHandler, ConnectionLimiter]:
        limiter = ConnectionLimiter()
        handler = ConnectionHandler(
            self._store, limiter, Limits(), tokens=self.tokens, shared_limits=limits or self.limits
        )
        self._stack.callback(handler.close)
        return handler, limiter

    def connect(self) -> tuple[socket.socket, SocketClient]:
        ours, theirs = socket.socketpair()
        self._stack.enter_context(ours)
        return ours, self._stack.enter_context(SocketClient(theirs))

    def serve(self, handler: ConnectionHandler, *args: Any) -> Future[None]:
        return self._threads.submit(handler.handle, *args)

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def handlers(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Handlers]:
    """Handlers that check tokens only at a request."""
    monkeypatch.setattr(handler_module, "CHECK_INTERVAL_S", 1000.0)
    handlers = Handlers(root, Tokens(tmp_path / "tokens.json"))
    yield handlers
    handlers.close()


def test_a_request_after_its_token_was_removed_is_refused(handlers: Handlers, root: Path) -> None:
    handler = handlers.handler()[0]
    token = handlers.tokens.add(Grant(user="ada"))
    ours, client = handlers.connect()
    served = handlers.serve(handler, ours, PEER, None)
    client.granted("auth", token=token)
    handlers.tokens.remove("ada")
    reply = client.ask("put", b"one", name="f")
    assert (reply.code, reply.closes) == ("auth-required", True)
    client.close()
    served.result(TIMEOUT_S)
    assert published(root) == {}


@pytest.mark.parametrize(
    ("peer", "host"), [("192.0.2.1:4711", "192.0.2.1"), ("[2001:db8::1]:4711", "2001:db8::1")]
)
def test_a_delayed_login_does_not_delay_a_stop(handlers: Handlers, peer: str, host: str) -> None:
    limits = SlowLimits(handlers.limits)
    handler, limiter = handlers.handler(limits)
    ours, client = handlers.connect()
    limiter.acquire(host)
    served = handlers.serve(handler, ours, peer, None)
    served.add_done_callback(lambda _: limiter.release(host))
    client.send({"op": "auth", "token": "wrong"})
    assert limits.asked.wait(TIMEOUT_S)
    handler.stop(grace_s=1000.0)
    assert client.receive().code == "auth-failed"
    served.result(TIMEOUT_S)
    assert limits.hosts == [host]


def test_a_handed_over_connection_stays_authenticated_and_counts_once(
    handlers: Handlers, root: Path
) -> None:
    one, other = handlers.handler()[0], handlers.handler()[0]
    grant = Grant(
        user="ada", can=frozenset({Permission.READ, Permission.WRITE}), under="d", connections=1
    )
    token = handlers.tokens.add(grant)
    others = FakeOtherWorkers(draining=False)
    ours, client = handlers.connect()
    served = handlers.serve(one, ours, PEER, None, others)
    client.granted("auth", token=token)
    others.draining = True
    client.sock.sendall(
        frame({"op": "mkdir", "name": "a"})
        + frame({"op": "status"})
        + frame({"op": "auth", "token": token})
    )
    sock, handoff = others.received.get(timeout=TIMEOUT_S)
    served.result(TIMEOUT_S)
    handoff = unpack(*pack(handoff))
    with sock:
        served = handlers.serve(other, sock, PEER, None, FakeOtherWorkers(draining=False), handoff)
        assert client.receive()["name"] == "a"
        assert client.receive().code == "forbidden"
        assert client.receive().code == "bad-request"
        assert (root / "d" / "a").is_dir()
        assert not handlers.limits.acquire("ada", 1)
        client.finish()
        served.result(TIMEOUT_S)
    assert handlers.limits.acquire("ada", 1)


def test_a_handed_over_connection_with_a_removed_token_is_refused(
    handlers: Handlers, root: Path
) -> None:
    one, other = handlers.handler()[0], handlers.handler()[0]
    token = handlers.tokens.add(Grant(user="ada"))
    others = FakeOtherWorkers(draining=False)
    ours, client = handlers.connect()
    handlers.serve(one, ours, PEER, None, others)
    client.granted("auth", token=token)
    others.draining = True
    client.send({"op": "mkdir", "name": "a"})
    sock, handoff = others.received.get(timeout=TIMEOUT_S)
    handlers.tokens.remove("ada")
    with sock:
        served = handlers.serve(other, sock, PEER, None, FakeOtherWorkers(draining=False), handoff)
        reply = client.receive()
        client.close()
        served.result(TIMEOUT_S)
    assert (reply.code, reply.closes) == ("auth-required", True)
    assert not (root / "a").exists()


def test_a_handed_over_connection_without_a_token_must_authenticate(handlers: Handlers) -> None:
    one, other = handlers.handler()[0], handlers.handler()[0]
    token = handlers.tokens.add(Grant(user="ada"))
    others = FakeOtherWorkers()
    ours, client = handlers.connect()
    handlers.serve(one, ours, PEER, None, others)
    client.sock.sendall(frame({"op": "hello", "version": 1}) + frame({"op": "ping"}))
    sock, handoff = others.received.get(timeout=TIMEOUT_S)
    handoff = unpack(*pack(handoff))
    assert handoff.grant is None
    with sock:
        served = handlers.serve(other, sock, PEER, None, FakeOtherWorkers(draining=False), handoff)
        assert client.receive()["auth"] is True
        assert client.receive().code == "auth-required"
        client.granted("auth", token=token)
        client.granted("ping")
        client.finish()
        served.result(TIMEOUT_S)
