"""Bars for a person who watches; alone here, because importing tqdm takes its time."""

import os
import sys
from typing import Final, Never

from tqdm import tqdm

from ftpkit.cli.display import shown
from ftpkit.cli.progress import Lines
from ftpkit.client import Transfer
from ftpkit.errors import FtpkitError

BAR_INTERVAL_S: Final = 0.1
COLUMNS: Final = 80
ROWS: Final = 24


class Bars:
    """The same lines, and on stderr a bar for the file and, with several, one for the whole."""

    def __init__(self, lines: Lines, totals: list[int]) -> None:
        # tqdm's monitor thread redraws bars that seldom move; with miniters=1 it has no use.
        tqdm.monitor_interval = 0
        self._lines = lines
        self._name = ""
        self._file: tqdm[Never] | None = None
        self._over = 0
        self._whole = _bar("all files", sum(totals), position=1) if len(totals) > 1 else None

    def start(self, name: str, total: int | None) -> None:
        """Wait for the first byte."""
        self._name = shown(name)

    def moved(self, moved: int, total: int) -> None:
        """Draw, unless it was done a moment ago."""
        if self._file is None:
            # What an earlier attempt moved must not count as this one's speed.
            self._file = _bar(self._name, total, position=0, initial=moved)
        self._file.update(moved - self._file.n)
        if self._whole is not None:
            self._whole.update(self._over + moved - self._whole.n)

    def retrying(self, error: FtpkitError, delay: float) -> None:
        """Print the line above the bars."""
        with tqdm.external_write_mode(sys.stderr):
            self._lines.retrying(error, delay)

    def done(self, transfer: Transfer) -> None:
        """Print the line above the bars."""
        self._end_file()
        with tqdm.external_write_mode(sys.stderr):
            self._lines.done(transfer)

    def failed(self, name: str, error: FtpkitError) -> None:
        """Print the line above the bars."""
        self._end_file()
        with tqdm.external_write_mode(sys.stderr):
            self._lines.failed(name, error)

    def close(self) -> None:
        """Wipe the bars."""
        self._end_file()
        if self._whole is not None:
            self._whole.close()
            # The lower bar is wiped, but the cursor stays where its end was.
            sys.stderr.write("\r")
            sys.stderr.flush()

    def _end_file(self) -> None:
        if self._file is not None:
            self._over += int(self._file.n)
            self._file.close()
            self._file = None


def _bar(name: str, total: int, *, position: int, initial: int = 0) -> "tqdm[Never]":
    # A terminal that does not know its size would get bars of no size.
    knows = os.get_terminal_size(sys.stderr.fileno()).columns > 0
    return tqdm(
        desc=name,
        total=total,
        initial=initial,
        position=position,
        unit="B",
        unit_scale=True,
        miniters=1,
        mininterval=BAR_INTERVAL_S,
        dynamic_ncols=knows,
        ncols=None if knows else COLUMNS,
        nrows=None if knows else ROWS,
        leave=False,
        file=sys.stderr,
    )
