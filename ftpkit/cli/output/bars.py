"""Bars for a person who watches; alone here, because importing tqdm takes its time."""

import os
import sys
import threading
from itertools import count
from typing import Final, Never

from tqdm import tqdm

from ftpkit.cli.format import escaped
from ftpkit.cli.output.progress import Lines
from ftpkit.client import TransferResult
from ftpkit.errors import FtpkitError

BAR_INTERVAL_S: Final = 0.1
COLUMNS: Final = 80
ROWS: Final = 24


class Bars:
    """The same lines, and on stderr a bar for each file that moves and one for the whole.

    ``totals`` are the bytes of all files; of one alone there is no other whole.
    """

    def __init__(self, lines: Lines, totals: list[int], at_once: int) -> None:
        # tqdm's monitor thread redraws bars that seldom move; with miniters=1 it has no use.
        tqdm.monitor_interval = 0
        self._lines = lines
        self._turn = threading.RLock()
        self._files: dict[str, tqdm[Never]] = {}
        self._over = 0
        several = len(totals) > 1
        self._whole = _bar("all files", sum(totals), position=at_once) if several else None

    def start(self, name: str, total: int | None) -> None:
        """Wait for the first byte."""

    def moved(self, name: str, moved: int, total: int) -> None:
        """Draw, unless it was done a moment ago."""
        with self._turn:
            if name not in self._files:
                # What an earlier attempt moved must not count as this one's speed.
                self._files[name] = self._file_bar(name, total, moved)
            self._files[name].update(moved - self._files[name].n)
            if self._whole is not None:
                here = sum(bar.n for bar in self._files.values())
                self._whole.update(self._over + here - self._whole.n)

    def retrying(self, name: str, error: FtpkitError, delay: float) -> None:
        """Print the line above the bars."""
        with self._turn, tqdm.external_write_mode(sys.stderr):
            self._lines.retrying(name, error, delay)

    def done(self, transfer: TransferResult) -> None:
        """Print the line above the bars."""
        with self._turn:
            self._end_file(transfer.name)
            with tqdm.external_write_mode(sys.stderr):
                self._lines.done(transfer)

    def failed(self, name: str, error: FtpkitError) -> None:
        """Print the line above the bars."""
        with self._turn:
            self._end_file(name)
            with tqdm.external_write_mode(sys.stderr):
                self._lines.failed(name, error)

    def close(self) -> None:
        """Wipe the bars."""
        for name in list(self._files):
            self._end_file(name)
        if self._whole is not None:
            self._whole.close()
            # The lower bar is wiped, but the cursor stays where its end was.
            sys.stderr.write("\r")
            sys.stderr.flush()

    def _file_bar(self, name: str, total: int, moved: int) -> "tqdm[Never]":
        taken = {abs(bar.pos) for bar in self._files.values()}
        free = next(row for row in count() if row not in taken)
        return _bar(escaped(name), total, position=free, initial=moved)

    def _end_file(self, name: str) -> None:
        bar = self._files.pop(name, None)
        if bar is not None:
            self._over += int(bar.n)
            bar.close()


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
