"""The relay process of an emulated network: creates its namespaces and forwards the packets.

It holds the namespaces and their devices only by descriptors, so they disappear with it,
however it exits. It exits when its standard input ends.
"""

import contextlib
import ctypes
import errno
import fcntl
import gc
import json
import os
import select
import struct
import subprocess
import time
from dataclasses import asdict
from math import inf
from typing import Any, Final

from ftpkit.lab.child import reply
from ftpkit.lab.icmp import too_big
from ftpkit.lab.model import NetworkModel, NetworkProfile

_DEVICE: Final = "lab0"
_V4: Final = ("10.0.0.1", "10.0.0.2")
_V6: Final = ("fd00::1", "fd00::2")

_TUN: Final = "/dev/net/tun"
_CLONE_NEWNET: Final = 0x40000000
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_IFREQ: Final = struct.Struct("16sH22x")

# Bursts must overflow the queue of the model, not that of the device.
_DEVICE_QUEUE_PACKETS: Final = 10_000
# How many packets are read from one direction before the other: enough for a million a second.
_BATCH: Final = 256
# Packets are moved in batches at this interval. Waking up for each would use half a core at
# 100 Mbit/s, which the measured processes need.
_GRAIN_S: Final = 0.000_2
_COMMANDS: Final = 0  # our standard input


class UnavailableError(Exception):
    """This machine cannot create an emulated network; the message is for people."""


class NamespaceDevice:
    """A new network namespace with a TUN device; the calling thread moves into it."""

    def __init__(self, *, mtu: int, side: int) -> None:
        _unshare()
        self.namespace = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.fd = _open_device()
        # It shows the namespace in which it was opened, also after the thread has left.
        self._statistics = os.open("/proc/net/dev", os.O_RDONLY | os.O_CLOEXEC)
        peer, has_v6 = 1 - side, os.path.isdir("/proc/sys/net/ipv6")
        self.v4, self.v6 = _V4[side], _V6[side] if has_v6 else None
        # A connection must not start with the metrics of an earlier one.
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
        """How many packets the device dropped because the relay was late."""
        lines = os.pread(self._statistics, 65536, 0).decode()
        fields = lines.partition(f"{_DEVICE}:")[2].split()
        return int(fields[11])


class Forwarder:
    """One direction: reads from device ``source``, writes to ``sink`` as the model says."""

    def __init__(
        self, source: NamespaceDevice, sink: NamespaceDevice, profile: NetworkProfile, to: str
    ) -> None:
        self.source, self._sink, self._source_device = source.fd, sink.fd, source
        self.model, self._profile = NetworkModel(profile, to), profile

    def collect(self) -> None:
        """Read a batch of packets from the source."""
        enqueue, now = self.model.enqueue, time.monotonic()
        with contextlib.suppress(BlockingIOError):  # no more packets
            for _ in range(_BATCH):
                packet = os.read(self.source, self._profile.mtu)
                if not enqueue(packet, now) and not self._profile.black_hole:
                    os.write(self.source, too_big(packet, self.model.path_mtu))

    def deliver(self) -> int:
        """Write the packets that have arrived; return their number."""
        packets, stats = self.model.arrived(time.monotonic()), self.model.stats
        for packet in packets:
            try:
                stats.forwarded_bytes += os.write(self._sink, packet)
                stats.forwarded += 1
            except OSError:  # the device is down, or the kernel out of memory
                stats.cut += 1
        return len(packets)

    def report(self) -> dict[str, Any]:
        stats = self.model.stats
        stats.overrun, stats.waiting = self._source_device.overrun, self.model.in_flight
        return asdict(stats)


def main(job: str) -> None:
    """Create the network of ``job``, a NetworkProfile in JSON, report it, and forward."""
    profile = NetworkProfile(**json.loads(job))
    try:
        near, far = (NamespaceDevice(mtu=profile.mtu, side=side) for side in (0, 1))
    except UnavailableError as error:
        reply({"error": str(error)})
        return
    forwarders = [Forwarder(near, far, profile, "far"), Forwarder(far, near, profile, "near")]
    _raise_priority()
    ends = [{"namespace": e.namespace, "v4": e.v4, "v6": e.v6} for e in (near, far)]
    reply({"ends": ends})
    with contextlib.suppress(BrokenPipeError):  # the parent has exited
        _relay(forwarders)


def _relay(forwarders: list[Forwarder]) -> None:
    """Forward packets and run the commands from standard input until it ends."""
    sources, busy = [_COMMANDS, *(forwarder.source for forwarder in forwarders)], 0
    while True:
        if busy:
            # The next packet is due at a time: nothing becomes readable then.
            time.sleep(_GRAIN_S)
        busy = sum(forwarder.deliver() for forwarder in forwarders)
        due = min(forwarder.model.next_due for forwarder in forwarders)
        wait = None if due == inf else max(0.0, due - time.monotonic())
        # select, because poll and epoll round to a millisecond.
        ready = select.select(sources, (), (), wait)[0]
        for forwarder in forwarders:
            if forwarder.source in ready:
                forwarder.collect()
                busy += 1
        if _COMMANDS in ready:
            command = os.read(_COMMANDS, 16).split()
            if not command:
                return
            for forwarder in forwarders:
                _run_command(command, forwarder.model)
            reply({"stats": [forwarder.report() for forwarder in forwarders]})


def _run_command(command: list[bytes], model: NetworkModel) -> None:
    match command:
        case [b"cut"]:
            model.cut()
        case [b"restore"]:
            model.restore()
        case [b"path_mtu", path_mtu]:
            model.path_mtu = int(path_mtu)


def _raise_priority() -> None:
    """Run with real-time priority, so that the load of the measured processes adds no delay."""
    gc.disable()  # no reference cycles here
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
            raise UnavailableError("an emulated network needs root: it creates network namespaces")
        raise UnavailableError(f"cannot create a network namespace: {os.strerror(number)}")


def _open_device() -> int:
    try:
        fd = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(_DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError as error:
        raise UnavailableError(f"an emulated network needs {_TUN}: {error.strerror}") from None
    return fd


def _ip(*commands: str) -> None:
    done = subprocess.run(
        ["ip", "-batch", "-"],  # noqa: S607  # the parent has found it in PATH
        input="\n".join(commands),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise UnavailableError(f"ip failed to set up an emulated network: {done.stderr.strip()}")


def _set(name: str, value: int) -> None:
    # Where /proc/sys is read-only, the defaults remain.
    with contextlib.suppress(OSError), open(f"/proc/sys/{name}", "w") as file:
        file.write(str(value))
