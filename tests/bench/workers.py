"""Files over several connections, small ones or over TLS: one worker against two, by turns.

The client sends frames that it made before, and only counts replies: on a machine with two cores
it takes part of what the second worker could have. Its share is printed beside.
"""

import argparse
import json
import os
import socket
import ssl
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.processes import HERE, fast_directory, ftpkit, serving

_READ = 1 << 16
_OK = b'"ok":true'


@dataclass(frozen=True, slots=True)
class Run:
    """What one server did: files a second, and seconds of CPU of its side and of ours."""

    rate: float
    server_cpu_s: float
    client_cpu_s: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print it."""
    options = _options(arguments)
    runs: dict[int, list[Run]] = {1: [], options.workers: []}
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        for turn in range(options.runs):
            for workers, done in runs.items():
                root = os.path.join(directory, f"{turn}-{workers}")
                done.append(_run(root, workers, options))
    medians = {
        workers: statistics.median(run.rate for run in done) for workers, done in runs.items()
    }
    for workers, done in runs.items():
        rates = [run.rate for run in done]
        server, client = (
            1e6 * statistics.median(cost) / options.files / options.connections
            for cost in zip(*((run.server_cpu_s, run.client_cpu_s) for run in done), strict=True)
        )
        print(
            f"{workers} worker{'s' * (workers > 1)}: {medians[workers]:,.0f} files/s"
            f" ({min(rates):,.0f} to {max(rates):,.0f}),"
            f" {medians[workers] * options.size / 1e6:,.0f} MB/s,"
            f" CPU a file: server {server:.0f} us, client {client:.0f} us"
        )
    print(f"{medians[options.workers] / medians[1]:.2f} times as fast")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.workers", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--workers", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--connections", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--files", type=int, default=2000, help="on each; default: %(default)s")
    parser.add_argument("--size", type=int, default=4096, help="default: %(default)s")
    parser.add_argument("--tls", action="store_true", help="for large files")
    parser.add_argument("--runs", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--directory", default=fast_directory(), help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.workers < 2:
        parser.error("--workers: at least 2")
    return options


def _run(root: str, workers: int, options: argparse.Namespace) -> Run:
    connections, files, size = options.connections, options.files, options.size
    how = ("--host", "127.0.0.1", "--open", "--state", f"{root}-state") if options.tls else HERE
    command = ftpkit(
        *("serve", root, "--port", "0", *how, "--workers", str(workers), "--no-fsync", "--quiet")
    )
    with serving(command, r" at ftpk://(\S+);") as (server, where):
        lines = [_connected(where, tls=options.tls) for _ in range(connections)]
        try:
            requests = [_requests(number, files, size) for number in range(connections)]
            cpu, own, since = _cpu_s(server.pid), time.process_time(), time.perf_counter()
            threads = [
                threading.Thread(target=_put_all, args=(line, request, files))
                for line, request in zip(lines, requests, strict=True)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            seconds = time.perf_counter() - since
            used, own = _cpu_s(server.pid) - cpu, time.process_time() - own
        finally:
            for line in lines:
                line.close()
    stored = sum(len(names) for place, _, names in os.walk(root) if ".ftpkit" not in place)
    if stored != connections * files:
        sys.exit(f"only {stored} of {connections * files} files are there")
    return Run(stored / seconds, used, own)


def _requests(number: int, files: int, size: int) -> bytes:
    """Return all requests of one connection."""
    body, row = bytes(size), bytearray()
    for file in range(files):
        header = json.dumps({"op": "put", "name": f"{number}/{file}", "size": size}).encode()
        row += len(header).to_bytes(4, "big") + header + body
    return bytes(row)


def _connected(where: str, *, tls: bool) -> socket.socket:
    """Return a connection to a server; whose key it has, does not matter here."""
    host, _, port = where.rpartition(":")
    line = socket.create_connection((host, int(port)))
    if not tls:
        return line
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(line)


def _put_all(line: socket.socket, requests: bytes, files: int) -> None:
    """Send everything, and read until all of it is answered."""
    sender = threading.Thread(target=line.sendall, args=(requests,))
    sender.start()
    if isinstance(line, ssl.SSLSocket):  # no two threads may use it at once
        sender.join()
    answered, rest = 0, b""
    while answered < files:
        data = rest + line.recv(_READ)
        if len(data) == len(rest):
            sys.exit("the server has hung up")
        answered += data.count(_OK)
        # What may be the beginning of another, and of no more than that.
        rest = data[-(len(_OK) - 1) :]
    sender.join()


def _cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process and of its children that live."""
    total = 0.0
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            if int(entry) == pid or int(fields[1]) == pid:
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


if __name__ == "__main__":
    sys.exit(main())
