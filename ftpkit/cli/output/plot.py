"""Plots of comparisons, written to a file."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import click

from ftpkit.cli.output.units import format_bit_rate
from ftpkit.errors import LocalFileError

_VERIFIED: Final = "#2a7f62"
_UNVERIFIED: Final = "#b0b0b0"
_ROW_INCHES: Final = 0.45


class Plot:
    """A plot to be written to ``path``, whose extension selects the format.

    Created before the measurements, so that an unusable path is reported first: raises
    ClickException without matplotlib, BadParameter and LocalFileError for a wrong path.
    """

    def __init__(self, path: str) -> None:
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise click.ClickException(
                "--plot requires matplotlib; install it with: pip install 'ftpkit[plot]'"
            ) from None
        self._path, self._figure = path, Figure(layout="constrained")
        formats = self._figure.canvas.get_supported_filetypes()
        if os.path.splitext(path)[1].removeprefix(".").lower() not in formats:
            raise click.BadParameter(
                f"the file name must end in one of {', '.join(sorted(formats))}",
                param_hint="--plot",
            )
        if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            raise LocalFileError(f"cannot write {path!r}: no such directory")

    def goodput(self, rows: Iterable[tuple[str, float, bool]]) -> None:
        """Draw horizontal bars: label, bits per second, and whether the file was verified."""
        labels, bits, verified = zip(*rows, strict=True)
        self._figure.set_size_inches(8, 1.2 + _ROW_INCHES * len(labels))
        axes = self._figure.subplots()
        bars = axes.barh(
            labels,
            [each / 1e6 for each in bits],
            color=[_VERIFIED if each else _UNVERIFIED for each in verified],
        )
        axes.bar_label(bars, [format_bit_rate(each) for each in bits], padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_xlabel("goodput, Mbit/s (grey: not verified)")
        self._save()

    def flow_times(self, panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> None:
        """Draw a panel per title, and in it a curve per label, of points (load, seconds)."""
        self._figure.set_size_inches(3.6 * len(panels), 3.6)
        [row] = self._figure.subplots(1, len(panels), squeeze=False)
        for axes, (title, curves) in zip(row, panels.items(), strict=True):
            for label, points in curves.items():
                loads, seconds = zip(*points, strict=True)
                axes.plot(loads, seconds, marker="o", label=label)
            axes.set_title(title)
            axes.set_xlabel("load")
            axes.set_yscale("log")
        row[0].set_ylabel("mean flow time, s")
        row[0].legend()
        self._save()

    def _save(self) -> None:
        try:
            self._figure.savefig(self._path)
        except OSError as error:
            reason = error.strerror or error
            raise LocalFileError(f"cannot write {self._path!r}: {reason}") from None
