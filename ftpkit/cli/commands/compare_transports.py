"""compare transports: one file sent in several ways, and what each of them took."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click

from ftpkit.cli.commands.files import json_option
from ftpkit.cli.exit_codes import DONE, FAILED, print_error
from ftpkit.cli.format import json_line
from ftpkit.cli.output.progress import watched
from ftpkit.cli.output.table import Column, table
from ftpkit.cli.output.units import format_bit_rate, format_duration, format_size
from ftpkit.cli.server_option import find
from ftpkit.cli.settings import URL, whole, word
from ftpkit.net.address import Url

if TYPE_CHECKING:
    from ftpkit.compare.transport_process import Outcome
    from ftpkit.lab.network import NetworkCounts, NetworkProfile

_COLUMNS: Final = (
    Column("label", ""),
    Column("goodput_bps", "goodput", format_bit_rate),
    Column("first_byte_s", "first", format_duration),
    Column("seconds", "last", format_duration),
    Column("sent_bytes", "sent", format_size),
    Column("resent_bytes", "resent", format_size),
    Column("lost_bytes", "lost", format_size),
    Column("client_cpu_s", "CPU here", "{:.2f}".format),
    Column("server_cpu_s", "CPU there", "{:.2f}".format),
    Column("verified", "verified"),
)
# What differs by less is not worth a number.
_ALIKE: Final = 1.05
_LEGEND: Final = """\
first, last: when the server had the first and the last byte; sent: with what was sent again;
CPU: seconds of the client and of the server; verified: published whole, and checked.
"""


def _shape(text: str) -> "NetworkProfile":
    from ftpkit.lab.network import NetworkProfile

    return NetworkProfile.parse(text)


@click.command()
@click.argument("file", type=click.Path(readable=False))
@click.option("--to", "url", type=URL, metavar="URL", help="A server; without, one is made.")
@click.option(
    "--link",
    "shape",
    type=word(_shape, "RATE,DELAY or RATE,DELAY,LOSS as in 100M,50ms,1%"),
    metavar="SHAPE",
    help="Make a link to it: bits a second, delay one way, loss each way. Needs Linux and root.",
)
@click.option(
    "--seconds",
    "limit",
    type=word(whole(1, 86400), "a whole number of seconds from 1 to 86400"),
    metavar="N",
    default="60",
    show_default=True,
    help="Break a transport off after so long, and show how far it got.",
)
@click.option("--plot", metavar="PATH", help="Draw the goodput, into a .png, .svg or .pdf.")
@json_option
def transports(
    file: str,
    url: Url | None,
    shape: "NetworkProfile | None",
    limit: int,
    plot: str | None,
    json: bool,
) -> int:
    """Send FILE over TCP and over UDP, in one way after the other.

    TCP over one connection, over several, and with each congestion control of this kernel; UDP by
    itself, which loses; and UDP repaired, as put --udp does it. Server and client are processes
    of their own, on loopback unless told otherwise. FILE is removed from the server each time.

    In JSON, goodput_bps is bits of the file a second, and null what nobody can tell.

    \b
    Example:  ftpkit compare transports bigfile.iso --link 100M,50ms,1%
    """
    # No other command has a use for it, and each should start at once.
    from ftpkit.cli.output.plot import Plot
    from ftpkit.compare.transports import comparing

    if url is not None and shape is not None:
        raise click.UsageError("--link leads to a server that is made, so it goes without --to")
    drawing = None if plot is None else Plot(plot)
    outcomes: list[Outcome] = []
    to = None if url is None else find(url)
    with comparing(file, to=to, profile=shape, limit_s=limit) as comparison:
        for transport in comparison.transports():
            if watched():
                click.echo(f"{transport.name} ...", err=True)
            outcomes.append(comparison.measure(transport))
            if json:
                click.echo(json_line(asdict(outcomes[-1])))
        counts = comparison.network_counts()
    if drawing is not None:
        drawing.goodput([(_label(each), each.goodput_bps, each.verified) for each in outcomes])
    if not json:
        _show(outcomes, counts)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    for outcome in failed:
        print_error(f"{_label(outcome)}: {outcome.error}")
    return FAILED if failed else DONE


def _label(outcome: "Outcome") -> str:
    kind, _, detail = outcome.transport.partition("-")
    if kind == "udp":
        return "UDP raw" if detail else "UDP repaired"
    name = f"TCP x{detail}" if detail.isdecimal() else "TCP"
    return f"{name} ({outcome.congestion})" if outcome.congestion else name


def _show(outcomes: "Sequence[Outcome]", counts: "NetworkCounts | None") -> None:
    rows = [{"label": _label(outcome), **asdict(outcome)} for outcome in outcomes]
    click.echo(table(_COLUMNS, rows))
    click.echo()
    click.echo(_LEGEND)
    for sentence in _seen(outcomes):
        click.echo(sentence)
    if counts is not None:
        click.echo(_of_link(counts))


def _seen(outcomes: "Sequence[Outcome]") -> Iterator[str]:
    """Yield a sentence for each thing that the rows show."""
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
            yield f"UDP by itself lost {share:.2%} of what it sent, and nobody sent that again."
        else:
            yield "UDP by itself lost nothing this time, and nobody would have known."
    for pick in (max, min):
        pair = udp, pick(tcp, key=_goodput)
        slow, fast = sorted(pair, key=_goodput)
        if slow.bytes:
            times = fast.goodput_bps / slow.goodput_bps
            how = f"{times:.3g} times as" if times >= _ALIKE else "about as"
            yield f"{_label(fast)} was {how} fast as {_label(slow)}."


def _goodput(outcome: "Outcome") -> float:
    return outcome.goodput_bps


def _of_link(counts: "NetworkCounts") -> str:
    """Return why the link can be trusted, or why not."""
    far, near = counts
    latest_s = max(far.latest_s, near.latest_s)
    return (
        f"Of {far.packets:,} packets to the server the link lost {far.lost:,} by chance and "
        f"{far.dropped:,} at a full queue,\n"
        f"of {near.packets:,} that came back {near.lost:,} and {near.dropped:,}. "
        f"None was late by more than {format_duration(latest_s)}; "
        f"{far.overrun + near.overrun:,} more did not get in."
    )
