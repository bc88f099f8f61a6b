"""An emulated network treats real packets as its profile says, and leaves nothing behind."""

import errno
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ftpkit.lab.child import NamespaceEnd
from ftpkit.lab.model import NetworkProfile, NetworkStats
from ftpkit.lab.network import EmulatedNetwork, NetworkUnavailableError
from tests.support.network import (
    PATIENCE_S,
    MakeNetwork,
    Run,
    assert_adds_up,
    assert_likely,
    settled,
)

UDP_V4, UDP_V6 = 28, 48  # headers of a datagram
TCP_V4, TCP_V6 = 52, 72  # headers of a segment, time stamp included
M = 1e6


def address(end: NamespaceEnd, version: int) -> str:
    """The address of an end; skips the test if it has none of this version."""
    if version == 4:
        return end.v4
    if end.v6 is None:
        pytest.skip("this kernel has no IPv6")
    return end.v6


# The profile


@pytest.mark.parametrize(
    ("text", "profile"),
    [
        ("100M,50ms,1%", NetworkProfile(100 * M, 0.05, 0.01)),
        ("100M,50ms", NetworkProfile(100 * M, 0.05)),
        (" 1.5 G, 0.25 ms, 0.1 % ", NetworkProfile(1.5e9, 0.00025, 0.001)),
        ("64k,1s,0%", NetworkProfile(64e3, 1.0)),
        ("64K,100us,20%", NetworkProfile(64e3, 0.0001, 0.2)),
    ],
)
def test_a_profile_is_parsed(text: str, profile: NetworkProfile) -> None:
    assert NetworkProfile.parse(text) == profile


@pytest.mark.parametrize(
    "text",
    [
        "",
        "100M",
        "100M,",
        "100,50ms",
        "100M,50",
        "100MB,50ms",
        "100m,50ms",
        "-1M,50ms",
        "nanM,50ms",
        "100M,50ms,1",
        "100M,50ms,",
        "100M,50ms,1%,1%",
        "1e9M,50ms",
        "100M;50ms",
        "10 0M,50ms",
        "50ms,100M",
    ],
)
def test_an_invalid_profile_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^invalid network .* as in 100M,50ms,1%"):
        NetworkProfile.parse(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits_per_s": 0.0}, "rate"),
        ({"bits_per_s": float("nan")}, "rate"),
        ({"bits_per_s": float("inf")}, "rate"),
        ({"delay_s": -0.1}, "delay"),
        ({"loss": 1.0}, "loss"),
        ({"loss": -0.1}, "loss"),
        ({"reorder": 1.5}, "reorder"),
        ({"duplicate": float("nan")}, "duplicate"),
        ({"mtu": 1279}, "MTU"),
        ({"mtu": 65536}, "MTU"),
        ({"path_mtu": 1279}, "path MTU"),
        ({"path_mtu": 1501}, "path MTU"),
        ({"queue_bytes": 1499}, "queue"),
    ],
)
def test_impossible_values_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^the {message} must "):
        NetworkProfile(**{"bits_per_s": 1e6, "delay_s": 0.0} | options)  # type: ignore[arg-type]


def test_a_loss_of_100_percent_is_refused_in_text_too() -> None:
    with pytest.raises(ValueError, match=r"^the loss must be at least 0"):
        NetworkProfile.parse("1M,0ms,100%")


def test_a_queue_holds_what_fills_the_wire_for_a_round_trip_unless_told() -> None:
    assert NetworkProfile(100 * M, 0.05).queue == 1_250_000
    assert NetworkProfile(1 * M, 0.001).queue == 65536
    assert NetworkProfile(1 * M, 0.001, queue_bytes=3000).queue == 3000


# Rate and delay


@pytest.mark.net
def test_datagrams_flow_at_the_rate_in_each_direction_on_its_own(
    make_network: MakeNetwork, run: Run
) -> None:
    network, count, size = make_network(20 * M, 0.01, queue_bytes=8_000_000), 1500, 1500
    senders, receivers = [], []
    # All wait in the queue, so the scheduling of the senders does not matter.
    os.kill(network.relay_pid, signal.SIGSTOP)
    for here, there in ((network.near, network.far), (network.far, network.near)):
        version, headers = (4, UDP_V4) if here is network.near else (6, UDP_V6)
        if there.v6 is None:
            version, headers = 4, UDP_V4
        target = address(there, version)
        receivers.append(receiver := run(there, "receive", target))
        port = receiver.receive()["port"]
        senders.append(run(here, "send", target, port, count, size - headers))
    for sender in senders:
        assert sender.receive() == {"sent": count}
    os.kill(network.relay_pid, signal.SIGCONT)
    counts = settled(network, count)
    for receiver, stats in zip(receivers, counts, strict=True):
        receiver.send(stats.forwarded)
        seen = receiver.receive()
        assert seen["numbers"] == list(range(count))
        bits_per_s = (count - 1) * size * 8 / (seen["last"] - seen["first"])
        assert bits_per_s == pytest.approx(20 * M, rel=0.05)
        assert (stats.packets, stats.bytes) == (count, count * size)
        assert (stats.forwarded, stats.forwarded_bytes) == (count, count * size)
        assert_adds_up(stats)


@pytest.mark.net
@pytest.mark.parametrize(("version", "headers"), [(4, TCP_V4), (6, TCP_V6)])
def test_a_connection_flows_at_the_rate(
    make_network: MakeNetwork, run: Run, version: int, headers: int
) -> None:
    # Without drops, after which a sender slows down by itself.
    network, size = make_network(30 * M, 0.005, queue_bytes=8_000_000), 4_000_000
    target = address(network.far, version)
    receiver = run(network.far, "accept", target)
    run(network.near, "push", target, receiver.receive()["port"], size, "reno")
    seen = receiver.receive()
    assert seen["bytes"] == size
    # Without the start, when the sender has still to find the rate.
    marks = seen["marks"][len(seen["marks"]) // 3 :]
    (first, start), (last, end) = marks[0], marks[-1]
    bits_per_s = (last - first) * 8 / (end - start) * 1500 / (1500 - headers)
    assert bits_per_s == pytest.approx(30 * M, rel=0.05)
    # No packet is larger than the MTU: the kernel's offloads are off.
    assert network.counts().to_far.packets >= size / (1500 - headers)


@pytest.mark.net
@pytest.mark.parametrize("version", [4, 6])
def test_a_round_trip_takes_the_delay_twice(
    make_network: MakeNetwork, run: Run, version: int
) -> None:
    network = make_network(100 * M, 0.02)
    target = address(network.far, version)
    port = run(network.far, "echo", target).receive()["port"]
    took = run(network.near, "ask", target, port, 15).receive()["took"]
    # What the programs need comes on top; the best of them was hardly kept waiting.
    assert 0.04 <= min(took) <= 0.045
    # Nothing else is sent over the network.
    assert [stats.packets for stats in network.counts()] == [15, 15]


# Loss


@pytest.mark.net
@pytest.mark.parametrize("version", [4, 6])
def test_datagrams_are_lost_at_random(make_network: MakeNetwork, run: Run, version: int) -> None:
    network, count = make_network(1000 * M, 0.001, loss=0.05, queue_bytes=8_000_000), 4000
    target = address(network.far, version)
    receiver = run(network.far, "receive", target)
    run(network.near, "send", target, receiver.receive()["port"], count, 100).receive()
    stats = settled(network, count).to_far
    receiver.send(stats.forwarded)
    seen = receiver.receive()
    assert_likely(stats.lost, count, 0.05)
    assert len(seen["numbers"]) == count - stats.lost
    assert not seen["more"]
    assert seen["numbers"] == sorted(seen["numbers"])
    assert_adds_up(stats)
    # Independently, not in bursts.
    pairs = sum(b - a > 2 for a, b in zip(seen["numbers"], seen["numbers"][1:], strict=False))
    assert_likely(pairs, count, 0.05 * 0.05)


@pytest.mark.net
def test_icmp_is_lost_alike(make_network: MakeNetwork, run: Run) -> None:
    network, count = make_network(1000 * M, 0.001, loss=0.1, queue_bytes=8_000_000), 3000
    pinger = run(network.near, "ping", network.far.v4, count)
    assert pinger.receive() == {"sent": count}
    counts = settled(network, count)
    pinger.send(counts.to_near.forwarded)
    assert pinger.receive() == {"answers": counts.to_near.forwarded}
    assert_likely(counts.to_far.lost, count, 0.1)
    assert counts.to_near.packets == count - counts.to_far.lost
    assert_likely(counts.to_near.lost, counts.to_near.packets, 0.1)


@pytest.mark.net
def test_tcp_segments_are_lost_alike_and_sent_again(make_network: MakeNetwork, run: Run) -> None:
    network, size = make_network(1000 * M, 0.0005, loss=0.02), 2_000_000
    receiver = run(network.far, "accept", network.far.v4)
    run(network.near, "push", network.far.v4, receiver.receive()["port"], size, "reno").receive()
    assert receiver.receive()["bytes"] == size
    counts = settled(network, 0)
    for stats in counts:
        assert_likely(stats.lost, stats.packets, 0.02)
        assert_adds_up(stats)
    assert counts.to_far.packets > size / 1448


# Order, copies, queue


@pytest.mark.net
def test_packets_are_reordered_and_duplicated_at_the_given_rates(
    make_network: MakeNetwork, run: Run
) -> None:
    network, count = (
        make_network(4 * M, 0.02, reorder=0.05, duplicate=0.03, queue_bytes=1_000_000),
        2500,
    )
    receiver = run(network.far, "receive", network.far.v4)
    run(network.near, "send", network.far.v4, receiver.receive()["port"], count, 100).receive()
    stats = settled(network, count).to_far
    receiver.send(stats.forwarded)
    numbers = receiver.receive()["numbers"]
    assert_likely(stats.reordered, count, 0.05)
    assert_likely(stats.duplicated, count, 0.03)
    assert sorted(set(numbers)) == list(range(count))
    assert len(numbers) == count + stats.duplicated
    late, highest = set(), -1
    for number in numbers:
        if number < highest:
            late.add(number)
        highest = max(highest, number)
    # The last packet has none that could overtake it.
    assert 0.9 * stats.reordered <= len(late) <= stats.reordered
    assert_adds_up(stats)


@pytest.mark.net
def test_a_full_queue_drops_packets(make_network: MakeNetwork, run: Run) -> None:
    network, count, size = make_network(1 * M, 60.0, queue_bytes=100_000), 3000, 1000
    run(network.near, "send", network.far.v4, 9, count, size - UDP_V4).receive()
    stats = settled_in_queue(network, count)
    assert stats.waiting >= 100
    assert stats.dropped == count - stats.waiting
    assert_adds_up(stats)


def settled_in_queue(network: EmulatedNetwork, packets: int) -> NetworkStats:
    """Wait until as many packets have gone to the far end, if only into the queue."""
    pause = threading.Event()
    while (stats := network.counts().to_far).packets < packets:
        pause.wait(0.01)
    return stats


@pytest.mark.net
def test_counts_add_up_whatever_happens(make_network: MakeNetwork, run: Run) -> None:
    network = make_network(
        5 * M, 0.01, loss=0.1, reorder=0.1, duplicate=0.1, queue_bytes=50_000, seed=7
    )
    count = 1000
    receiver = run(network.far, "receive", network.far.v4)
    port = receiver.receive()["port"]
    run(network.near, "send", network.far.v4, port, count, 472).receive()
    network.cut()
    run(network.near, "send", network.far.v4, port, 50, 472).receive()
    settled(network, count + 50)
    network.restore()
    run(network.near, "send", network.far.v4, port, count, 472).receive()
    stats = settled(network, 2 * count + 50).to_far
    assert_adds_up(stats)
    assert stats.packets == 2 * count + 50
    assert stats.bytes == stats.packets * 500
    assert stats.forwarded_bytes == stats.forwarded * 500
    assert stats.cut >= 50
    assert min(stats.lost, stats.dropped, stats.reordered, stats.duplicated) > 0
    receiver.send(stats.forwarded)
    assert len(receiver.receive()["numbers"]) == stats.forwarded


# MTU


@pytest.mark.net
@pytest.mark.parametrize(("version", "headers"), [(4, UDP_V4), (6, UDP_V6)])
def test_a_packet_over_the_mtu_is_refused(
    make_network: MakeNetwork, run: Run, version: int, headers: int
) -> None:
    network = make_network(100 * M, 0.0, mtu=1280)
    target = address(network.far, version)
    receiver = run(network.far, "receive", target)
    port = receiver.receive()["port"]
    assert run(network.near, "fits", target, port, 1281 - headers).receive() == {
        "errno": errno.EMSGSIZE
    }
    assert run(network.near, "fits", target, port, 1280 - headers).receive() == {"errno": None}
    receiver.send(1)
    assert receiver.receive()["bytes"] == 1280 - headers
    assert network.counts().to_far.bytes == 1280


@pytest.mark.net
@pytest.mark.parametrize(("version", "headers"), [(4, UDP_V4), (6, UDP_V6)])
def test_a_black_hole_drops_packets_over_the_path_mtu_silently(
    make_network: MakeNetwork, run: Run, version: int, headers: int
) -> None:
    network = make_network(100 * M, 0.0, path_mtu=1400, black_hole=True)
    target = address(network.far, version)
    receiver = run(network.far, "receive", target)
    port = receiver.receive()["port"]
    for size in (1401, 1400):
        assert run(network.near, "fits", target, port, size - headers).receive() == {"errno": None}
    assert settled(network, 2).to_far.too_long == 1
    assert network.set_path_mtu(1300).to_far.packets == 2
    for size in (1400, 1301, 1300):
        assert run(network.near, "fits", target, port, size - headers).receive() == {"errno": None}
    counts = settled(network, 5)
    assert (counts.to_far.too_long, counts.to_near.packets) == (3, 0)
    assert_adds_up(counts.to_far)
    receiver.send(2)
    seen = receiver.receive()
    assert (seen["bytes"], seen["more"]) == (1400 + 1300 - 2 * headers, False)


@pytest.mark.net
@pytest.mark.parametrize(("version", "headers"), [(4, UDP_V4), (6, UDP_V6)])
def test_the_sender_of_a_packet_over_the_path_mtu_gets_an_error(
    make_network: MakeNetwork, run: Run, version: int, headers: int
) -> None:
    network = make_network(100 * M, 0.0, path_mtu=1400)
    target = address(network.far, version)
    port = run(network.far, "receive", target).receive()["port"]
    assert run(network.near, "told", target, port, 1401 - headers).receive() == {
        "errno": errno.EMSGSIZE
    }
    # The kernel has learned it for the next sender.
    assert run(network.near, "fits", target, port, 1401 - headers).receive() == {
        "errno": errno.EMSGSIZE
    }
    assert run(network.near, "fits", target, port, 1400 - headers).receive() == {"errno": None}
    stats = settled(network, 2).to_far
    assert (stats.too_long, stats.forwarded) == (1, 1)


@pytest.mark.net
@pytest.mark.parametrize("version", [4, 6])
def test_a_connection_learns_the_path_mtu(
    make_network: MakeNetwork, run: Run, version: int
) -> None:
    network, size = make_network(100 * M, 0.001, path_mtu=1280), 300_000
    target = address(network.far, version)
    receiver = run(network.far, "accept", target)
    run(network.near, "push", target, receiver.receive()["port"], size, "reno")
    assert receiver.receive()["bytes"] == size
    assert network.counts().to_far.too_long > 0


# Cut and restore


@pytest.mark.net
def test_nothing_passes_while_cut(make_network: MakeNetwork, run: Run) -> None:
    network = make_network(100 * M, 0.001)
    receiver = run(network.far, "receive", network.far.v4)
    port = receiver.receive()["port"]
    assert network.cut().to_far.packets == 0
    run(network.near, "send", network.far.v4, port, 50, 100).receive()
    assert settled(network, 50).to_far.cut == 50
    network.restore()
    run(network.near, "send", network.far.v4, port, 70, 100).receive()
    stats = settled(network, 120).to_far
    assert (stats.cut, stats.forwarded) == (50, 70)
    receiver.send(70)
    assert receiver.receive()["numbers"] == list(range(70))


@pytest.mark.net
def test_a_cut_drops_packets_in_flight(make_network: MakeNetwork, run: Run) -> None:
    network = make_network(100 * M, 60.0)
    run(network.near, "send", network.far.v4, 9, 50, 100).receive()
    assert settled_in_queue(network, 50).waiting == 50
    stats = network.cut().to_far
    assert (stats.waiting, stats.cut) == (0, 50)
    assert settled(network, 50).to_near.packets == 0


@pytest.mark.net
def test_a_connection_outlives_a_cut(make_network: MakeNetwork, run: Run) -> None:
    network, size = make_network(20 * M, 0.005), 1_000_000
    receiver = run(network.far, "accept", network.far.v4)
    run(network.near, "push", network.far.v4, receiver.receive()["port"], size, "reno")
    settled_in_queue(network, 300)
    before = network.cut().to_far.forwarded
    after = settled_in_queue(network, network.counts().to_far.packets + 1)
    assert after.forwarded == before
    network.restore()
    assert receiver.receive()["bytes"] == size


# Clean-up


@contextmanager
def ending(pid: int) -> Iterator[None]:
    """Expect the process to be running before the block, and to end soon after."""
    fd = os.pidfd_open(pid)
    try:
        assert not select.select([fd], (), (), 0)[0]
        yield
        assert select.select([fd], (), (), PATIENCE_S)[0], "it runs on"
    finally:
        os.close(fd)


def inhabitants(namespaces: list[int]) -> list[str]:
    """The processes that live in a namespace or hold it by a descriptor."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            places = [process / "ns/net", *(process / "fd").iterdir()]
            for place in places:
                target = os.readlink(place)
                if any(target == f"net:[{namespace}]" for namespace in namespaces):
                    found.append(str(place))
        except OSError:  # it has just ended
            continue
    return found


def inode(end: NamespaceEnd) -> int:
    return os.stat(end.namespace).st_ino


@pytest.mark.net
@pytest.mark.parametrize("accident", [None, RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_when_the_block_ends(
    make_network: MakeNetwork, accident: type[BaseException] | None
) -> None:
    devices = Path("/proc/net/dev").read_text().count(":")
    with ExitStack() as after:
        if accident is not None:
            after.enter_context(pytest.raises(accident))
        with make_network(100 * M, 0.01) as network:
            assert Path("/proc/net/dev").read_text().count(":") == devices
            namespaces = [inode(network.near), inode(network.far)]
            assert len({os.stat("/proc/self/ns/net").st_ino, *namespaces}) == 3
            assert inhabitants(namespaces)
            assert os.path.exists(f"/proc/{network.relay_pid}")
            if accident is not None:
                raise accident
    assert inhabitants(namespaces) == []
    assert not os.path.exists(f"/proc/{network.relay_pid}")
    with pytest.raises(NetworkUnavailableError, match="the emulated network is gone"):
        network.counts()
    network.close()


_OWNER = """
import os, sys
from ftpkit.lab.model import NetworkProfile
from ftpkit.lab.network import EmulatedNetwork
with EmulatedNetwork(NetworkProfile(1e8, 0.01)) as network:
    inodes = [os.stat(end.namespace).st_ino for end in (network.near, network.far)]
    print(network.relay_pid, *inodes, flush=True)
    sys.stdin.read()
"""


@pytest.mark.net
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("make_network", "interruptible")
def test_nothing_is_left_when_the_process_is_killed(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as owner:
        assert owner.stdout is not None
        pid, *namespaces = map(int, owner.stdout.readline().split())
        assert inhabitants(namespaces)
        with ending(pid):
            if number == signal.SIGINT:  # a terminal's Ctrl-C goes to the whole group
                os.killpg(owner.pid, number)
            else:
                owner.send_signal(number)
            owner.wait(PATIENCE_S)
    assert inhabitants(namespaces) == []


@pytest.mark.net
def test_a_dead_relay_is_reported(make_network: MakeNetwork) -> None:
    network = make_network(100 * M, 0.0)
    with ending(network.relay_pid):
        os.kill(network.relay_pid, signal.SIGKILL)
    with pytest.raises(NetworkUnavailableError):
        network.counts()


# Where it is not available


def test_missing_commands_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NetworkUnavailableError, match=r"needs (Linux|the command ip)"):
        EmulatedNetwork(NetworkProfile(1e6, 0.0))


@pytest.mark.net
@pytest.mark.parametrize(
    ("without", "sentence"),
    [
        (
            ["setpriv", "--bounding-set=-sys_admin"],
            "an emulated network needs root: it",
        ),
        (
            ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh"],
            "an emulated network needs /dev/net/tun: No such file or directory",
        ),
        (["setpriv", "--bounding-set=-net_admin"], "an emulated network needs /dev/net/tun: "),
    ],
)
@pytest.mark.usefixtures("make_network")
def test_a_missing_requirement_is_named(without: list[str], sentence: str) -> None:
    done = subprocess.run(
        [*without, sys.executable, "-c", _OWNER], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ftpkit.lab.network.NetworkUnavailableError: {sentence}"), done.stderr
