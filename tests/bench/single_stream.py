"""How fast one file goes up and down, beside pyftpdlib with curl, and cp as the bound.

How to run it, from the top of a checkout, with the extras ``dev`` and ``bench`` installed:

    python -m tests.bench.single_stream [--size 512Mi] [--runs 5] [--directory DIR] [--json]

Whole processes are measured, from start to exit, over loopback, one after the other: ftpkit,
pyftpdlib, cp, ftpkit, … A first round does not count. The source is warm in the cache; every
result is a new file on the same file system (in memory, where there is /dev/shm) and is compared
with the source byte for byte after the clock has stopped. "ftpkit is" divides the time of the row
by ftpkit's in the same round. ftpkit verifies every block and brings the file to stable storage
before it says that all is done; the others do neither.

On stdout comes a table for ftpkit/docs/performance.md, or with --json one object with every run.
The other scripts are run the same way: ``tests.bench.eight_clients`` and ``tests.bench.big_file``.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Final

from tests.bench.processes import (
    Daemon,
    MiB,
    check_equal,
    check_space,
    fast_directory,
    ftpkit,
    ftpkit_version,
    own_peak,
    parse_size,
    run,
    serving,
    serving_ftpkit,
    write_file,
)

DIRECTIONS: Final = ("upload", "download")

# Without the user's settings, and straight to this machine.
_CURL: Final = ("curl", "-q", "-sS", "--noproxy", "*")
_HELD, _NEW = "held", "new"
_GiB: Final = 1024 * MiB

_say: Final = functools.partial(print, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run: seconds of wall clock and of CPU, peaks of memory in bytes."""

    seconds: float
    client_cpu_s: float
    client_peak: int
    server_cpu_s: float | None
    server_peak: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to move a file: for each direction a command, and where the file is then."""

    name: str
    commands: dict[str, list[str]]
    results: dict[str, str]
    server: Daemon | None = None
    verified: bool = False
    samples: dict[str, list[Sample]] = field(
        default_factory=lambda: {key: [] for key in DIRECTIONS}
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _options(arguments)
    check_space(options.directory, 3 * options.size)
    left_out = _missing()
    for name, why in left_out.items():
        _say(f"{name} is left out: {why}")
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(dir=options.directory))
        source = os.path.join(directory, "source")
        write_file(source, options.size)
        ways = [_ftpkit(stack, directory, source), _cp(directory, source)]
        if not left_out:
            ways.insert(1, _pyftpdlib(stack, directory, source))
        for number in range(options.runs + 1):
            _say(f"round {number} of {options.runs}" if number else "a round that does not count")
            _one_round(ways, source, counts=number > 0)
    floor = own_peak()
    if options.json:
        print(json.dumps(_report(options, ways, left_out, floor)))
    else:
        print(_table(options, ways, floor))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.single_stream", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--size", type=parse_size, default="512Mi", help="default: %(default)s")
    parser.add_argument("--runs", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--directory", default=fast_directory(), help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if options.runs < 1:
        parser.error("--runs: at least 1")
    return options


def _missing() -> dict[str, str]:
    """Return what cannot be measured here, and why."""
    if importlib.util.find_spec("pyftpdlib") is None:
        return {"pyftpdlib": "it is not installed (the extra 'bench' has it)"}
    if shutil.which("curl") is None:
        return {"pyftpdlib": "there is no curl to be its client"}
    return {}


def _ftpkit(stack: ExitStack, directory: str, source: str) -> Way:
    root, down = _places(directory, "ftpkit", source)
    server, url = stack.enter_context(serving_ftpkit(root))
    return Way(
        name="ftpkit serve, put, get",
        commands={
            "upload": ftpkit("put", source, "--as", _NEW, "--to", url),
            "download": ftpkit("get", _HELD, "-o", down, "--from", url),
        },
        results={"upload": os.path.join(root, _NEW), "download": down},
        server=server,
        verified=True,
    )


def _pyftpdlib(stack: ExitStack, directory: str, source: str) -> Way:
    root, down = _places(directory, "pyftpdlib", source)
    command = [sys.executable, "-m", "pyftpdlib", "-w", "-d", root, "-i", "127.0.0.1", "-p", "0"]
    server, port = stack.enter_context(serving(command, r"FTP server on \S+:(\d+)"))
    url = f"ftp://127.0.0.1:{port}"
    return Way(
        name="pyftpdlib, curl",
        commands={
            "upload": [*_CURL, "-T", source, f"{url}/{_NEW}"],
            "download": [*_CURL, "-o", down, f"{url}/{_HELD}"],
        },
        results={"upload": os.path.join(root, _NEW), "download": down},
        server=server,
    )


def _cp(directory: str, source: str) -> Way:
    _, down = _places(directory, "cp", source)
    # A copy that shares its blocks with the source would move no byte.
    command = ["cp", "--reflink=never", source, down]
    return Way(
        name="cp",
        commands=dict.fromkeys(DIRECTIONS, command),
        results=dict.fromkeys(DIRECTIONS, down),
    )


def _places(directory: str, name: str, source: str) -> tuple[str, str]:
    """Return a root that holds the source, warm for all, and where to get it."""
    root = os.path.join(directory, name)
    os.mkdir(root)
    # A copy, for ftpkit does not serve a file that has another name elsewhere.
    shutil.copyfile(source, os.path.join(root, _HELD))
    return root, os.path.join(directory, f"{name}.down")


def _one_round(ways: Sequence[Way], source: str, *, counts: bool) -> None:
    for direction in DIRECTIONS:
        for way in ways:
            sample = _measure(way, direction)
            check_equal(source, way.results[direction])
            os.unlink(way.results[direction])
            if counts:
                way.samples[direction].append(sample)


def _measure(way: Way, direction: str) -> Sample:
    server = way.server
    if server is None:
        cost, server_cpu_s, server_peak = run(way.commands[direction]), None, None
    else:
        server.forget_peak()
        before = server.cpu_s
        cost = run(way.commands[direction])
        server_cpu_s, server_peak = server.cpu_s - before, server.peak
    return Sample(
        seconds=cost.seconds,
        client_cpu_s=cost.cpu_s,
        client_peak=cost.peak,
        server_cpu_s=server_cpu_s,
        server_peak=server_peak,
    )


def _ratios(ways: Sequence[Way], way: Way, direction: str) -> list[float]:
    """Return how many times as fast as ``way`` ftpkit was, round by round."""
    ours, theirs = ways[0].samples[direction], way.samples[direction]
    return [other.seconds / own.seconds for own, other in zip(ours, theirs, strict=True)]


def _report(
    options: argparse.Namespace, ways: Sequence[Way], left_out: dict[str, str], floor: int
) -> dict[str, Any]:
    return {
        "size": options.size,
        "runs": options.runs,
        "directory": options.directory,
        "machine": _machine(),
        "left_out": left_out,
        "peak_floor": floor,
        "rows": [
            {
                "direction": direction,
                "name": way.name,
                "verified": way.verified,
                "median_s": median(sample.seconds for sample in way.samples[direction]),
                "ratios": _ratios(ways, way, direction),
                "samples": [asdict(sample) for sample in way.samples[direction]],
            }
            for direction in DIRECTIONS
            for way in ways
        ],
    }


def _machine() -> dict[str, str]:
    """Return what was measured, and on what."""
    machine = {"ftpkit": ftpkit_version(), "Python": platform.python_version()}
    if importlib.util.find_spec("pyftpdlib") is not None:
        machine["pyftpdlib"] = importlib.metadata.version("pyftpdlib")
    if shutil.which("curl") is not None:
        said = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True)
        machine["curl"] = said.stdout.split()[1]
    machine[platform.system()] = platform.release()
    machine["cores"] = str(os.cpu_count())
    with open("/proc/sys/net/ipv4/tcp_congestion_control") as file:
        machine["congestion control"] = file.read().strip()
    return machine


def _table(options: argparse.Namespace, ways: Sequence[Way], floor: int) -> str:
    size = options.size
    machine = ", ".join(f"{name} {value}" for name, value in _machine().items())
    lines = [
        f"{size / MiB:,.0f} MiB over loopback into {options.directory}, {options.runs} interleaved"
        f" runs, medians (min to max); {machine}.",
        "",
        "| | | seconds | GiB/s | ftpkit is | verified, on stable storage"
        " | CPU s client + server | peak memory client + server |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for direction in DIRECTIONS:
        for way in ways:
            samples = way.samples[direction]
            seconds = [sample.seconds for sample in samples]
            cells = [
                direction,
                way.name,
                _spread(seconds),
                f"{size / median(seconds) / _GiB:.2f}",
                "" if way is ways[0] else f"{_spread(_ratios(ways, way, direction))} times",
                "yes" if way.verified else "no",
                _both(
                    f"{median(s.client_cpu_s for s in samples):.2f}",
                    [s.server_cpu_s for s in samples],
                    lambda found: f"{median(found):.2f}",
                ),
                _both(
                    _peak(max(s.client_peak for s in samples), floor),
                    [s.server_peak for s in samples],
                    lambda found: _peak(max(found)),
                ),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _both(client: str, server: list[Any], shown: Callable[[list[Any]], str]) -> str:
    """Return what the client and, where there is one, the server took."""
    return client if None in server else f"{client} + {shown(server)}"


def _spread(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _peak(count: int, floor: int = 0) -> str:
    """Return a peak in MiB; one at the floor is that of the process that measures."""
    return f"{'≤ ' if count <= floor else ''}{count / MiB:.0f} MiB"


if __name__ == "__main__":
    main()
