"""Reports of transfers: lines for people, JSON events for programs."""

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Final, Protocol

import click

from ftpkit.cli.exit_codes import print_error
from ftpkit.cli.format import escaped, json_line
from ftpkit.cli.output.units import format_duration, format_rate, format_size
from ftpkit.client import TransferResult
from ftpkit.errors import FtpkitError, LocalFileError, UdpBlockedError

EVENT_INTERVAL_S: Final = 0.5


class Report(Protocol):
    """Receives the progress of named transfers; its methods may be called by several threads."""

    def start(self, name: str, total: int | None) -> None:
        """The transfer ``name`` begins; ``total`` in bytes, None if unknown."""

    def moved(self, name: str, moved: int, total: int) -> None:
        """``moved`` of ``total`` bytes have been transferred; called often."""

    def retrying(self, name: str, error: FtpkitError, delay: float) -> None:
        """``error`` occurred, and the next attempt starts in ``delay`` seconds."""

    def done(self, transfer: TransferResult) -> None:
        """The file is complete and verified."""

    def failed(self, name: str, error: FtpkitError) -> None:
        """The transfer failed."""


def stderr_is_terminal() -> bool:
    return sys.stderr.isatty()


class Lines:
    """One line per file: on stdout when it is complete, on stderr when it failed."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet

    def start(self, name: str, total: int | None) -> None:
        """Print nothing."""

    def moved(self, name: str, moved: int, total: int) -> None:
        """Print nothing."""

    def retrying(self, name: str, error: FtpkitError, delay: float) -> None:
        if not self._quiet:
            on_tcp = isinstance(error, UdpBlockedError)
            then = "continuing over TCP" if on_tcp else f"retrying in {format_duration(delay)}"
            print_error(f"{error}; {then}")

    def done(self, transfer: TransferResult) -> None:
        if not self._quiet:
            click.echo(summary(transfer))

    def failed(self, name: str, error: FtpkitError) -> None:
        # A local error names its file.
        print_error(str(error), "" if isinstance(error, LocalFileError) else name)


class Events:
    """NDJSON on stdout: start, progress at most twice a second, retry, done, error."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next: dict[str, float] = {}
        self._lock = threading.Lock()

    def start(self, name: str, total: int | None) -> None:
        """``{"event": "start", "name", "total"}``; ``total`` may be null."""
        self._next[name] = self._clock() + EVENT_INTERVAL_S
        self._emit("start", name=name, total=total)

    def moved(self, name: str, moved: int, total: int) -> None:
        """``{"event": "progress", "name", "moved", "total"}``."""
        if self._clock() >= self._next[name]:
            self._next[name] = self._clock() + EVENT_INTERVAL_S
            self._emit("progress", name=name, moved=moved, total=total)

    def retrying(self, name: str, error: FtpkitError, delay: float) -> None:
        """``{"event": "retry", "name", "code", "message", "seconds"}``."""
        seconds = round(delay, 3)
        self._emit("retry", name=name, **_error_fields(error), seconds=seconds)

    def done(self, transfer: TransferResult) -> None:
        """``{"event": "done", "name", "path", "total", "seconds", "version", …}``."""
        seconds = round(transfer.seconds, 6)
        self._emit("done", **{**asdict(transfer), "seconds": seconds})

    def failed(self, name: str, error: FtpkitError) -> None:
        """``{"event": "error", "name", "code", "message"}``."""
        self._emit("error", name=name, **_error_fields(error))

    def _emit(self, event: str, **values: object) -> None:
        with self._lock:
            click.echo(json_line({"event": event, **values}))


def _error_fields(error: FtpkitError) -> dict[str, str]:
    return {"code": str(error.code), "message": str(error)}


def summary(transfer: TransferResult) -> str:
    """Return ``bigfile.iso: 4.29 GB in 3.9 s, 1.10 GB/s, verified``.

    The time and the rate are those of what moved now, which is named if it is not all.
    """
    rate = transfer.moved / transfer.seconds if transfer.seconds > 0 else 0
    size, seconds = format_size(transfer.total), format_duration(transfer.seconds)
    if transfer.moved < transfer.total:
        size += f", {format_size(transfer.moved)} of it"
    return f"{escaped(transfer.name)}: {size} in {seconds}, {format_rate(rate)}, verified"
