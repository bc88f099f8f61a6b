"""Connecting to a host of which an address does not answer."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from ftpkit.client import dial
from ftpkit.client.dial import Dialer, Target, interleaved
from ftpkit.net.address import Address

SILENT, GOOD = "127.0.0.2", "127.0.0.1"


@pytest.fixture
def port() -> Iterator[int]:
    """A port that listens on GOOD, and whose full backlog on SILENT drops every SYN."""
    with ExitStack() as stack:
        good = stack.enter_context(socket.create_server((GOOD, 0)))
        port: int = good.getsockname()[1]
        silent = stack.enter_context(socket.socket())
        silent.bind((SILENT, port))
        silent.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((SILENT, port))
        yield port


def resolve(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    def found(host: str, port: int, **keys: Any) -> list[Any]:
        kind = socket.SOCK_STREAM
        return [(socket.AF_INET, kind, 0, "", (each, port)) for each in hosts]

    monkeypatch.setattr(socket, "getaddrinfo", found)


def connect(dialer: Dialer, port: int, timeout_s: float = 20.0) -> tuple[str, float]:
    """Return the address that answered, and the seconds that it took."""
    began = time.monotonic()
    with dialer.connect(Address("host", port), timeout_s) as sock:
        assert sock.gettimeout() == timeout_s
        return sock.getpeername()[0], time.monotonic() - began


def test_an_address_that_does_not_answer_costs_little_and_is_remembered(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, SILENT, GOOD)
    dialer = Dialer()
    answered, seconds = connect(dialer, port)
    assert answered == GOOD
    assert 0.2 < seconds < 15.0
    used = set[socket.socket]()
    dialer.connect(Address("host", port), 20.0, used.add).close()
    assert len(used) == 1


def test_after_a_refusal_the_next_address_is_tried_at_once(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, "127.0.0.3", GOOD)
    monkeypatch.setattr(dial, "_STAGGER_S", 20.0)
    answered, seconds = connect(Dialer(), port)
    assert answered == GOOD
    assert seconds < 15.0


def test_the_error_of_a_host_that_does_not_answer(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, SILENT)
    with pytest.raises(TimeoutError):
        connect(Dialer(), port, 0.5)
    resolve(monkeypatch, "127.0.0.3")
    with pytest.raises(ConnectionRefusedError):
        connect(Dialer(), port)


def test_a_connection_attempt_can_be_interrupted(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, SILENT)
    calls: list[socket.socket] = []

    def on_socket(sock: socket.socket) -> None:
        calls.append(sock)
        if len(calls) > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Dialer().connect(Address("host", port), 20.0, on_socket)


def test_families_take_turns() -> None:
    six: list[Target] = [(socket.AF_INET6, 1, 0, (f"::{n}", 1)) for n in range(3)]
    four: list[Target] = [(socket.AF_INET, 1, 0, (f"127.0.0.{n}", 1)) for n in range(2)]
    assert interleaved([*six, *four]) == [six[0], four[0], six[1], four[1], six[2]]
