"""compare schedules: one trace of uploads under each policy, and how long its files took."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click
from click.core import ParameterSource

from ftpkit.cli.commands.files import json_option
from ftpkit.cli.exit_codes import DONE
from ftpkit.cli.format import json_line
from ftpkit.cli.output.progress import watched
from ftpkit.cli.output.table import Column, table
from ftpkit.cli.output.units import format_duration, format_size, parse_size
from ftpkit.cli.settings import whole, word
from ftpkit.scheduling.policies import POLICIES

if TYPE_CHECKING:
    from ftpkit.compare.schedules import Outcome
    from ftpkit.compare.trace import Arrival

MAX_FLOWS: Final = 1_000_000
_LOADS: Final = (0.5, 0.8, 0.9)
_SERVED: Final = 400
_SIMULATED: Final = 100_000

_COLUMNS: Final = (
    Column("policy", ""),
    Column("size_class", "files"),
    Column("flows", "number"),
    Column("mean_s", "mean", format_duration),
    Column("median_s", "median", format_duration),
    Column("p99_s", "p99", format_duration),
    Column("mean_slowdown", "slowdown", "{:,.2f}".format),
    Column("p99_slowdown", "p99", "{:,.1f}".format),
    Column("max_wait_s", "longest wait", format_duration),
    Column("jain", "Jain", "{:.2f}".format),
    Column("makespan_s", "makespan", format_duration),
)
_LEGEND: Final = """\
mean, median, p99: from the arrival of a file until it is through; slowdown: that over the time
it takes alone; longest wait: the most that it took longer; Jain: 1 if all are equally fast;
makespan: when the last was through. small: less than {small}; large: {large} or more."""


def _load(text: str) -> float:
    if not re.fullmatch(r"[01]\.?[0-9]{0,3}", text) or not 0 < float(text) < 2:
        raise ValueError(text)
    return float(text)


def _rate(text: str) -> int:
    if not 1000 <= (bytes_per_s := parse_size(text.removesuffix("/s"))) <= 10**12:
        raise ValueError(text)
    return bytes_per_s


@click.command()
@click.option("--simulate", "simulated", is_flag=True, help="Do it in simulated time.")
@click.option(
    "--policy",
    "policies",
    type=click.Choice(list(POLICIES)),
    multiple=True,
    default=list(POLICIES),
    help="Only this policy; may be given again.",
)
@click.option(
    "--load",
    "loads",
    type=word(_load, "a share of the rate, over 0 and below 2"),
    metavar="SHARE",
    multiple=True,
    default=[str(load) for load in _LOADS],
    show_default=True,
    help="How much of the rate the files ask for; may be given again.",
)
@click.option(
    "--flows",
    type=word(whole(1, MAX_FLOWS), f"a whole number from 1 to {MAX_FLOWS}"),
    metavar="N",
    help=f"How many files, if not {_SERVED:,}, or {_SIMULATED:,} simulated.",
)
@click.option(
    "--rate",
    "bytes_per_s",
    type=word(_rate, "bytes a second like 20M or 20Mi, from 1k to 1T"),
    metavar="RATE",
    default="5M",
    show_default=True,
    help="The rate that the server is shaped to, in bytes a second.",
)
@click.option(
    "--seed",
    type=word(whole(0, 10**9 - 1), "a whole number"),
    metavar="N",
    default="1",
    show_default=True,
    help="Another seed makes another trace.",
)
@click.option(
    "--trace",
    "path",
    metavar="FILE",
    help="Take this trace: a line for each file, with seconds, bytes and user, as CSV or JSON.",
)
@click.option("--plot", metavar="PATH", help="Draw the mean flow times, into a .png, .svg or .pdf.")
@json_option
def schedules(
    simulated: bool,
    policies: Sequence[str],
    loads: Sequence[float],
    flows: int | None,
    bytes_per_s: int,
    seed: int,
    path: str | None,
    plot: str | None,
    json: bool,
) -> int:
    """Serve the same uploads under each policy.

    Files of eight users come by chance, most of them small and a few of them huge, and ask for
    a share of the rate that the server is shaped to. Shows how long they take: the shorter, the
    better, but nobody should pay too much for it.

    The server is a process of its own, on loopback, and all of it takes five minutes; in
    simulated time it is seconds, and more files.

    \b
    Example:  ftpkit compare schedules --load 0.8
    """
    # No other command has a use for it, and each should start at once.
    from ftpkit.cli.output.plot import Plot
    from ftpkit.compare.schedules import large_from, outcomes, simulate
    from ftpkit.compare.uploads import upload_trace

    if flows is None:
        flows = _SIMULATED if simulated else _SERVED
    drawing = None if plot is None else Plot(plot)
    found: list[Outcome] = []
    for load, trace in _traces(loads, flows, bytes_per_s, seed, path):
        begin = len(found)
        for policy in policies:
            if watched():
                click.echo(f"{policy} at load {load:.3g} ...", err=True)
            if simulated:
                through_s = simulate(trace, POLICIES[policy], bytes_per_s)
            else:
                through_s = upload_trace(trace, policy, bytes_per_s)
            for outcome in outcomes(policy, load, trace, through_s, bytes_per_s):
                found.append(outcome)
                if json:
                    click.echo(json_line(_words(outcome)))
        if not json:
            _show(load, found[begin:], large_from(trace))
    if drawing is not None:
        drawing.flow_times(_panels(found))
    return DONE


def _traces(
    loads: Sequence[float], flows: int, bytes_per_s: int, seed: int, path: str | None
) -> "Iterator[tuple[float, list[Arrival]]]":
    """Yield each load and the trace that asks for it."""
    from ftpkit.compare.trace import load_of, make_trace, read_trace

    if path is None:
        for load in loads:
            yield load, make_trace(flows, load=load, bytes_per_s=bytes_per_s, seed=seed)
        return
    ctx = click.get_current_context()
    for name in ("loads", "flows", "seed"):
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError("--trace goes without --load, --flows and --seed")
    trace = read_trace(path)
    yield load_of(trace, bytes_per_s), trace


def _words(outcome: "Outcome") -> dict[str, object]:
    """Return an outcome under the names that programs read."""
    return {
        "class" if key == "size_class" else key: value for key, value in asdict(outcome).items()
    }


def _show(load: float, rows: "Sequence[Outcome]", large: int) -> None:
    from ftpkit.compare.schedules import SMALL

    shared = f"a slowdown of {1 / (1 - load):.3g}" if load < 1 else "ever longer flow times"
    click.echo(f"Load {load:.3g}, where ideal processor sharing has {shared}:")
    click.echo()
    click.echo(table(_COLUMNS, [asdict(row) for row in rows]))
    click.echo()
    click.echo(_LEGEND.format(small=format_size(SMALL), large=format_size(large)))
    click.echo()


def _panels(found: "Sequence[Outcome]") -> dict[str, dict[str, list[tuple[float, float]]]]:
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for each in found:
        lines = panels.setdefault(f"{each.size_class} files", {})
        lines.setdefault(each.policy, []).append((each.load, each.mean_s))
    return panels
