"""Eight clients at once, each with a file of its own; the server must give back what it took.

How to run it, from the top of a checkout:

    python -m tests.bench.eight_clients [--size 256Mi] [--clients 8] [--directory DIR]

Every file that arrives is compared with its source byte for byte. The exit code is 1 where one
differs, or where the server has more or fewer threads or descriptors afterwards than before.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

from tests.bench.processes import (
    Daemon,
    MiB,
    Started,
    check_equal,
    check_space,
    fast_directory,
    ftpkit,
    parse_size,
    run,
    serving_ftpkit,
    write_file,
)

# A client may be gone a moment before its connection's thread is.
_SETTLE_S: Final = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    options = _options(arguments)
    check_space(options.directory, 2 * options.clients * options.size)
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        root = os.path.join(directory, "root")
        os.mkdir(root)
        names = [f"file-{number}" for number in range(options.clients)]
        for number, name in enumerate(names):
            write_file(os.path.join(directory, name), options.size, seed=number)
        with serving_ftpkit(root) as (server, url):
            before = _at_rest(server, url)
            seconds = _put_all(directory, names, url)
            after = _settled(server, before)
            for name in names:
                check_equal(os.path.join(directory, name), os.path.join(root, name))
            peak = server.peak
    moved = options.clients * options.size
    print(
        f"{options.clients} times ftpkit put of {options.size / MiB:,.0f} MiB at once:"
        f" {seconds:.2f} s, {moved / MiB / seconds:,.0f} MiB/s in all, every file equal,"
        f" peak memory of the server {peak / MiB:.0f} MiB"
    )
    print(f"threads of the server:     {before[0]} before, {after[0]} after")
    print(f"descriptors of the server: {before[1]} before, {after[1]} after")
    return 0 if after == before else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.eight_clients", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--size", type=parse_size, default="256Mi", help="default: %(default)s")
    parser.add_argument("--clients", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--directory", default=fast_directory(), help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.clients < 1:
        parser.error("--clients: at least 1")
    return options


def _put_all(directory: str, names: Sequence[str], url: str) -> float:
    """Start all clients, wait for all; return the seconds that took."""
    commands = [ftpkit("put", os.path.join(directory, name), "--to", url) for name in names]
    since = time.perf_counter()
    with ExitStack() as stack:
        for client in [stack.enter_context(Started(command)) for command in commands]:
            client.finish()
        return time.perf_counter() - since


def _held(server: Daemon) -> tuple[int, int]:
    return server.threads, server.descriptors


def _at_rest(server: Daemon, url: str) -> tuple[int, int]:
    """Return what the server holds while it serves nobody: two looks, a ping apart, agree."""
    held = _held(server)
    while True:
        run(ftpkit("ping", "--to", url))
        last, held = held, _held(server)
        if held == last:
            return held


def _settled(server: Daemon, expected: tuple[int, int]) -> tuple[int, int]:
    """Return what the server holds once that is as expected, or when the time is up."""
    deadline = time.monotonic() + _SETTLE_S
    while (held := _held(server)) != expected and time.monotonic() < deadline:
        os.sched_yield()
    return held


if __name__ == "__main__":
    sys.exit(main())
