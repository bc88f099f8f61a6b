"""The process between the two ends of a test link: it makes them, and carries every packet.

It holds the namespaces and their devices by descriptors alone, so whatever
ends it takes them away. It ends by itself with its standard input.
"""

import contextlib
import ctypes
import errno
import fcntl
import gc
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from dataclasses import asdict
from math import inf
from typing import Any, Final

from ftpkit.lab.icmp import too_big
from ftpkit.lab.model import NetworkModel

_DEVICE: Final = "link0"
_V4: Final = ("10.0.0.1", "10.0.0.2")
_V6: Final = ("fd00::1", "fd00::2")

_TUN: Final = "/dev/net/tun"
_CLONE_NEWNET: Final = 0x40000000
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_IFREQ: Final = struct.Struct("16sH22x")

# A burst must reach the queue of the link, whose length is part of the test, and
# not overflow the one of the device before the relay has come to look.
_DEVICE_QUEUE_PACKETS: Final = 10_000
# How many packets of one direction are read before the other has its turn: enough for
# a million a second.
_BATCH: Final = 256
# Packets that come or leave within this time are moved in one go. Waking up for each
# would take half a processor at 100 Mbit/s, from those who share it with the relay.
_GRAIN_S: Final = 0.000_2
_COMMANDS: Final = 0  # our standard input


class UnavailableError(Exception):
    """This machine cannot have a test link; the message is a sentence for a person."""


class NamespaceDevice:
    """A new network namespace with a device, into which the calling thread moves for good."""

    def __init__(self, *, mtu: int, side: int) -> None:
        _unshare()
        self.namespace = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.fd = _open_device()
        # Bound to the namespace in which it was opened.
        self._statistics = os.open("/proc/net/dev", os.O_RDONLY | os.O_CLOEXEC)
        peer, has_v6 = 1 - side, os.path.isdir("/proc/sys/net/ipv6")
        self.v4, self.v6 = _V4[side], _V6[side] if has_v6 else None
        # A connection must not start with what an earlier one has learned.
        _set("net/ipv4/tcp_no_metrics_save", 1)
        _set("net/ipv6/conf/all/disable_ipv6", 0)
        device = f"dev {_DEVICE}"
        _ip(
            "link set dev lo up",
            f"link set {device} mtu {mtu} txqueuelen {_DEVICE_QUEUE_PACKETS}",
            # Before it is up, or the kernel sends router solicitations of its own.
            *([f"link set {device} addrgenmode none"] if has_v6 else []),
            f"link set {device} up",
            f"addr add {self.v4} peer {_V4[peer]} {device}",
            *([f"addr add {self.v6} peer {_V6[peer]} {device} nodad"] if has_v6 else []),
        )

    @property
    def overrun(self) -> int:
        """How many packets the device dropped because nobody read them in time."""
        lines = os.pread(self._statistics, 65536, 0).decode()
        fields = lines.partition(f"{_DEVICE}:")[2].split()
        return int(fields[11])


class Forwarder:
    """One direction: from the device ``source``, through ``line``, into ``sink``.

    Who sent a packet that is too long for the line is told so, unless that is a ``black_hole``.
    """

    def __init__(
        self,
        source: NamespaceDevice,
        sink: NamespaceDevice,
        model: NetworkModel,
        *,
        mtu: int,
        black_hole: bool,
    ) -> None:
        self.source, self._sink, self._end = source.fd, sink.fd, source
        self.model, self._mtu, self._black_hole = model, mtu, black_hole

    def collect(self) -> None:
        """Take a batch of what the sender has sent."""
        take, now = self.model.take, time.monotonic()
        with contextlib.suppress(BlockingIOError):  # that was all of it
            for _ in range(_BATCH):
                packet = os.read(self.source, self._mtu)
                if not take(packet, now) and not self._black_hole:
                    os.write(self.source, too_big(packet, self.model.path_mtu))

    def deliver(self) -> int:
        """Hand over what has arrived; return how many packets that were."""
        packets, count = self.model.arrived(time.monotonic()), self.model.count
        for packet in packets:
            try:
                count.forwarded_bytes += os.write(self._sink, packet)
                count.forwarded += 1
            except OSError:  # the device is down, or the kernel out of memory
                count.cut += 1
        return len(packets)

    def report(self) -> dict[str, Any]:
        """Return the counts as they are now."""
        count = self.model.count
        count.overrun, count.waiting = self._end.overrun, self.model.under_way
        return asdict(count)


class PacketRelay:
    """Carries packets both ways, and does what one line on standard input says."""

    def __init__(self, forwarders: list[Forwarder]) -> None:
        self._ways = forwarders
        self._sources = [_COMMANDS, *(strategy.source for strategy in forwarders)]

    def run(self) -> None:
        """Carry until standard input ends."""
        forwarders, busy = self._ways, 0
        while True:
            if busy:
                time.sleep(_GRAIN_S)
            busy = sum(strategy.deliver() for strategy in forwarders)
            due = min(strategy.model.next_due for strategy in forwarders)
            wait = None if due == inf else max(0.0, due - time.monotonic())
            # select and not poll or epoll, which round to a millisecond.
            ready = select.select(self._sources, (), (), wait)[0]
            for strategy in forwarders:
                if strategy.source in ready:
                    strategy.collect()
                    busy += 1
            if _COMMANDS in ready and not self._obey():
                return

    def _obey(self) -> bool:
        command = os.read(_COMMANDS, 16).split()
        if not command:
            return False
        for model in (strategy.model for strategy in self._ways):
            match command:
                case [b"cut"]:
                    model.cut()
                case [b"mend"]:
                    model.mend()
                case [b"narrow", path_mtu]:
                    model.path_mtu = int(path_mtu)
        _answer({"ways": [strategy.report() for strategy in self._ways]})
        return True


def main(shape: str) -> None:
    """Make the link that ``shape`` (a JSON object) describes, say where it is, and carry."""
    # Ctrl-C is for the one who started us; we end when that one closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fields = json.loads(shape)
    mtu, black_hole, seed = (fields.pop(name) for name in ("mtu", "black_hole", "seed"))
    try:
        ends = [NamespaceDevice(mtu=mtu, side=side) for side in (0, 1)]
    except UnavailableError as error:
        _answer({"error": str(error)})
        return
    near, far = ends
    forwarders = [
        Forwarder(
            source,
            sink,
            NetworkModel(**fields, seed=f"{seed} to {to}"),
            mtu=mtu,
            black_hole=black_hole,
        )
        for source, sink, to in ((near, far, "far"), (far, near, "near"))
    ]
    _hurry()
    _answer({"ends": [{"namespace": e.namespace, "v4": e.v4, "v6": e.v6} for e in ends]})
    with contextlib.suppress(BrokenPipeError):  # nobody is there to be answered
        PacketRelay(forwarders).run()


def _answer(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _hurry() -> None:
    """Come before the programs whose packets we carry: their load must not make the link late."""
    gc.disable()  # nothing here makes cycles
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -20)


def _unshare() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        if number == errno.EPERM:
            raise UnavailableError("a test link needs root: it makes network namespaces")
        raise UnavailableError(f"no network namespace can be made here: {os.strerror(number)}")


def _open_device() -> int:
    try:
        fd = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(_DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError as error:
        raise UnavailableError(f"a test link needs {_TUN}: {error.strerror}") from None
    return fd


def _ip(*commands: str) -> None:
    try:
        done = subprocess.run(
            ["ip", "-batch", "-"],  # noqa: S607  # wherever this system keeps it
            input="\n".join(commands),
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise UnavailableError("a test link needs the command ip (iproute2)") from None
    if done.returncode != 0:
        raise UnavailableError(f"ip cannot set up a test link: {done.stderr.strip()}")


def _set(name: str, value: int) -> None:
    # Where /proc/sys is read-only, the defaults must do.
    with contextlib.suppress(OSError), open(f"/proc/sys/{name}", "w") as file:
        file.write(str(value))
