"""The UDP mode beside TCP on lossy links and over loopback, and what bounds it there.

How to run it, from the top of a checkout (Linux; a link needs root):

    TMPDIR=/dev/shm python -m tests.bench.udp [PLACE...] [--size 256Mi] [--runs 5] [--limit 30]

A place is a link as ``ftpkit compare transports`` takes it, or ``loopback``; all, unless told. The
same file goes up over the UDP mode, TCP with BBR, TCP with CUBIC, UDP, … Time runs from the first
connection's opening until the server holds the last byte; what takes longer than the limit is
broken off, and what had arrived by then counts. The repairs are bytes that left again for each
byte of the file. "udp is" divides the rate of UDP by that of the row in the same round.

Over loopback two bounds come with each round: datagrams of 1,472 bytes, cut and joined by the
kernel, that one process sends and another drops (what arrives counts), and the same where the
other digests each byte twice and writes it to a file, in one thread.
"""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Final, NamedTuple

from ftpkit.compare.tcp_info import congestion_controls
from ftpkit.compare.transport_process import Transport
from ftpkit.compare.transports import Comparison, comparing
from ftpkit.lab.child import ChildProcess
from ftpkit.lab.model import NetworkProfile
from tests.bench.processes import MiB, ftpkit_version, parse_size, write_file

UDP: Final = "udp"
LOOPBACK: Final = "loopback"
_MEGABITS: Final = 1e6
_GIBIBYTES: Final = 8 * 1024 * MiB
# Repairs that a loss of p makes needful, p / (1 - p), and so much more.
_SPARE: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What UDP is to reach: a rate in a unit of ``bits`` a second, and ``times`` that of others."""

    unit: str
    bits: float
    rate: float
    times: dict[str, float] = field(default_factory=dict)


PLACES: Final = {
    "100M,50ms,1%": Target(
        unit="Mbit/s", bits=_MEGABITS, rate=92, times={"tcp bbr": 1.0, "tcp cubic": 30.0}
    ),
    "100M,50ms,5%": Target(unit="Mbit/s", bits=_MEGABITS, rate=88, times={"tcp bbr": 1.2}),
    LOOPBACK: Target(unit="GiB/s", bits=_GIBIBYTES, rate=1.5),
}


class Sample(NamedTuple):
    """One run: bits a second that arrived, the share that left again, and whether it is published.

    The last is None where nobody publishes.
    """

    bytes_per_s: float
    repairs: float = 0.0
    verified: bool | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _options(arguments)
    print(
        f"{options.size / MiB:,.0f} MiB into {tempfile.gettempdir()}, {options.runs} interleaved"
        f" runs, medians (min to max); ftpkit {ftpkit_version()}, Python"
        f" {platform.python_version()}, Linux {platform.release()}, cores {os.cpu_count()}"
    )
    with tempfile.TemporaryDirectory() as directory:
        source = os.path.join(directory, "source")
        write_file(source, options.size)
        for place in options.places:
            with _ways(place, source, options) as ways:
                samples: dict[str, list[Sample]] = {name: [] for name in ways}
                for _ in range(options.runs):
                    for name, measure in ways.items():
                        samples[name].append(measure())
            print(*_report(place, samples), sep="\n", flush=True)


@contextmanager
def _ways(
    place: str, source: str, options: argparse.Namespace
) -> Iterator[Mapping[str, Callable[[], Sample]]]:
    """Yield what measures each way to send there, by its name."""
    shape = None if place == LOOPBACK else NetworkProfile.parse(place)
    transports = [Transport(name=UDP)]
    for control in ("bbr", "cubic"):
        if control in congestion_controls():
            transports.append(Transport(name=f"tcp {control}", streams=1, congestion=control))
    with comparing(source, profile=shape, limit_s=options.limit) as comparison:
        ways = {each.name: partial(_transport, comparison, each) for each in transports}
        if shape is None:
            ways["bare datagrams"] = partial(_bound, options.size, store=False)
            ways["digested and stored"] = partial(_bound, options.size, store=True)
        yield ways


def _transport(comparison: Comparison, transport: Transport) -> Sample:
    outcome = comparison.measure(transport)
    if outcome.error is not None:
        sys.exit(f"{transport.name}: {outcome.error}")
    repairs = (outcome.resent_bytes or 0) / max(outcome.bytes, 1)
    return Sample(outcome.goodput_bits_per_s, repairs, outcome.verified)


def _bound(size: int, *, store: bool) -> Sample:
    # The sender ends when the receiver does.
    with (
        ChildProcess("tests.bench.udp_bound", {"size": size, "store": store}) as receiver,
        ChildProcess("tests.bench.udp_bound", receiver.receive()),
    ):
        seen = receiver.receive()
    return Sample(seen["bytes"] * 8 / seen["seconds"])


def _report(place: str, samples: dict[str, list[Sample]]) -> list[str]:
    target, ours = PLACES[place], samples[UDP]
    lines = [place]
    for name, row in samples.items():
        rates = _spread([sample.bytes_per_s / target.bits for sample in row])
        ratios = [own.bytes_per_s / other.bytes_per_s for own, other in zip(ours, row, strict=True)]
        cells = [f"{name:20} {rates:24} {target.unit}"]
        if name == UDP:
            cells.append(f"target {target.rate:g}")
        else:
            cells.append(f"udp is {_spread(ratios)} times")
        if name in target.times:
            cells.append(f"target {target.times[name]:g}")
        if row[0].verified is not None:
            cells.append(f"{sum(sample.verified is True for sample in row)} of {len(row)} verified")
        lines.append("  " + ", ".join(cells))
    if place != LOOPBACK:
        loss = NetworkProfile.parse(place).loss
        repairs = _spread([sample.repairs * 100 for sample in ours])
        most = 100 * (loss / (1 - loss) + _SPARE)
        lines.append(f"  {'udp repairs':20} {repairs:24} % of the data, target at most {most:.2f}")
    return lines


def _spread(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.udp", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("places", nargs="*", metavar="PLACE", help="default: all")
    parser.add_argument("--size", type=parse_size, default="256Mi", help="default: %(default)s")
    parser.add_argument("--runs", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--limit", type=float, default=30.0, help="default: %(default)s seconds")
    options = parser.parse_args(arguments)
    options.places = options.places or list(PLACES)
    for place in options.places:
        if place not in PLACES:
            parser.error(f"no target is known for {place!r}")
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
