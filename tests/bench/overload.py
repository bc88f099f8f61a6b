"""How fast a transfer is beside 1,000 idle and half-open connections, and what each of them costs.

Run it with ``python -m tests.bench.overload [ROUNDS]``; it prints measurements and asserts nothing.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from ftpkit.client import Client
from tests.faults.crowd import Crowd
from tests.faults.processes import Served

SIZE = 256 * 1024 * 1024
MEMBERS = 1000
LIMITS = ("--max-connections", "2000", "--max-connections-per-address", "2000", "--no-fsync")


def rate(client: Client, source: Path) -> float:
    """Return the bytes a second of one put."""
    started = time.monotonic()
    client.put(source)
    return SIZE / (time.monotonic() - started)


def main(rounds: int) -> None:
    """Measure in turn alone and in the crowd, so that a busy machine is unfair to neither."""
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=shared) as directory:
        here = Path(directory)
        source = here / "source"
        with open(source, "wb") as file:
            for _ in range(SIZE // (1024 * 1024)):
                file.write(os.urandom(1024 * 1024))
        alone, crowded, cost = [], [], []
        with Served(here / "root", LIMITS) as server, Client(server.address) as client:
            rate(client, source)
            for at in range(rounds):
                alone.append(rate(client, source))
                before = server.memory()
                with Crowd(server.address, MEMBERS):
                    # Another process tells no event; nothing is timed while we look again.
                    while server.threads() <= MEMBERS:
                        time.sleep(0.05)
                    cost.append((server.memory() - before) / MEMBERS)
                    crowded.append(rate(client, source))
                # Nor does it tell when they have gone.
                while server.threads() > 10:
                    time.sleep(0.05)
                print(f"round {at + 1}: {alone[-1] / 1e6:.0f} {crowded[-1] / 1e6:.0f} MB/s")
    slower = 1 - statistics.median(crowded) / statistics.median(alone)
    print(f"alone:                  {statistics.median(alone) / 1e6:.0f} MB/s (median of {rounds})")
    print(f"beside {MEMBERS:,} connections: {statistics.median(crowded) / 1e6:.0f} MB/s")
    print(f"slower by:              {slower:.1%} (target: at most 10 %)")
    print(f"memory of each of them: {cost[0] / 1024:.1f} KiB (first round)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
