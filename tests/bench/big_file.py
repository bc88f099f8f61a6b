"""One file of 4 GiB or more, up and down, compared byte for byte, at flat memory on both sides.

How to run it, from the top of a checkout:

    python -m tests.bench.big_file [--size 5Gi] [--directory DIR]

Peaks of memory are of whole processes. The exit code is 1 where one is at or over 150 MiB.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from typing import Final

from tests.bench.processes import (
    Daemon,
    MiB,
    check_equal,
    check_space,
    ftpkit,
    own_peak,
    parse_size,
    run,
    serving_ftpkit,
    write_file,
)

MAX_PEAK: Final = 150 * MiB


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    options = _options(arguments)
    check_space(options.directory, 2 * options.size + 64 * MiB)
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        root = os.path.join(directory, "root")
        os.mkdir(root)
        source, held = os.path.join(directory, "source"), os.path.join(root, "held")
        down = os.path.join(directory, "down")
        write_file(source, options.size)
        with serving_ftpkit(root) as (server, url):
            put = ftpkit("put", source, "--as", "held", "--to", url)
            flat = _move("put", put, server, options.size)
            check_equal(source, held)
            # Room for two of them is enough: what is held is the source, byte for byte.
            os.unlink(source)
            get = ftpkit("get", "held", "-o", down, "--from", url)
            flat &= _move("get", get, server, options.size)
            check_equal(held, down)
    print("both are equal to the source, byte for byte")
    print(f"(a client's peak below {own_peak() / MiB:.0f} MiB, this script's own, cannot be seen)")
    return 0 if flat else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.big_file", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--size", type=parse_size, default="5Gi", help="default: %(default)s")
    parser.add_argument("--directory", default=tempfile.gettempdir(), help="default: %(default)s")
    return parser.parse_args(arguments)


def _move(name: str, command: list[str], server: Daemon, size: int) -> bool:
    """Run a command, print what it took, and return whether memory stayed flat on both sides."""
    server.forget_peak()
    cost = run(command)
    peak = server.peak
    print(
        f"ftpkit {name} of {size:,} bytes: {cost.seconds:.1f} s,"
        f" {size / MiB / cost.seconds:,.0f} MiB/s,"
        f" peak memory of the client {cost.peak / MiB:.0f} MiB, of the server {peak / MiB:.0f} MiB",
        flush=True,
    )
    return max(cost.peak, peak) < MAX_PEAK


if __name__ == "__main__":
    sys.exit(main())
