"""Comparison of transports: one file uploaded over TCP and UDP, and what each took."""

import contextlib
import math
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from ftpkit.client import Client
from ftpkit.client.transfer.source import Source
from ftpkit.compare.tcp_info import congestion_controls
from ftpkit.compare.transport_process import Job, Transport, TransportResult
from ftpkit.errors import LocalFileError
from ftpkit.lab.child import ChildProcess
from ftpkit.lab.model import NetworkProfile
from ftpkit.lab.network import EmulatedNetwork, NetworkCounts
from ftpkit.net.address import Address, Url

STREAMS: Final = 4

# The share of the network's rate at which raw UDP sends: with headers and bursts it stays below
# the rate, so that no queue overflows and only the network's own loss is measured.
_RAW_SHARE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Comparison:
    """Uploads ``path`` with one transport after the other, each in a new process."""

    path: str
    url: Url
    limit_s: float
    server: ChildProcess | None = None
    network: EmulatedNetwork | None = None

    def transports(self) -> list[Transport]:
        """Return the transports that this machine has, TCP with the defaults first."""
        profile = self.network.profile if self.network else None
        raw_bytes_per_s = profile.bits_per_s / 8 * _RAW_SHARE if profile else math.inf
        return [
            Transport(name="tcp", streams=1),
            Transport(name=f"tcp-{STREAMS}", streams=STREAMS),
            *(
                Transport(name=f"tcp-{control}", streams=1, congestion=control)
                for control in congestion_controls()[1:]
            ),
            Transport(name="udp-raw", raw_bytes_per_s=raw_bytes_per_s),
            Transport(name="udp"),
        ]

    def measure(self, transport: Transport) -> TransportResult:
        """Upload the file with ``transport`` and remove it from the server.

        Raises ChildError if a child process has exited.
        """
        job = Job(
            transport=transport,
            url=self.url.login_url(),
            path=self.path,
            name=f"ftpkit-compare-{secrets.token_hex(8)}",
            limit_s=self.limit_s,
        )
        before_s = self._server_cpu_s()
        near = self.network.near if self.network else None
        with ChildProcess("ftpkit.compare.transport_process", asdict(job), near) as child:
            outcome = TransportResult(**child.receive())
        after_s = self._server_cpu_s()
        if before_s is None or after_s is None:
            return outcome
        return replace(outcome, server_cpu_s=after_s - before_s)

    def network_counts(self) -> NetworkCounts | None:
        """Return what became of all packets of an emulated network, if there is one."""
        return self.network.counts() if self.network else None

    def _server_cpu_s(self) -> float | None:
        return self.server.request()["cpu_s"] if self.server else None


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
    if to is not None:
        with Client(to) as client:
            client.ping()
        yield Comparison(absolute, to, limit_s)
        return
    with ExitStack() as stack:
        network = stack.enter_context(EmulatedNetwork(profile)) if profile else None
        far = network.far if network else None
        job = {"host": far.v4 if far else None}
        server = stack.enter_context(ChildProcess("ftpkit.compare.server_process", job, far))
        url = Url(Address(**server.receive()), plain=True)
        yield Comparison(absolute, url, limit_s, server, network)
