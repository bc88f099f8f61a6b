"""An emulated network: two network namespaces, connected with a given rate, delay and loss.

Linux and root only. All IP packets are treated alike, whatever their protocol.
"""

import shutil
import sys
import threading
from dataclasses import asdict
from typing import NamedTuple, Self

from ftpkit.errors import FtpkitError
from ftpkit.lab.child import ChildError, ChildProcess, NamespaceEnd
from ftpkit.lab.model import NetworkProfile, NetworkStats


class NetworkUnavailableError(FtpkitError):
    """This machine or user cannot create an emulated network, or its relay has exited."""

    code = "network-unavailable"


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
        self._relay = ChildProcess("ftpkit.lab.relay_process", asdict(profile))
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
