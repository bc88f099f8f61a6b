"""Comparison of transports: one file uploaded over TCP and UDP, and what each took."""

import contextlib
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from ftpkit.client import Client
from ftpkit.client.transfer.source import Source
from ftpkit.compare.tcp_info import congestion_controls
from ftpkit.compare.transport_process import Job, Outcome
from ftpkit.errors import LocalFileError
from ftpkit.lab.child import ChildProcess
from ftpkit.lab.model import NetworkProfile
from ftpkit.lab.network import EmulatedNetwork, NetworkCounts
from ftpkit.net.address import Address, Url

STREAMS: Final = 4

# The share of the network's rate at which raw UDP sends: with headers and bursts it stays below
# the rate, so that no queue overflows and only the network's own loss is measured.
_RAW_SHARE: Final = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Transport:
    """A way to send a file: see ``Job``; ``repaired`` is False for raw UDP."""

    name: str
    streams: int = 0
    congestion: str | None = None
    repaired: bool = True


class Comparison:
    """Uploads ``path`` with one transport after the other, each in a new process."""

    def __init__(
        self,
        path: str,
        url: Url,
        server: ChildProcess | None,
        network: EmulatedNetwork | None,
        limit_s: float,
    ) -> None:
        self._path, self._url, self._limit_s = path, url, limit_s
        self._server, self._network = server, network

    def transports(self) -> list[Transport]:
        """Return the transports that this machine has, TCP with the defaults first."""
        return [
            Transport(name="tcp", streams=1),
            Transport(name=f"tcp-{STREAMS}", streams=STREAMS),
            *(
                Transport(name=f"tcp-{control}", streams=1, congestion=control)
                for control in congestion_controls()[1:]
            ),
            Transport(name="udp-raw", repaired=False),
            Transport(name="udp"),
        ]

    def measure(self, transport: Transport) -> Outcome:
        """Upload the file with ``transport`` and remove it from the server.

        Raises ChildError if a child process has exited.
        """
        before_s = self._server_cpu_s()
        job = self._job(transport)
        near = self._network.near if self._network else None
        with ChildProcess("ftpkit.compare.transport_process", asdict(job), near) as child:
            outcome = Outcome(**child.receive())
        after_s = self._server_cpu_s()
        if before_s is None or after_s is None:
            return outcome
        return replace(outcome, server_cpu_s=after_s - before_s)

    def network_counts(self) -> NetworkCounts | None:
        """Return what became of all packets of an emulated network, if there is one."""
        return self._network.counts() if self._network else None

    def _job(self, transport: Transport) -> Job:
        raw_bytes_per_s = None
        if not transport.repaired:
            raw_bytes_per_s = (
                self._network.profile.bits_per_s / 8 * _RAW_SHARE if self._network else 0.0
            )
        return Job(
            transport=transport.name,
            url=self._url.login_url(),
            path=self._path,
            name=f"ftpkit-compare-{secrets.token_hex(8)}",
            limit_s=self._limit_s,
            streams=transport.streams,
            congestion=transport.congestion,
            raw_bytes_per_s=raw_bytes_per_s,
        )

    def _server_cpu_s(self) -> float | None:
        if self._server is None:
            return None
        seconds: float = self._server.request()["cpu_s"]
        return seconds


@contextlib.contextmanager
def comparing(
    path: str,
    *,
    to: Url | None = None,
    profile: NetworkProfile | None = None,
    limit_s: float = 60.0,
) -> Iterator[Comparison]:
    """Compare transports for the file ``path``; each is stopped after ``limit_s`` seconds.

    The server is the one at ``to``, or one started for the comparison: on loopback, or at
    the far end of a network emulated after ``profile``. Nothing is left behind.

    Raises LocalFileError for a file that cannot be uploaded, CannotConnectError if no server
    answers and NetworkUnavailableError if the network cannot be emulated.
    """
    with Source(path) as source:
        if source.total == 0:
            raise LocalFileError(f"{path!r} is empty: give a file with data")
    absolute = str(Path(path).absolute())
    with ExitStack() as stack:
        if to is not None:
            with Client(to) as client:
                client.ping()
            yield Comparison(absolute, to, None, None, limit_s)
            return
        network = stack.enter_context(EmulatedNetwork(profile)) if profile else None
        server, url = _start_server(stack, network)
        yield Comparison(absolute, url, server, network, limit_s)


def _start_server(stack: ExitStack, network: EmulatedNetwork | None) -> tuple[ChildProcess, Url]:
    far = network.far if network else None
    job: dict[str, Any] = {"host": far.v4 if far else None}
    server = stack.enter_context(ChildProcess("ftpkit.compare.server_process", job, far))
    return server, Url(Address(**server.receive()), plain=True)
