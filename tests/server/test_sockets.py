"""Sockets that a server opens itself, and those that it is handed."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ftpkit import Client, Server, UdpMode
from ftpkit.net.address import Address
from ftpkit.osapi import sockets as os_sockets
from ftpkit.server.sockets import adopt, bind
from ftpkit.server.workers.supervisor import Supervisor
from ftpkit.server.workers.worker import WorkerConfig
from tests.support.logs import Log
from tests.support.raw import Raw
from tests.support.trees import published

needs_shared_ports = pytest.mark.skipif(
    not os_sockets.HAS_SHARED_PORTS, reason="sockets cannot share a port here"
)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What closes the sockets of a test."""
    with ExitStack() as stack:
        yield stack


def tcp(stack: ExitStack, host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A socket as a service manager hands it over: it listens, and does not block."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = stack.enter_context(socket.create_server((host, port), family=family))
    sock.setblocking(False)
    return sock


def udp(stack: ExitStack, beside: socket.socket) -> socket.socket:
    sock = stack.enter_context(socket.socket(beside.family, socket.SOCK_DGRAM))
    sock.bind(beside.getsockname())
    return sock


def copies(*sockets: socket.socket) -> list[socket.socket]:
    """Return duplicates of sockets, which their owner keeps."""
    return [sock.dup() for sock in sockets]


def test_given_sockets_serve_one_start(root: Path) -> None:
    sockets = bind("127.0.0.1", 0, datagrams=True)
    where = [each.address for each in sockets]
    server = Server(root, host="127.0.0.1", port=0, sockets=sockets)
    with server:
        assert server.addresses == where
        with Raw(server.address) as raw:
            raw.granted("ping")
    with pytest.raises(ConnectionRefusedError):
        Raw(where[0])
    with server, Raw(server.address) as raw:
        raw.granted("ping")


def test_a_client_that_connects_before_the_start_is_served(root: Path) -> None:
    sockets = bind(None, 0, datagrams=False)
    with Raw(sockets[0].address) as raw, Server(root, sockets=sockets):
        raw.granted("ping")


@pytest.mark.parametrize("workers", [1, 2])
def test_given_sockets_are_closed_when_the_start_fails(tmp_path: Path, workers: int) -> None:
    (tmp_path / "file").touch()
    sockets = bind("127.0.0.1", 0, datagrams=True)
    server = (
        Server(tmp_path / "file", sockets=sockets)
        if workers == 1
        else Supervisor(tmp_path / "file", WorkerConfig(workers=workers), sockets=sockets)
    )
    with pytest.raises(OSError, match=r"exists|[Nn]ot a directory"):
        server.start()
    assert [each.tcp.fileno() for each in sockets] == [-1]


def test_shared_sockets_stay_open_when_the_server_has_stopped(
    root: Path, stack: ExitStack, log: Log
) -> None:
    held = [tcp(stack), tcp(stack)]
    for _ in range(2):
        with Server(root, sockets=adopt(copies(*held), datagrams=True)) as server:
            assert server.addresses == [Address(*sock.getsockname()) for sock in held]
            for address in server.addresses:
                with Raw(address) as raw:
                    raw.granted("ping")
    waiting = stack.enter_context(Raw(held[0].getsockname()))
    with Server(root, sockets=adopt(copies(*held), datagrams=False)):
        waiting.granted("ping")


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
@needs_shared_ports
def test_one_of_each_family_at_one_port(root: Path, stack: ExitStack, tmp_path: Path) -> None:
    four = tcp(stack, "0.0.0.0")
    six = tcp(stack, "::", four.getsockname()[1])
    sockets = adopt(copies(four, six), datagrams=True)
    (tmp_path / "f").write_bytes(bytes(3_000_000))
    with Server(root, sockets=sockets) as server:
        for name, host in (("four", "127.0.0.1"), ("six", "::1")):
            with Client(Address(host, server.address.port), udp=UdpMode.ONLY) as client:
                client.put(tmp_path / "f", name)
    assert set(published(root)) == {"four", "six"}


@needs_shared_ports
def test_a_udp_socket_is_adopted_with_its_tcp_socket(
    root: Path, stack: ExitStack, tmp_path: Path
) -> None:
    first, second = tcp(stack), tcp(stack)
    port = udp(stack, second)
    (tmp_path / "f").write_bytes(bytes(3_000_000))
    for name in ("one", "two"):
        sockets = adopt(copies(port, first, second), datagrams=True)
        assert [each.udp is not None for each in sockets] == [True, True]
        with Server(root, sockets=sockets) as server:
            for address in server.addresses:
                with Client(address, udp=UdpMode.ONLY) as client:
                    client.put(tmp_path / "f", f"{name} at {address.port}")
    assert len(published(root)) == 4


@needs_shared_ports
def test_one_udp_port_in_use_disables_udp(root: Path, stack: ExitStack, log: Log) -> None:
    first, second = tcp(stack), tcp(stack)
    udp(stack, second)
    sockets = adopt(copies(first, second), datagrams=True)
    assert [each.udp for each in sockets] == [None, None]
    line = log.wait_for("no datagrams")
    assert line["address"] == str(Address(*second.getsockname()))
    assert os.strerror(errno.EADDRINUSE) in line["error"]
    with Server(root, sockets=sockets) as server, Raw(server.address) as raw:
        raw.granted("ping")


def test_without_datagrams_a_udp_socket_is_closed(stack: ExitStack) -> None:
    one = tcp(stack)
    listening, port = copies(one, udp(stack, one))
    (only,) = adopt([listening, port], datagrams=False)
    assert (only.udp, port.fileno()) == (None, -1)
    only.close()


@pytest.mark.parametrize("kind", ["unix", "connected", "udp alone", "nothing"])
def test_other_sockets_are_refused(stack: ExitStack, kind: str) -> None:
    one = tcp(stack)
    match kind:
        case "unix":
            if not hasattr(socket, "AF_UNIX"):
                pytest.skip("no Unix sockets here")
            sockets = [one, stack.enter_context(socket.socket(socket.AF_UNIX))]
        case "connected":
            sockets = [one, stack.enter_context(socket.create_connection(one.getsockname()))]
        case "udp alone":
            sockets = [udp(stack, one)]
        case _:
            sockets = []
    with pytest.raises(ValueError, match="listening TCP socket"):
        adopt(sockets, datagrams=True)
