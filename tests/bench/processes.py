"""Commands as a user would start them, and what the kernel says they cost (Linux: /proc).

Nothing of ftpkit is imported here: the memory of the process that measures is the least that it
can measure of others.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import IO, Final, Self

MiB: Final = 1 << 20

# What the command itself takes them for.
_UNITS: Final = {"": 1, "M": 10**6, "G": 10**9, "Mi": 1 << 20, "Gi": 1 << 30}

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_STOP_S: Final = 60.0
# A server that speaks no TLS, and that nobody else reaches.
HERE: Final = ("--host", "127.0.0.1", "--plain", "--open")
_TAIL_LINES: Final = 20


class CommandFailedError(Exception):
    """A command that was to be measured did not do its work."""

    def __init__(self, command: Sequence[str], said: str) -> None:
        super().__init__(f"{' '.join(command)}: {said.strip() or 'failed without a word'}")


def ftpkit(*arguments: str) -> list[str]:
    """Return the command line of ftpkit: the one installed here, else this checkout's."""
    installed = shutil.which("ftpkit", path=os.path.dirname(sys.executable))
    return [*([installed] if installed else [sys.executable, "-m", "ftpkit"]), *arguments]


def ftpkit_version() -> str:
    """Return the version of the ftpkit that is measured."""
    said = subprocess.run(ftpkit("--version"), capture_output=True, text=True, check=True)
    return said.stdout.split()[1]


def parse_size(text: str) -> int:
    """Return the bytes that ``text`` says: 512M is 512,000,000 and 512Mi 512 * 2^20."""
    found = re.fullmatch(r"([1-9][0-9]{0,11})([MG]i?|)", text)
    if found is None:
        raise ValueError(text)
    return int(found[1]) * _UNITS[found[2]]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process took: seconds of wall clock and of CPU, and its peak memory in bytes.

    The kernel counts a child's memory from its fork on, so ``peak`` is never
    below the peak of the process that measures; ``own_peak`` returns that.
    """

    seconds: float
    cpu_s: float
    peak: int


class Started:
    """A command that runs, and runs no longer than the block that it is the context of."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  (see __exit__)
        self._since = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._said,
            env=_environment(),
        )

    def finish(self) -> Cost:
        """Wait for its end and return what it took; CommandFailedError if it failed."""
        _, status, usage = os.wait4(self._process.pid, 0)
        seconds = time.perf_counter() - self._since
        self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._process.returncode:
            self._said.seek(0)
            raise CommandFailedError(self._command, self._said.read())
        return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()
        self._said.close()


def run(command: Sequence[str]) -> Cost:
    """Run a command to its end."""
    with Started(command) as started:
        return started.finish()


def own_peak() -> int:
    """Return the peak of this process's memory in bytes."""
    return Daemon(os.getpid()).peak


class Daemon:
    """A process that goes on, seen through /proc."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all its threads so far, in steps of a clock tick (10 ms)."""
        # The name of the program, in parentheses, may hold anything; 14 and 15 are utime, stime.
        fields = self._read("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S

    @property
    def peak(self) -> int:
        """Its peak memory in bytes, since the start or the last ``forget_peak``."""
        return int(self._status("VmHWM").removesuffix("kB")) * 1024

    def forget_peak(self) -> None:
        """Let the peak be what is in memory now."""
        with open(f"/proc/{self.pid}/clear_refs", "w") as file:
            file.write("5")

    @property
    def threads(self) -> int:
        """How many threads it has."""
        return int(self._status("Threads"))

    @property
    def descriptors(self) -> int:
        """How many descriptors it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def _status(self, key: str) -> str:
        found = re.search(rf"^{key}:\s*(.*)$", self._read("status"), re.MULTILINE)
        if found is None:
            raise LookupError(key)
        return found[1].strip()

    def _read(self, name: str) -> str:
        with open(f"/proc/{self.pid}/{name}") as file:
            return file.read()


@contextmanager
def serving(command: Sequence[str], announces: str) -> Iterator[tuple[Daemon, str]]:
    """Run a server until the block ends; yield it with group 1 of the line that says it is up."""
    with tempfile.TemporaryDirectory() as state:
        yield from _serving(command, announces, state)


def _serving(command: Sequence[str], announces: str, state: str) -> Iterator[tuple[Daemon, str]]:
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=_environment() | {"XDG_STATE_HOME": state},
    )
    assert process.stdout is not None
    with process.stdout as lines:
        try:
            said = _read_up_to(lines, announces, command)
            # Nobody reads its log, but a full pipe would stop it.
            reader = threading.Thread(target=deque, args=(lines, 0))
            reader.start()
            try:
                yield Daemon(process.pid), said
            finally:
                _stop(process)
                reader.join()
        finally:
            _stop(process)


@contextmanager
def serving_ftpkit(root: str) -> Iterator[tuple[Daemon, str]]:
    """Run ``ftpkit serve`` for this machine until the block ends; yield it with its URL."""
    command = ftpkit("serve", root, "--port", "0", *HERE)
    with serving(command, r"ftpkit put FILE --to (\S+)") as served:
        yield served


def write_file(path: str, size: int, seed: int = 0) -> None:
    """Write a file in which no two MiB are the same, always the same for a seed."""
    piece = bytearray(Random(seed).randbytes(MiB))
    with open(path, "wb") as file:
        for offset in range(0, size, MiB):
            piece[:8] = offset.to_bytes(8, "big")
            file.write(memoryview(piece)[: size - offset])
        # What is still to be written to a disk would be measured with what comes next.
        file.flush()
        os.fsync(file.fileno())


def check_equal(path: str, other: str) -> None:
    """Compare two files byte for byte; CommandFailedError where they differ."""
    run(["cmp", path, other])


def check_space(directory: str, needed: int) -> None:
    """Exit in one line where a directory has no room for ``needed`` bytes."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        sys.exit(f"{directory} has {free // MiB:,} MiB free, and {needed // MiB:,} are needed")


def fast_directory() -> str:
    """Return a directory in memory where there is one, else the one for temporary files."""
    return "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()


def _environment() -> dict[str, str]:
    """Return ours, as it is on a user's machine and without the user's settings.

    A rate in a settings file would be measured, and so would compiling ftpkit
    again at every start, which an installation has done once.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith("FTPKIT_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return kept | {"FTPKIT_CONFIG": os.devnull}


def _read_up_to(lines: IO[str], announces: str, command: Sequence[str]) -> str:
    said: deque[str] = deque(maxlen=_TAIL_LINES)
    for line in lines:
        if found := re.search(announces, line):
            return found[1]
        said.append(line)
    raise CommandFailedError(command, "".join(said))


def _stop(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
