"""An emulated network: two network namespaces, connected with a given rate, delay and loss.

Linux and root only. All IP packets are treated alike, whatever their protocol.
"""

import math
import re
import shutil
import sys
import threading
from dataclasses import asdict, dataclass
from typing import Final, NamedTuple, Self

from ftpkit.errors import FtpkitError
from ftpkit.lab.child import ChildError, ChildProcess, NamespaceEnd
from ftpkit.lab.model import NetworkStats

_SMALLEST_MTU: Final = 1280  # IPv6 asks for it
_LARGEST_MTU: Final = 65535
_SMALLEST_QUEUE: Final = 64 * 1024

_NUMBER: Final = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
_FORM: Final = re.compile(
    rf"(?P<rate>{_NUMBER}) ?(?P<bits>[kKMG]), *(?P<delay>{_NUMBER}) ?(?P<unit>us|ms|s)"
    rf"(?:, *(?P<loss>{_NUMBER}) ?%)?"
)
_BITS: Final = {"K": 1e3, "M": 1e6, "G": 1e9}
_PER_SECOND: Final = {"us": 1e6, "ms": 1e3, "s": 1.0}


class NetworkUnavailableError(FtpkitError):
    """This machine or user cannot create an emulated network, or its relay has exited."""

    code = "network-unavailable"


@dataclass(frozen=True, slots=True)
class NetworkProfile:
    """How packets are treated, in each direction separately.

    ``bits_per_s`` counts whole IP packets; ``delay_s`` is one way. ``loss``, ``reorder`` and
    ``duplicate`` are probabilities from 0 to below 1; a reordered packet is delayed by up to
    ``delay_s`` more. Packets beyond ``queue_bytes`` are dropped. The device accepts packets of
    up to ``mtu`` bytes; those over ``path_mtu`` are dropped and reported as a router does
    (ICMP), or silently if ``black_hole``. With the same ``seed``, the same packets, counted per
    direction, are lost. Raises ValueError for an impossible value.
    """

    bits_per_s: float
    delay_s: float
    loss: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    mtu: int = 1500
    path_mtu: int | None = None
    black_hole: bool = False
    queue_bytes: int | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.bits_per_s < math.inf:
            raise ValueError("the rate must be above 0 bits per second")
        if not 0 <= self.delay_s < math.inf:
            raise ValueError("the delay must be at least 0 seconds")
        for name in ("loss", "reorder", "duplicate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"the {name} must be at least 0 and below 1")
        if not _SMALLEST_MTU <= self.mtu <= _LARGEST_MTU:
            raise ValueError(f"the MTU must be {_SMALLEST_MTU} to {_LARGEST_MTU} bytes")
        if not _SMALLEST_MTU <= self.narrowest <= self.mtu:
            raise ValueError(f"the path MTU must be at least {_SMALLEST_MTU} and at most the MTU")
        if self.queue < self.mtu:
            raise ValueError("the queue must hold at least one packet")

    @classmethod
    def parse(cls, text: str) -> "NetworkProfile":
        """Parse ``100M,50ms,1%``: bits per second, one-way delay and, optionally, loss.

        Raises ValueError with a message for people.
        """
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise ValueError(
                f"invalid network {text!r}: use RATE,DELAY or RATE,DELAY,LOSS as in 100M,50ms,1%"
            )
        return cls(
            bits_per_s=float(match["rate"]) * _BITS[match["bits"].upper()],
            delay_s=float(match["delay"]) / _PER_SECOND[match["unit"]],
            loss=float(match["loss"] or 0) / 100,
        )

    @property
    def narrowest(self) -> int:
        """The longest packet that passes in bytes: ``path_mtu``, or ``mtu`` by default."""
        return self.mtu if self.path_mtu is None else self.path_mtu

    @property
    def queue(self) -> int:
        """The queue in bytes: ``queue_bytes``, or one bandwidth-delay product by default."""
        if self.queue_bytes is not None:
            return self.queue_bytes
        return max(round(self.bits_per_s * 2 * self.delay_s / 8), _SMALLEST_QUEUE)


class NetworkCounts(NamedTuple):
    """What became of the packets, by direction."""

    to_far: NetworkStats
    to_near: NetworkStats


class EmulatedNetwork:
    """A network between the namespaces ``near`` and ``far`` that nothing else can reach.

    It exists until ``close``, or until this process exits in any way. Raises
    NetworkUnavailableError.
    """

    def __init__(self, profile: NetworkProfile) -> None:
        self.profile = profile
        _check_platform()
        self._lock = threading.Lock()
        job = asdict(profile) | {"queue_bytes": profile.queue, "path_mtu": profile.narrowest}
        self._relay = ChildProcess("ftpkit.lab.relay_process", job)
        try:
            hello = self._relay.receive()
            if "error" in hello:
                raise NetworkUnavailableError(hello["error"])
        except BaseException:
            self.close()
            raise
        # Through the relay's descriptors: namespaces without names cannot be left behind.
        self.near, self.far = (
            NamespaceEnd(f"/proc/{self._relay.pid}/fd/{end['namespace']}", end["v4"], end["v6"])
            for end in hello["ends"]
        )

    @property
    def relay_pid(self) -> int:
        """The process that forwards the packets."""
        return self._relay.pid

    def counts(self) -> NetworkCounts:
        """Return what became of the packets so far."""
        return self._request("counts")

    def cut(self) -> NetworkCounts:
        """Drop all packets from now on, also those in flight; return the counts."""
        return self._request("cut")

    def restore(self) -> NetworkCounts:
        """Forward packets again after ``cut``."""
        return self._request("restore")

    def set_path_mtu(self, path_mtu: int) -> NetworkCounts:
        """Drop packets of more than ``path_mtu`` bytes from now on; return the counts."""
        return self._request(f"path_mtu {path_mtu}")

    def close(self) -> None:
        """Remove the network; processes in its namespaces lose their connections."""
        self._relay.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _request(self, command: str) -> NetworkCounts:
        with self._lock:
            try:
                reply = self._relay.request(command)
            except (ChildError, OSError, ValueError):  # ValueError: closed pipes
                raise NetworkUnavailableError("the emulated network is gone") from None
        return NetworkCounts(*(NetworkStats(**stats) for stats in reply["stats"]))


def _check_platform() -> None:
    if sys.platform != "linux":
        raise NetworkUnavailableError("an emulated network needs Linux")
    for command, package in (("ip", "iproute2"), ("nsenter", "util-linux")):
        if shutil.which(command) is None:
            raise NetworkUnavailableError(
                f"an emulated network needs the command {command}: install {package}"
            )
