"""A test link: two network namespaces, and a wire between them as slow and lossy as asked for.

Linux and root only. Every IP packet is treated alike, whatever is in it.
"""

import contextlib
import json
import math
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import ftpkit
from ftpkit.errors import FtpkitError
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

# The relay finds ftpkit where we found it, and runs nothing from the working directory.
_RELAY: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from ftpkit.lab.relay_process import main; main(sys.argv[2])"
)


class NetworkUnavailableError(FtpkitError):
    """This machine or this user cannot have a test link, or the link's relay has ended."""

    code = "link-unavailable"


@dataclass(frozen=True, slots=True)
class NetworkProfile:
    """How a link treats packets, in each direction on its own.

    ``bits_per_s`` counts the bits of whole IP packets a second; ``delay_s`` is
    one way. ``loss``, ``reorder`` and ``duplicate`` are shares of the packets,
    from 0 up to but not including 1; a reordered packet is late by up to one
    more delay. A packet that does not fit into ``queue_bytes`` is dropped. So is one
    that the sender's device takes, for it has no more than ``mtu`` bytes, and that is
    longer than ``path_mtu``; the sender is told so as a router does (ICMP), or hears
    nothing if that is a ``black_hole``. The same ``seed`` loses the same packets, by
    their number in their direction. Raises ValueError for what is not possible.
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
            raise ValueError("a link's rate is more than 0 bits a second")
        if not 0 <= self.delay_s < math.inf:
            raise ValueError("a link's delay is 0 seconds or more")
        for name in ("loss", "reorder", "duplicate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"a link's {name} is a share from 0 up to, but not, 1")
        if not _SMALLEST_MTU <= self.mtu <= _LARGEST_MTU:
            raise ValueError(f"a link's MTU is {_SMALLEST_MTU} to {_LARGEST_MTU} bytes")
        if not _SMALLEST_MTU <= self.narrowest <= self.mtu:
            raise ValueError(f"a link's path MTU is {_SMALLEST_MTU} bytes up to its MTU")
        if self.queue < self.mtu:
            raise ValueError("a link's queue holds at least one packet")

    @classmethod
    def parse(cls, text: str) -> "NetworkProfile":
        """Read ``100M,50ms,1%``: bits a second, the delay one way, and, if any, the loss.

        Raises ValueError with a sentence for a person.
        """
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise ValueError(
                f"{text!r} is no link: expected RATE,DELAY or RATE,DELAY,LOSS as in 100M,50ms,1%"
            )
        return cls(
            bits_per_s=float(match["rate"]) * _BITS[match["bits"].upper()],
            delay_s=float(match["delay"]) / _PER_SECOND[match["unit"]],
            loss=float(match["loss"] or 0) / 100,
        )

    @property
    def narrowest(self) -> int:
        """How long a packet may be that passes; unless given, as long as the device takes."""
        return self.mtu if self.path_mtu is None else self.path_mtu

    @property
    def queue(self) -> int:
        """How many bytes the queue holds; unless given, what fills the wire for a round trip."""
        if self.queue_bytes is not None:
            return self.queue_bytes
        return max(round(self.bits_per_s * 2 * self.delay_s / 8), _SMALLEST_QUEUE)


@dataclass(frozen=True, slots=True)
class NamespaceEnd:
    """One end of a link: a network namespace (as the path of a file) and its addresses.

    ``v6`` is None where the kernel has no IPv6.
    """

    namespace: str
    v4: str
    v6: str | None

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command that runs ``argv`` in this end, as the same process."""
        return ["nsenter", f"--net={self.namespace}", "--", *argv]


class NetworkCounts(NamedTuple):
    """What became of the packets, by direction."""

    to_far: NetworkStats
    to_near: NetworkStats


class EmulatedNetwork:
    """A link between ``near`` and ``far``, from the start of its block to the end.

    Nothing else on the machine sees it. When the block ends, or this process,
    however it does, link and namespaces are gone. Raises NetworkUnavailableError.
    """

    def __init__(self, shape: NetworkProfile) -> None:
        self.shape = shape
        _check_platform()
        self._lock = threading.Lock()
        self._relay = _start(shape)
        assert self._relay.stdin is not None
        assert self._relay.stdout is not None
        self._commands, self._answers = self._relay.stdin, self._relay.stdout
        try:
            hello = self._hear()
            if "error" in hello:
                raise NetworkUnavailableError(hello["error"])
        except BaseException:
            self.close()
            raise
        # By the relay's descriptors: the namespaces have no names that could be left behind.
        self.near, self.far = (
            NamespaceEnd(f"/proc/{self._relay.pid}/fd/{end['namespace']}", end["v4"], end["v6"])
            for end in hello["ends"]
        )

    @property
    def relay_pid(self) -> int:
        """The process that carries the packets."""
        return self._relay.pid

    def counts(self) -> NetworkCounts:
        """Return what became of the packets so far."""
        return self._ask("counts")

    def cut(self) -> NetworkCounts:
        """Let nothing through from now on, nor what is under way; return the counts."""
        return self._ask("cut")

    def mend(self) -> NetworkCounts:
        """Let packets through again."""
        return self._ask("mend")

    def narrow(self, path_mtu: int) -> NetworkCounts:
        """Let only packets of up to ``path_mtu`` bytes in from now on; return the counts."""
        return self._ask(f"narrow {path_mtu}")

    def close(self) -> None:
        """Take the link away; what still runs in an end finds itself without a network."""
        self._relay.kill()
        self._relay.wait()
        self._answers.close()
        with contextlib.suppress(BrokenPipeError):
            self._commands.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _ask(self, command: str) -> NetworkCounts:
        with self._lock:
            try:
                self._commands.write(f"{command}\n")
                self._commands.flush()
                answer = self._hear()
            except (OSError, ValueError):  # nobody listens, or we have closed the pipes
                raise NetworkUnavailableError("the link is gone") from None
        return NetworkCounts(*(NetworkStats(**strategy) for strategy in answer["ways"]))

    def _hear(self) -> dict[str, Any]:
        model = self._answers.readline()
        if not model:
            raise NetworkUnavailableError("the process that carries the link's packets has ended")
        answer: dict[str, Any] = json.loads(model)
        return answer


def _check_platform() -> None:
    if sys.platform != "linux":
        raise NetworkUnavailableError("a test link needs Linux")
    for command, package in (("ip", "iproute2"), ("nsenter", "util-linux")):
        if shutil.which(command) is None:
            raise NetworkUnavailableError(f"a test link needs the command {command} ({package})")


def _start(shape: NetworkProfile) -> "subprocess.Popen[str]":
    fields = asdict(shape) | {"queue_bytes": shape.queue, "path_mtu": shape.narrowest}
    root = str(Path(ftpkit.__file__).parent.parent)
    return subprocess.Popen(  # noqa: S603  # our own interpreter and code
        [sys.executable, "-P", "-c", _RELAY, root, json.dumps(fields)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
