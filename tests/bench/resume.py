"""How soon a continued upload sends its first new byte, with and without remembered digests.

Run it: ``python -m tests.bench.resume [MIB]`` (4300 by default)
"""

import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

from ftpkit import Client, Server

# What is held counts in whole blocks of 4 MiB; new bytes leave in smaller pieces.
BLOCK = 4 * 1024 * 1024
CACHEABLE_S = 2.1  # digests of a file that changed since then are not cached


class Broken(Exception):
    """The end of the first attempt."""


def resume(source: Path, here: Path, memory: Path | None) -> tuple[float, int]:
    """Break an upload at 80 % and continue it; return seconds to the first new byte, and where."""

    def break_off(moved: int, total: int) -> None:
        if moved > total * 0.8:
            raise Broken

    with (
        Server(here / "root", port=0) as server,
        Client(server.address, digest_cache=memory) as client,
        contextlib.suppress(Broken),
    ):
        client.put(source, on_progress=break_off)
    first: list[tuple[float, int]] = []
    last = 0

    def look(moved: int, total: int) -> None:
        nonlocal last
        if not first and 0 < moved - last < BLOCK:
            first.append((time.perf_counter() - started, moved))
        last = moved

    with Server(here / "root", port=0) as server:
        started = time.perf_counter()
        with Client(server.address, digest_cache=memory) as client:
            client.put(source, on_progress=look)
    return first[0]


def main(mib: int) -> None:
    """Print both."""
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=shared) as directory:
        here = Path(directory)
        with open(here / "source", "wb") as file:
            for _ in range(mib):
                file.write(os.urandom(1024 * 1024))
        time.sleep(CACHEABLE_S)
        for memory in (here / "memory", None):
            seconds, moved = resume(here / "source", here, memory)
            kind = "remembered" if memory else "no"
            print(f"{kind} digests: first new byte after {seconds:.3f} s, at {moved / 1e9:.2f} GB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4300)
