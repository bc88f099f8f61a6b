"""Progress bars on a terminal; a module of its own, since importing tqdm is slow."""

import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Final, Never

from tqdm import tqdm

from ftpkit.cli.format import escaped, fitted
from ftpkit.cli.output.progress import Lines
from ftpkit.cli.output.screen import COLUMNS, ROWS
from ftpkit.client import TransferResult
from ftpkit.errors import FtpkitError

BAR_INTERVAL_S: Final = 0.1
# A terminal of fewer columns has no space for the bar itself.
_WIDE: Final = 60
_NARROW: Final = "{desc}: {percentage:3.0f}% {rate_fmt} {remaining}"


class Bars:
    """Prints ``lines``, and below them a bar on stderr per active file and one for all files.

    ``totals`` are the sizes of the files in bytes; a single file has no second bar.
    """

    def __init__(self, lines: Lines, totals: list[int], at_once: int) -> None:
        # tqdm's monitor thread is needed only with miniters above 1.
        tqdm.monitor_interval = 0
        self._lines = lines
        self._lock = threading.RLock()
        self._files: dict[str, tqdm[Never]] = {}
        self._finished = 0
        several = len(totals) > 1
        self._all_files = _bar("all files", sum(totals), position=at_once) if several else None

    def start(self, name: str, total: int | None) -> None:
        """Draw nothing before the first byte."""

    def moved(self, name: str, moved: int, total: int) -> None:
        with self._lock:
            if name not in self._files:
                # Bytes of an earlier attempt must not count in the rate of this one.
                self._files[name] = self._file_bar(name, total, moved)
            self._files[name].update(moved - self._files[name].n)
            if self._all_files is not None:
                active = sum(bar.n for bar in self._files.values())
                self._all_files.update(self._finished + active - self._all_files.n)

    def retrying(self, name: str, error: FtpkitError, delay: float) -> None:
        self._print(partial(self._lines.retrying, name, error, delay))

    def done(self, transfer: TransferResult) -> None:
        self._print(partial(self._lines.done, transfer), ended=transfer.name)

    def failed(self, name: str, error: FtpkitError) -> None:
        self._print(partial(self._lines.failed, name, error), ended=name)

    def close(self) -> None:
        for name in list(self._files):
            self._end_file(name)
        if self._all_files is not None:
            self._all_files.close()
        _erase_below()

    def _print(self, line: Callable[[], None], ended: str | None = None) -> None:
        """Print a line above the bars, without the bar of the file that has ended."""
        with self._lock:
            if ended is not None:
                self._end_file(ended)
            with tqdm.external_write_mode(sys.stderr):
                _erase_below()
                line()

    def _file_bar(self, name: str, total: int, moved: int) -> "tqdm[Never]":
        used = {abs(bar.pos) for bar in self._files.values()}
        position = next(each for each in count() if each not in used)
        return _bar(escaped(name), total, position=position, initial=moved)

    def _end_file(self, name: str) -> None:
        bar = self._files.pop(name, None)
        if bar is not None:
            self._finished += int(bar.n)
            bar.close()


def _erase_below() -> None:
    """Erase from the start of the line on: tqdm does not know of a bar that Ctrl-C cut short."""
    sys.stderr.write("\r" if os.environ.get("TERM") == "dumb" else "\r\x1b[J")
    sys.stderr.flush()


def _bar(name: str, total: int, *, position: int, initial: int = 0) -> "tqdm[Never]":
    # On a terminal that reports no size, tqdm would draw bars of no width.
    size = os.get_terminal_size(sys.stderr.fileno())
    columns = size.columns or COLUMNS
    return tqdm(
        desc=fitted(name, columns // 3),
        total=total,
        initial=initial,
        position=position,
        unit="B",
        unit_scale=True,
        miniters=1,
        mininterval=BAR_INTERVAL_S,
        bar_format=_NARROW if total and columns < _WIDE else None,
        dynamic_ncols=size.columns > 0,
        ncols=None if size.columns else COLUMNS,
        nrows=None if size.columns else ROWS,
        leave=False,
        file=sys.stderr,
    )
