"""Servers and clients as processes of their own, which can be killed."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from ftpkit.net.address import Address
from tests.faults.relay import WAIT_S

_URL = re.compile(r"--to (ftpk://\S+)$")


def start(*args: str, home: Path, fds: int | None = None) -> "subprocess.Popen[bytes]":
    """Start ``ftpkit`` with ``args``, its caches under ``home``, at most ``fds`` descriptors."""
    environment = {key: value for key, value in os.environ.items() if "FTPKIT" not in key}
    for kind in ("cache", "config", "state"):
        environment[f"XDG_{kind.upper()}_HOME"] = str(home / kind)
    command = [sys.executable, "-m", "ftpkit", *args]
    if fds is not None:
        command = ["sh", "-c", f'ulimit -n {fds}; exec "$@"', "sh", *command]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=home, env=environment
    )


@dataclass
class Served:
    """``ftpkit serve ROOT``, restarted at the port that it had the first time."""

    root: Path
    options: tuple[str, ...] = ()
    fds: int | None = None
    address: Address = field(init=False)
    process: "subprocess.Popen[bytes]" = field(init=False)

    def __post_init__(self) -> None:
        self.address = Address("127.0.0.1", 0)
        self.start()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        port = str(self.address.port)
        self.process = start(
            "serve",
            str(self.root),
            "--host",
            "127.0.0.1",
            "--port",
            port,
            "--plain",
            "--open",
            "--quiet",
            *self.options,
            home=self.root.parent,
            fds=self.fds,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode().strip()
        match = _URL.search(line)
        assert match is not None, (line, self.process.communicate())
        self.address = Address.parse(match[1])

    def kill(self) -> None:
        """End it as a crash would."""
        # Whoever sees its end may have started the next one before we look again.
        process = self.process
        process.kill()
        process.communicate(timeout=WAIT_S)

    def ask_to_end(self) -> None:
        """Send SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def ended(self) -> tuple[int, str]:
        """Wait for its end; return its exit code and what it logged."""
        _, log = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, log.decode()

    def memory(self) -> int:
        """Return its resident bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert match is not None
        return int(match[1]) * 1024

    def threads(self) -> int:
        """Return how many threads it has."""
        return len(os.listdir(f"/proc/{self.process.pid}/task"))

    def descriptors(self) -> int:
        """Return how many descriptors it has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def cpu_s(self) -> float:
        """Return how many seconds of processor time it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.kill()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def events(output: bytes) -> list[dict[str, object]]:
    """Return what ``--json`` printed."""
    return [json.loads(line) for line in output.splitlines()]
