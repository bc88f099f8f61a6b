"""Uploads of a trace to a real server, and when each completed."""

import contextlib
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from ftpkit.client.connection import Connection
from ftpkit.client.transfer.source import Source
from ftpkit.client.transfer.udp import UdpMode, UdpTransfer
from ftpkit.client.transfer.upload import Upload
from ftpkit.compare.connections import Connections
from ftpkit.compare.trace import Arrival
from ftpkit.errors import LocalFileError
from ftpkit.lab.child import ChildProcess
from ftpkit.net.address import Address, Url

_HOST: Final = "127.0.0.1"
# Uploads beyond this number wait, and the wait counts.
_MAX_UPLOADS: Final = 400
_MAX_CONNECTIONS: Final = 10_000
# An upload may wait for its turn as long as the whole trace takes.
_TIMEOUT_S: Final = 86400.0


def upload_trace(trace: Sequence[Arrival], policy: str, bytes_per_s: float) -> list[float]:
    """Return when each upload of ``trace`` completed, in seconds, on a server with a rate limit.

    The server is a child process, and each upload a thread that starts at its time, over an
    idle connection of its user or a new one. The server tells users apart by address, where
    loopback has more than one; elsewhere all are one user. Nothing is left behind.

    Raises LocalFileError for a size that no file can have here, and what ends an upload.
    """
    with (
        TemporaryDirectory(prefix="ftpkit-compare-") as directory,
        ChildProcess("ftpkit.compare.server_process", _job(policy, bytes_per_s)) as server,
    ):
        url = Url(Address(_HOST, server.receive()["port"]), plain=True)
        zeros = _zeros(directory, max(arrival.size for arrival in trace))
        connections = Connections(url, timeout_s=_TIMEOUT_S)
        uploads = _Uploads(connections, zeros, {arrival.user for arrival in trace})
        with ThreadPoolExecutor(_MAX_UPLOADS) as pool, contextlib.closing(connections):
            try:
                return _run(trace, uploads, pool)
            except BaseException:
                connections.stop()
                pool.shutdown(cancel_futures=True)
                raise


def _job(policy: str, bytes_per_s: float) -> dict[str, Any]:
    return {
        "host": _HOST,
        "durable": False,
        "datagrams": False,
        "limits": {
            "schedule": policy,
            "bytes_per_s": bytes_per_s,
            "max_connections": _MAX_CONNECTIONS,
            "max_connections_per_address": _MAX_CONNECTIONS,
            "idle_timeout_s": _TIMEOUT_S,
        },
    }


def _zeros(directory: str, size: int) -> str:
    """Return the path of a sparse file of ``size`` bytes; every upload is a prefix of it."""
    path = Path(directory, "zeros")
    try:
        with path.open("wb") as file:
            file.truncate(size)
    except OSError as error:
        raise LocalFileError(f"cannot make a file of {size:,} bytes: {error.strerror}") from None
    return str(path)


def _run(trace: Sequence[Arrival], uploads: "_Uploads", pool: ThreadPoolExecutor) -> list[float]:
    failed = threading.Event()
    start_s = time.monotonic()

    def upload(arrival: Arrival) -> float:
        try:
            uploads.upload(arrival)
        except BaseException:
            failed.set()
            raise
        return time.monotonic() - start_s

    begun = []
    for arrival in trace:
        pause_s = start_s + arrival.at_s - time.monotonic()
        if failed.wait(min(max(0.0, pause_s), threading.TIMEOUT_MAX)):
            break
        begun.append(pool.submit(upload, arrival))
    for ended in wait(begun, return_when=FIRST_EXCEPTION).done:
        ended.result()
    return [each.result() for each in begun]


class _Uploads:
    """Uploads from many threads, over connections from the address of each user."""

    def __init__(self, connections: Connections, path: str, users: set[str]) -> None:
        self._connections, self._path = connections, path
        first = IPv4Address(_HOST)
        self._hosts = {user: str(first + at) for at, user in enumerate(sorted(users))}
        self._idle: dict[str, list[tuple[Connection, str]]] = defaultdict(list)

    def upload(self, arrival: Arrival) -> None:
        """Upload a file of the arrival's size; it replaces the connection's previous one."""
        idle = self._idle[arrival.user]
        try:
            connection, name = idle.pop()
        except IndexError:
            connection = self._connections.open(partial(_bind, self._hosts[arrival.user]))
            name = "-".join(map(str, connection.sock.getsockname()))
        with Source(self._path) as source:
            source.total = arrival.size
            Upload(
                source,
                name,
                overwrite=True,
                digest_cache=None,
                on_progress=lambda moved, total: None,
                on_retry=lambda error, delay: None,
                udp_transfer=UdpTransfer(UdpMode.NO, None),
            ).run(connection)
        idle.append((connection, name))


def _bind(host: str, sock: socket.socket) -> None:
    """Bind a socket to a local address, if the machine has it."""
    with contextlib.suppress(OSError):
        sock.bind((host, 0))
