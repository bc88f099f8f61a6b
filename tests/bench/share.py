"""What the UDP mode leaves to another flow beside it on one link, and what TCP flows leave.

How to run it, from the top of a checkout (Linux, root):

    python -m tests.bench.share [--link 100M,50ms] [--seconds 30] [--rounds 3]

Two uploads begin together and share the link for so long; printed is what each has moved, in
megabits a second.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Final

from ftpkit.compare.transport_process import Job, Transport
from ftpkit.lab.child import ChildProcess
from ftpkit.lab.model import NetworkProfile
from ftpkit.lab.network import EmulatedNetwork
from ftpkit.net.address import Address, Url
from tests.bench.processes import MiB, write_file

UDP: Final = "udp"
PAIRS: Final = [(UDP, "cubic"), (UDP, "bbr"), (UDP, UDP), ("cubic", "bbr"), ("cubic", "cubic")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _options(arguments)
    profile = NetworkProfile.parse(options.link)
    print(f"link {options.link}, {options.seconds:.0f} s, Mbit/s, medians of {options.rounds}")
    with tempfile.TemporaryDirectory() as directory:
        source = os.path.join(directory, "source")
        # More than fits through in that time.
        write_file(source, int(profile.bits_per_s / 8 * options.seconds) // MiB * MiB + MiB)
        found: dict[tuple[str, str], list[list[float]]] = {pair: [] for pair in PAIRS}
        for _ in range(options.rounds):
            for pair in PAIRS:
                found[pair].append(_together(pair, profile, source, options.seconds))
    for (first, second), rates in found.items():
        medians = [statistics.median(flow) for flow in zip(*rates, strict=True)]
        print(f"{first:>5} {medians[0]:5.1f}   beside {second:>5} {medians[1]:5.1f}")


def _together(
    kinds: Sequence[str], profile: NetworkProfile, source: str, seconds: float
) -> list[float]:
    """Return what each kind of flow moved in ``seconds``, in megabits a second."""
    with ExitStack() as stack:
        link = stack.enter_context(EmulatedNetwork(profile))
        host = {"host": link.far.v4}
        server = stack.enter_context(ChildProcess("ftpkit.compare.server_process", host, link.far))
        url = Url(Address(**server.receive()), plain=True)
        flows: list[ChildProcess] = []
        for kind in kinds:
            job = Job(
                transport=_transport(kind),
                url=url.login_url(),
                path=source,
                name=f"{len(flows)}",
                limit_s=seconds,
            )
            flow = ChildProcess("ftpkit.compare.transport_process", asdict(job), link.near)
            flows.append(stack.enter_context(flow))
        return [flow.receive()["bytes"] * 8 / 1e6 / seconds for flow in flows]


def _transport(kind: str) -> Transport:
    if kind == UDP:
        return Transport(name=kind)
    return Transport(name=kind, streams=1, congestion=kind)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.share", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--link", default="100M,50ms", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=30.0, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
