"""The command ``compare transports``: one file sent over each transport, and what it took."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from operator import attrgetter
from typing import TYPE_CHECKING, Final

import click

from ftpkit.cli.exit_codes import DONE, FAILED, print_error
from ftpkit.cli.format import json_line
from ftpkit.cli.output.progress import stderr_is_terminal
from ftpkit.cli.output.table import Column, table
from ftpkit.cli.output.units import format_bit_rate, format_duration, format_size
from ftpkit.cli.server_option import find_server
from ftpkit.cli.settings import URL, integer, json_option, option, parsed_by
from ftpkit.net.address import Url

if TYPE_CHECKING:
    from ftpkit.compare.transport_process import TransportResult
    from ftpkit.lab.model import NetworkProfile
    from ftpkit.lab.network import NetworkCounts

_COLUMNS: Final = (
    Column("label", ""),
    Column("goodput_bits_per_s", "goodput", format_bit_rate),
    Column("first_byte_s", "first", format_duration),
    Column("seconds", "last", format_duration),
    Column("sent_bytes", "sent", format_size),
    Column("resent_bytes", "resent", format_size),
    Column("lost_bytes", "lost", format_size),
    Column("client_cpu_s", "client CPU", "{:.2f}".format),
    Column("server_cpu_s", "server CPU", "{:.2f}".format),
    Column("verified", "verified"),
)
# A smaller ratio is reported as "about as fast".
_ALIKE: Final = 1.05
_LEGEND: Final = """\
first, last: when the first and the last byte reached the server; sent: includes resent; CPU:
seconds of processor time; verified: the file was published complete and its digest matches.
"""


def _network(text: str) -> "NetworkProfile":
    from ftpkit.lab.model import NetworkProfile

    return NetworkProfile.parse(text)


@click.command()
@click.argument("file", type=click.Path(readable=False))
@option("--to", "Send to this server instead of starting one.", URL, names=["url"])
@option(
    "--link",
    "Emulate a network path with this rate in bits per second, one-way delay and loss. Needs "
    "Linux and root.",
    parsed_by("RATE,DELAY[,LOSS]", _network, "RATE,DELAY or RATE,DELAY,LOSS as in 100M,50ms,1%"),
    names=["profile"],
)
@option(
    "--seconds",
    "Stop each transport after N seconds, and show how far it got.",
    parsed_by("N", integer(1, 86400), "an integer from 1 to 86400"),
    "60",
    names=["limit"],
)
@option("--plot", "Plot the goodput to a .png, .svg or .pdf file.", metavar="PATH")
@json_option()
def transports(
    file: str,
    url: Url | None,
    profile: "NetworkProfile | None",
    limit: int,
    plot: str | None,
    json: bool,
) -> int:
    """Send FILE over TCP and over UDP, one transport after the other.

    The transports are TCP over one connection, over several connections, and with each congestion
    control of this kernel; plain UDP, which loses data; and UDP with repair, as in 'put --udp'.
    Server and client are separate processes, on loopback by default. FILE is deleted from the
    server after each run.

    In the JSON output, goodput_bps is bits of the file per second, and unknown values are null.

    \b
    Example:  ftpkit compare transports bigfile.iso --link 100M,50ms,1%
    """
    # Deferred: 'ftpkit --help' starts faster without the comparison.
    from ftpkit.cli.output.plot import Plot
    from ftpkit.compare.transports import comparing

    if url is not None and profile is not None:
        raise click.UsageError(
            "--link cannot be combined with --to: it emulates the path to a local server"
        )
    drawing = None if plot is None else Plot(plot)
    outcomes: list[TransportResult] = []
    to = None if url is None else find_server(url)
    with comparing(file, to=to, profile=profile, limit_s=limit) as comparison:
        for transport in comparison.transports():
            if stderr_is_terminal():
                click.echo(f"{transport.name} ...", err=True)
            outcomes.append(comparison.measure(transport))
            if json:
                click.echo(json_line(_json_fields(outcomes[-1])))
        counts = comparison.network_counts()
    if drawing is not None:
        drawing.goodput(
            [(_label(each), each.goodput_bits_per_s, each.verified) for each in outcomes]
        )
    if not json:
        _show(outcomes, counts)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    for outcome in failed:
        print_error(f"{_label(outcome)}: {outcome.error}")
    return FAILED if failed else DONE


def _json_fields(outcome: "TransportResult") -> dict[str, object]:
    names = {"goodput_bits_per_s": "goodput_bps"}
    return {names.get(key, key): value for key, value in asdict(outcome).items()}


def _label(outcome: "TransportResult") -> str:
    kind, _, detail = outcome.transport.partition("-")
    if kind == "udp":
        return "UDP raw" if detail else "UDP repaired"
    name = f"TCP x{detail}" if detail.isdecimal() else "TCP"
    return f"{name} ({outcome.congestion})" if outcome.congestion else name


def _show(outcomes: "Sequence[TransportResult]", counts: "NetworkCounts | None") -> None:
    rows = [{"label": _label(outcome), **asdict(outcome)} for outcome in outcomes]
    click.echo(table(_COLUMNS, rows) + "\n")
    click.echo(_LEGEND)
    for sentence in _conclusions(outcomes):
        click.echo(sentence)
    if counts is not None:
        click.echo(_network_summary(counts))


def _conclusions(outcomes: "Sequence[TransportResult]") -> Iterator[str]:
    """Yield the conclusions from the table, one sentence each."""
    for outcome in outcomes:
        if outcome.stopped:
            yield (
                f"{_label(outcome)} was stopped after {format_duration(outcome.seconds)}, "
                f"with {format_size(outcome.bytes)} of the file."
            )
    *tcp, raw, udp = outcomes
    if raw.lost_bytes is not None and raw.sent_bytes:
        share = raw.lost_bytes / raw.sent_bytes
        if share:
            yield f"Plain UDP lost {share:.2%} of what it sent, and did not resend it."
        else:
            yield "Plain UDP lost nothing this time, but would not have noticed a loss."
    goodput = attrgetter("goodput_bits_per_s")
    for pick in (max, min):
        slow, fast = sorted((udp, pick(tcp, key=goodput)), key=goodput)
        if slow.bytes:
            times = fast.goodput_bits_per_s / slow.goodput_bits_per_s
            how = f"{times:.3g} times as" if times >= _ALIKE else "about as"
            yield f"{_label(fast)} was {how} fast as {_label(slow)}."


def _network_summary(counts: "NetworkCounts") -> str:
    """Return how exactly the emulated network kept to its profile."""
    far, near = counts
    latest_s = max(far.latest_s, near.latest_s)
    return (
        f"The emulated network lost {far.lost:,} of {far.packets:,} packets to the server at "
        f"random and {far.dropped:,} at a full queue,\n"
        f"and {near.lost:,} and {near.dropped:,} of {near.packets:,} packets to the client. "
        f"No packet was delayed too long by more than {format_duration(latest_s)}; "
        f"{far.overrun + near.overrun:,} overran the emulator."
    )
