"""A link between two namespaces does to real packets what its shape says, and leaves nothing."""

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

from ftpkit.lab.model import NetworkStats
from ftpkit.lab.network import (
    EmulatedNetwork,
    NamespaceEnd,
    NetworkProfile,
    NetworkUnavailableError,
)
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


# The shape


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("100M,50ms,1%", NetworkProfile(100 * M, 0.05, 0.01)),
        ("100M,50ms", NetworkProfile(100 * M, 0.05)),
        (" 1.5 G, 0.25 ms, 0.1 % ", NetworkProfile(1.5e9, 0.00025, 0.001)),
        ("64k,1s,0%", NetworkProfile(64e3, 1.0)),
        ("64K,100us,20%", NetworkProfile(64e3, 0.0001, 0.2)),
    ],
)
def test_a_shape_is_read_as_people_write_it(text: str, shape: NetworkProfile) -> None:
    assert NetworkProfile.parse(text) == shape


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
def test_what_is_no_shape_is_told_so(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no link: expected RATE,DELAY.* as in 100M,50ms,1%"):
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
def test_a_shape_that_cannot_be_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^a link's {message} "):
        NetworkProfile(**{"bits_per_s": 1e6, "delay_s": 0.0} | options)  # type: ignore[arg-type]


def test_a_whole_loss_is_refused_in_a_text_too() -> None:
    with pytest.raises(ValueError, match=r"^a link's loss is a share"):
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
    # All wait before the link, so that it does not matter when a sender is let run.
    os.kill(network.relay_pid, signal.SIGSTOP)
    for here, there in ((network.near, network.far), (network.far, network.near)):
        version, headers = (4, UDP_V4) if here is network.near else (6, UDP_V6)
        if there.v6 is None:
            version, headers = 4, UDP_V4
        target = address(there, version)
        receivers.append(receiver := run(there, "receive", target))
        port = receiver.hear()["port"]
        senders.append(run(here, "send", target, port, count, size - headers))
    for sender in senders:
        assert sender.hear() == {"sent": count}
    os.kill(network.relay_pid, signal.SIGCONT)
    counts = settled(network, count)
    for receiver, passage in zip(receivers, counts, strict=True):
        receiver.tell(passage.forwarded)
        seen = receiver.hear()
        assert seen["numbers"] == list(range(count))
        bits_per_s = (count - 1) * size * 8 / (seen["last"] - seen["first"])
        assert bits_per_s == pytest.approx(20 * M, rel=0.05)
        assert (passage.packets, passage.bytes) == (count, count * size)
        assert (passage.forwarded, passage.forwarded_bytes) == (count, count * size)
        assert_adds_up(passage)


@pytest.mark.net
@pytest.mark.parametrize(("version", "headers"), [(4, TCP_V4), (6, TCP_V6)])
def test_a_connection_flows_at_the_rate(
    make_network: MakeNetwork, run: Run, version: int, headers: int
) -> None:
    # Without drops: what a sender does after them says nothing about the link.
    network, size = make_network(30 * M, 0.005, queue_bytes=8_000_000), 4_000_000
    target = address(network.far, version)
    receiver = run(network.far, "accept", target)
    run(network.near, "push", target, receiver.hear()["port"], size, "reno")
    seen = receiver.hear()
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
    port = run(network.far, "echo", target).hear()["port"]
    took = run(network.near, "ask", target, port, 15).hear()["took"]
    # What the programs need comes on top; the best of them was hardly kept waiting.
    assert 0.04 <= min(took) <= 0.045
    # Nobody else sends anything over a link.
    assert [passage.packets for passage in network.counts()] == [15, 15]


# Loss


@pytest.mark.net
@pytest.mark.parametrize("version", [4, 6])
def test_datagrams_are_lost_at_random(make_network: MakeNetwork, run: Run, version: int) -> None:
    network, count = make_network(1000 * M, 0.001, loss=0.05, queue_bytes=8_000_000), 4000
    target = address(network.far, version)
    receiver = run(network.far, "receive", target)
    run(network.near, "send", target, receiver.hear()["port"], count, 100).hear()
    passage = settled(network, count).to_far
    receiver.tell(passage.forwarded)
    seen = receiver.hear()
    assert_likely(passage.lost, count, 0.05)
    assert len(seen["numbers"]) == count - passage.lost
    assert not seen["more"]
    assert seen["numbers"] == sorted(seen["numbers"])
    assert_adds_up(passage)
    # One by one, not in runs.
    pairs = sum(b - a > 2 for a, b in zip(seen["numbers"], seen["numbers"][1:], strict=False))
    assert_likely(pairs, count, 0.05 * 0.05)


@pytest.mark.net
def test_what_is_neither_tcp_nor_udp_is_lost_alike(make_network: MakeNetwork, run: Run) -> None:
    network, count = make_network(1000 * M, 0.001, loss=0.1, queue_bytes=8_000_000), 3000
    pinger = run(network.near, "ping", network.far.v4, count)
    assert pinger.hear() == {"sent": count}
    counts = settled(network, count)
    pinger.tell(counts.to_near.forwarded)
    assert pinger.hear() == {"answers": counts.to_near.forwarded}
    assert_likely(counts.to_far.lost, count, 0.1)
    assert counts.to_near.packets == count - counts.to_far.lost
    assert_likely(counts.to_near.lost, counts.to_near.packets, 0.1)


@pytest.mark.net
def test_segments_are_lost_alike_and_come_again(make_network: MakeNetwork, run: Run) -> None:
    network, size = make_network(1000 * M, 0.0005, loss=0.02), 2_000_000
    receiver = run(network.far, "accept", network.far.v4)
    run(network.near, "push", network.far.v4, receiver.hear()["port"], size, "reno").hear()
    assert receiver.hear()["bytes"] == size
    counts = settled(network, 0)
    for passage in counts:
        assert_likely(passage.lost, passage.packets, 0.02)
        assert_adds_up(passage)
    assert counts.to_far.packets > size / 1448


# Order, copies, queue


@pytest.mark.net
def test_packets_are_reordered_and_duplicated_as_often_as_asked_for(
    make_network: MakeNetwork, run: Run
) -> None:
    network, count = (
        make_network(4 * M, 0.02, reorder=0.05, duplicate=0.03, queue_bytes=1_000_000),
        2500,
    )
    receiver = run(network.far, "receive", network.far.v4)
    run(network.near, "send", network.far.v4, receiver.hear()["port"], count, 100).hear()
    passage = settled(network, count).to_far
    receiver.tell(passage.forwarded)
    numbers = receiver.hear()["numbers"]
    assert_likely(passage.reordered, count, 0.05)
    assert_likely(passage.duplicated, count, 0.03)
    assert sorted(set(numbers)) == list(range(count))
    assert len(numbers) == count + passage.duplicated
    late, highest = set(), -1
    for number in numbers:
        if number < highest:
            late.add(number)
        highest = max(highest, number)
    # The last of all has nothing that could overtake it.
    assert 0.9 * passage.reordered <= len(late) <= passage.reordered
    assert_adds_up(passage)


@pytest.mark.net
def test_what_finds_the_queue_full_is_dropped(make_network: MakeNetwork, run: Run) -> None:
    network, count, size = make_network(1 * M, 60.0, queue_bytes=100_000), 3000, 1000
    run(network.near, "send", network.far.v4, 9, count, size - UDP_V4).hear()
    passage = settled_in_queue(network, count)
    assert passage.waiting >= 100
    assert passage.dropped == count - passage.waiting
    assert_adds_up(passage)


def settled_in_queue(network: EmulatedNetwork, packets: int) -> NetworkStats:
    """Wait until as many packets have gone to the far end, if only into the queue."""
    pause = threading.Event()
    while (passage := network.counts().to_far).packets < packets:
        pause.wait(0.01)
    return passage


@pytest.mark.net
def test_counts_add_up_whatever_happens(make_network: MakeNetwork, run: Run) -> None:
    network = make_network(
        5 * M, 0.01, loss=0.1, reorder=0.1, duplicate=0.1, queue_bytes=50_000, seed=7
    )
    count = 1000
    receiver = run(network.far, "receive", network.far.v4)
    port = receiver.hear()["port"]
    run(network.near, "send", network.far.v4, port, count, 472).hear()
    network.cut()
    run(network.near, "send", network.far.v4, port, 50, 472).hear()
    settled(network, count + 50)
    network.mend()
    run(network.near, "send", network.far.v4, port, count, 472).hear()
    passage = settled(network, 2 * count + 50).to_far
    assert_adds_up(passage)
    assert passage.packets == 2 * count + 50
    assert passage.bytes == passage.packets * 500
    assert passage.forwarded_bytes == passage.forwarded * 500
    assert passage.cut >= 50
    assert min(passage.lost, passage.dropped, passage.reordered, passage.duplicated) > 0
    receiver.tell(passage.forwarded)
    assert len(receiver.hear()["numbers"]) == passage.forwarded


# MTU


@pytest.mark.net
@pytest.mark.parametrize(("version", "headers"), [(4, UDP_V4), (6, UDP_V6)])
def test_what_is_larger_than_the_mtu_is_refused(
    make_network: MakeNetwork, run: Run, version: int, headers: int
) -> None:
    network = make_network(100 * M, 0.0, mtu=1280)
    target = address(network.far, version)
    receiver = run(network.far, "receive", target)
    port = receiver.hear()["port"]
    assert run(network.near, "fits", target, port, 1281 - headers).hear() == {
        "errno": errno.EMSGSIZE
    }
    assert run(network.near, "fits", target, port, 1280 - headers).hear() == {"errno": None}
    receiver.tell(1)
    assert receiver.hear()["bytes"] == 1280 - headers
    assert network.counts().to_far.bytes == 1280


@pytest.mark.net
@pytest.mark.parametrize(("version", "headers"), [(4, UDP_V4), (6, UDP_V6)])
def test_what_is_too_long_for_a_black_hole_is_gone_without_a_word(
    make_network: MakeNetwork, run: Run, version: int, headers: int
) -> None:
    network = make_network(100 * M, 0.0, path_mtu=1400, black_hole=True)
    target = address(network.far, version)
    receiver = run(network.far, "receive", target)
    port = receiver.hear()["port"]
    for size in (1401, 1400):
        assert run(network.near, "fits", target, port, size - headers).hear() == {"errno": None}
    assert settled(network, 2).to_far.too_long == 1
    assert network.narrow(1300).to_far.packets == 2
    for size in (1400, 1301, 1300):
        assert run(network.near, "fits", target, port, size - headers).hear() == {"errno": None}
    counts = settled(network, 5)
    assert (counts.to_far.too_long, counts.to_near.packets) == (3, 0)
    assert_adds_up(counts.to_far)
    receiver.tell(2)
    seen = receiver.hear()
    assert (seen["bytes"], seen["more"]) == (1400 + 1300 - 2 * headers, False)


@pytest.mark.net
@pytest.mark.parametrize(("version", "headers"), [(4, UDP_V4), (6, UDP_V6)])
def test_who_sends_what_is_too_long_for_the_path_is_told_so(
    make_network: MakeNetwork, run: Run, version: int, headers: int
) -> None:
    network = make_network(100 * M, 0.0, path_mtu=1400)
    target = address(network.far, version)
    port = run(network.far, "receive", target).hear()["port"]
    assert run(network.near, "told", target, port, 1401 - headers).hear() == {
        "errno": errno.EMSGSIZE
    }
    # Whoever sends next hears it from the kernel.
    assert run(network.near, "fits", target, port, 1401 - headers).hear() == {
        "errno": errno.EMSGSIZE
    }
    assert run(network.near, "fits", target, port, 1400 - headers).hear() == {"errno": None}
    passage = settled(network, 2).to_far
    assert (passage.too_long, passage.forwarded) == (1, 1)


@pytest.mark.net
@pytest.mark.parametrize("version", [4, 6])
def test_a_connection_learns_what_the_path_takes(
    make_network: MakeNetwork, run: Run, version: int
) -> None:
    network, size = make_network(100 * M, 0.001, path_mtu=1280), 300_000
    target = address(network.far, version)
    receiver = run(network.far, "accept", target)
    run(network.near, "push", target, receiver.hear()["port"], size, "reno")
    assert receiver.hear()["bytes"] == size
    assert network.counts().to_far.too_long > 0


# Cut and mend


@pytest.mark.net
def test_nothing_passes_a_link_that_is_cut(make_network: MakeNetwork, run: Run) -> None:
    network = make_network(100 * M, 0.001)
    receiver = run(network.far, "receive", network.far.v4)
    port = receiver.hear()["port"]
    assert network.cut().to_far.packets == 0
    run(network.near, "send", network.far.v4, port, 50, 100).hear()
    assert settled(network, 50).to_far.cut == 50
    network.mend()
    run(network.near, "send", network.far.v4, port, 70, 100).hear()
    passage = settled(network, 120).to_far
    assert (passage.cut, passage.forwarded) == (50, 70)
    receiver.tell(70)
    assert receiver.hear()["numbers"] == list(range(70))


@pytest.mark.net
def test_what_is_under_way_when_a_link_is_cut_is_gone(make_network: MakeNetwork, run: Run) -> None:
    network = make_network(100 * M, 60.0)
    run(network.near, "send", network.far.v4, 9, 50, 100).hear()
    assert settled_in_queue(network, 50).waiting == 50
    passage = network.cut().to_far
    assert (passage.waiting, passage.cut) == (0, 50)
    assert settled(network, 50).to_near.packets == 0


@pytest.mark.net
def test_a_connection_outlives_a_cut(make_network: MakeNetwork, run: Run) -> None:
    network, size = make_network(20 * M, 0.005), 1_000_000
    receiver = run(network.far, "accept", network.far.v4)
    run(network.near, "push", network.far.v4, receiver.hear()["port"], size, "reno")
    settled_in_queue(network, 300)
    before = network.cut().to_far.forwarded
    after = settled_in_queue(network, network.counts().to_far.packets + 1)
    assert after.forwarded == before
    network.mend()
    assert receiver.hear()["bytes"] == size


# What is left


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
    with pytest.raises(NetworkUnavailableError, match="the link is gone"):
        network.counts()
    network.close()


_OWNER = """
import os, sys
from ftpkit.lab.network import EmulatedNetwork, NetworkProfile
with EmulatedNetwork(NetworkProfile(1e8, 0.01)) as network:
    inodes = [os.stat(end.namespace).st_ino for end in (network.near, network.far)]
    print(network.relay_pid, *inodes, flush=True)
    sys.stdin.read()
"""


@pytest.mark.net
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("make_network")
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
def test_a_relay_that_has_died_is_told_of(make_network: MakeNetwork) -> None:
    network = make_network(100 * M, 0.0)
    with ending(network.relay_pid):
        os.kill(network.relay_pid, signal.SIGKILL)
    with pytest.raises(NetworkUnavailableError):
        network.counts()


# Where there can be none


def test_missing_commands_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NetworkUnavailableError, match=r"^a test link needs (Linux|the command ip)"):
        EmulatedNetwork(NetworkProfile(1e6, 0.0))


@pytest.mark.net
@pytest.mark.parametrize(
    ("without", "sentence"),
    [
        (["setpriv", "--bounding-set=-sys_admin"], "a test link needs root: it makes network"),
        (
            ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh"],
            "a test link needs /dev/net/tun: No such file or directory",
        ),
        (["setpriv", "--bounding-set=-net_admin"], "a test link needs /dev/net/tun: "),
    ],
)
@pytest.mark.usefixtures("make_network")
def test_what_is_missing_is_said_in_one_sentence(without: list[str], sentence: str) -> None:
    done = subprocess.run(
        [*without, sys.executable, "-c", _OWNER], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ftpkit.lab.network.NetworkUnavailableError: {sentence}"), done.stderr
