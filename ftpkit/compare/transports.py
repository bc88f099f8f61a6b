"""The same file sent in different ways, and what each of them took."""

import contextlib
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from ftpkit.client import Client
from ftpkit.client.transfer.source import Source
from ftpkit.compare.tcp_info import congestion_controls
from ftpkit.compare.transport_process import Job, Result
from ftpkit.errors import LocalFileError
from ftpkit.lab.child import ChildProcess
from ftpkit.lab.network import EmulatedNetwork, NetworkCounts, NetworkProfile
from ftpkit.net.address import Address, Url

STREAMS: Final = 4

# A raw sender knows the rate of its link, and stays below it so that headers and an uneven pace
# overflow no queue: what is lost then, the link has lost.
_RAW_SHARE: Final = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Transport:
    """One way to send a file; see Job for the rest."""

    name: str
    streams: int = 0
    congestion: str | None = None
    repaired: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one transport took to bring a file over.

    ``bytes`` of the file arrived; ``seconds`` passed from the first connection's opening
    until the server held the last of them, ``first_byte_s`` until it had the first.
    ``goodput_bps`` is bits of the file a second. ``sent_bytes`` left in all, as far as is
    known, among them ``resent_bytes`` that left again; ``lost_bytes`` of pieces never
    arrived, which the kernel does not tell of TCP. Processor seconds are from the opening
    until the file was published and removed; a server's are known if it is our own.
    ``verified`` says that the file was published, whole and checked; ``stopped`` that its
    time was up before, and ``error``, in a sentence, that something else failed.
    ``congestion`` is the congestion control of TCP.
    """

    transport: str
    bytes: int
    seconds: float
    first_byte_s: float | None
    goodput_bps: float
    sent_bytes: int | None
    resent_bytes: int | None
    lost_bytes: int | None
    verified: bool
    client_cpu_s: float
    server_cpu_s: float | None
    congestion: str | None
    stopped: bool
    error: str | None


class Comparison:
    """Sends ``path`` to a server, in one way after the other, each time in a new process."""

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
        """Return the ways that there are here, TCP with the kernel's defaults first."""
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
        """Send the file in one way and remove it from the server.

        ChildError if a process that is needed for that has ended.
        """
        before_s = self._server_cpu_s()
        job = self._job(transport)
        near = self._network.near if self._network else None
        with ChildProcess("ftpkit.compare.transport_process", asdict(job), near) as child:
            result = Result(**child.receive())
        after_s = self._server_cpu_s()
        return Outcome(
            transport=transport.name,
            goodput_bps=result.bytes * 8 / result.seconds,
            server_cpu_s=None if before_s is None or after_s is None else after_s - before_s,
            **asdict(result),
        )

    def network_counts(self) -> NetworkCounts | None:
        """Return what became of all packets, if there is a link."""
        return self._network.counts() if self._network else None

    def _job(self, transport: Transport) -> Job:
        raw_bytes_per_s = None
        if not transport.repaired:
            raw_bytes_per_s = (
                self._network.profile.bits_per_s / 8 * _RAW_SHARE if self._network else 0.0
            )
        return Job(
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
    """Compare ways to send the file ``path``; each is broken off after ``limit_s`` seconds.

    It goes to the server at ``to``; else to one that is made for it, on loopback, or at
    the far end of a link of a ``shape``, which is made as well. Nothing is left behind.

    Raises LocalFileError for a file that cannot be sent, CannotConnectError where no server
    answers, NetworkUnavailableError where there can be no link.
    """
    with Source(path) as source:
        if source.total == 0:
            raise LocalFileError(f"{path!r} is empty: there is nothing to send")
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
    job: dict[str, Any] = {"host": network.far.v4 if network else None}
    far = network.far if network else None
    server = stack.enter_context(ChildProcess("ftpkit.compare.server_process", job, far))
    where = server.receive()
    return server, Url(Address(where["host"], where["port"]), plain=True)
