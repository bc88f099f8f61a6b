"""The command ``compare schedules``: one trace of uploads under each policy, and flow times."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click
from click.core import ParameterSource

from ftpkit.cli.exit_codes import DONE
from ftpkit.cli.format import json_line
from ftpkit.cli.output.progress import stderr_is_terminal
from ftpkit.cli.output.table import Column, table
from ftpkit.cli.output.units import format_duration, format_size, parse_rate
from ftpkit.cli.settings import decimal, integer, json_option, option, parsed_by
from ftpkit.scheduling.policies import POLICIES

if TYPE_CHECKING:
    from ftpkit.compare.schedules import ScheduleResult
    from ftpkit.compare.trace import Arrival

MAX_FLOWS: Final = 1_000_000
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
mean, median, p99: time from the arrival of a file to its completion; slowdown: this time divided
by the time the file takes alone; longest wait: the largest difference of the two; Jain: fairness
index, 1 if all are equally fast; makespan: completion of the last file.
small: less than {small}; large: {large} or more."""


LOAD: Final = parsed_by(
    "FRACTION",
    decimal,
    "a fraction of the rate, more than 0 and less than 2",
    lambda load: 0 < load < 2,
)
RATE: Final = parsed_by(
    "RATE",
    parse_rate,
    "bytes per second like 20M or 20Mi, from 1k to 1T",
    lambda bytes_per_s: 1000 <= bytes_per_s <= 10**12,
)


@click.command()
@option(
    "--simulate", "Simulate the uploads instead of running a server.", bool, names=["simulated"]
)
@option(
    "--policy",
    "Run only this policy; can be repeated.",
    click.Choice(list(POLICIES)),
    list(POLICIES),
    names=["policies"],
    multiple=True,
    show_default=False,
)
@option(
    "--load",
    "Offered load, as a fraction of the rate; can be repeated.",
    LOAD,
    ["0.5", "0.8", "0.9"],
    ["loads"],
    multiple=True,
)
@option(
    "--flows",
    f"Number of files.  [default: {_SERVED:,}; simulated: {_SIMULATED:,}]",
    parsed_by("N", integer(1, MAX_FLOWS), f"an integer from 1 to {MAX_FLOWS}"),
)
@option("--rate", "Rate limit of the server, in bytes per second.", RATE, "5M", ["bytes_per_s"])
@option(
    "--seed", "Seed of the random trace.", parsed_by("N", integer(0, 10**9 - 1), "an integer"), "1"
)
@option(
    "--trace",
    "Read the trace from FILE: seconds, bytes and user of one file per line, as CSV or JSON.",
    names=["path"],
    metavar="FILE",
)
@option("--plot", "Plot the mean flow times to a .png, .svg or .pdf file.", metavar="PATH")
@json_option()
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
    """Compare the scheduling policies on the same uploads.

    Eight users upload files at random times, most of them small and a few very large, which
    together offer a given load to a server with a rate limit. Shows how long the files take under
    each policy, on average and in the worst case.

    The server is a separate process on loopback, and the default run takes five minutes. With
    --simulate it takes seconds, for more files.

    \b
    Example:  ftpkit compare schedules --load 0.8
    """
    # Deferred: 'ftpkit --help' starts faster without the comparison.
    from ftpkit.cli.output.plot import Plot
    from ftpkit.compare.schedules import large_from, outcomes, simulate
    from ftpkit.compare.uploads import upload_trace

    if flows is None:
        flows = _SIMULATED if simulated else _SERVED
    drawing = None if plot is None else Plot(plot)
    found: list[ScheduleResult] = []
    for load, trace in _traces(loads, flows, bytes_per_s, seed, path):
        begin = len(found)
        for policy in policies:
            if stderr_is_terminal():
                click.echo(f"{policy} at load {load:.3g} ...", err=True)
            if simulated:
                finished_s = simulate(trace, POLICIES[policy], bytes_per_s)
            else:
                finished_s = upload_trace(trace, policy, bytes_per_s)
            for outcome in outcomes(policy, load, trace, finished_s, bytes_per_s):
                found.append(outcome)
                if json:
                    click.echo(json_line(_json_fields(outcome)))
        if not json:
            _show(load, found[begin:], large_from(trace))
    if drawing is not None:
        drawing.flow_times(_panels(found))
    return DONE


def _traces(
    loads: Sequence[float], flows: int, bytes_per_s: int, seed: int, path: str | None
) -> "Iterator[tuple[float, list[Arrival]]]":
    """Yield each load and a trace that offers it."""
    from ftpkit.compare.trace import load_of, make_trace, read_trace

    if path is None:
        for load in loads:
            yield load, make_trace(flows, load=load, bytes_per_s=bytes_per_s, seed=seed)
        return
    ctx = click.get_current_context()
    for name in ("loads", "flows", "seed"):
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError("--trace cannot be combined with --load, --flows or --seed")
    trace = read_trace(path)
    yield load_of(trace, bytes_per_s), trace


def _json_fields(outcome: "ScheduleResult") -> dict[str, object]:
    """Return the outcome with the keys of the JSON output."""
    return {
        "class" if key == "size_class" else key: value for key, value in asdict(outcome).items()
    }


def _show(load: float, rows: "Sequence[ScheduleResult]", large: int) -> None:
    from ftpkit.compare.schedules import SMALL

    ideal = f"a slowdown of {1 / (1 - load):.3g}" if load < 1 else "unbounded flow times"
    click.echo(f"Load {load:.3g} (ideal processor sharing: {ideal})\n")
    click.echo(table(_COLUMNS, [asdict(row) for row in rows]) + "\n")
    click.echo(_LEGEND.format(small=format_size(SMALL), large=format_size(large)) + "\n")


def _panels(found: "Sequence[ScheduleResult]") -> dict[str, dict[str, list[tuple[float, float]]]]:
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for each in found:
        lines = panels.setdefault(f"{each.size_class} files", {})
        lines.setdefault(each.policy, []).append((each.load, each.mean_s))
    return panels
