"""What was compared as a drawing, in a file."""

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
    """A drawing at ``path``, whose ending says in which format.

    It is made before anything is measured, for where there can be none it says so.
    """

    def __init__(self, path: str) -> None:
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise click.ClickException(
                "a plot needs matplotlib: pip install 'ftpkit[plot]'"
            ) from None
        self._path, self._figure = path, Figure(layout="constrained")
        formats = self._figure.canvas.get_supported_filetypes()
        if os.path.splitext(path)[1].removeprefix(".").lower() not in formats:
            raise click.BadParameter(
                f"a plot's name ends in one of {', '.join(sorted(formats))}", param_hint="--plot"
            )
        if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            raise LocalFileError(f"cannot write {path!r}: there is no such directory")

    def goodput(self, rows: Iterable[tuple[str, float, bool]]) -> None:
        """Draw bars from top to bottom: their label, bits a second, and if they are verified."""
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
        axes.set_xlabel("Mbit/s of the file (grey: not verified)")
        self._save()

    def flow_times(self, panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> None:
        """Draw a panel for each title, and in it a line for each label: load, seconds."""
        self._figure.set_size_inches(3.6 * len(panels), 3.6)
        [row] = self._figure.subplots(1, len(panels), squeeze=False)
        for axes, (title, lines) in zip(row, panels.items(), strict=True):
            for label, points in lines.items():
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
