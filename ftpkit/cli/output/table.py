"""Tables for people, with aligned columns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import click

from ftpkit.cli.format import escaped, json_line, width

_GAP: Final = "  "


def plain(value: object) -> str:
    """Format ``value`` for a person: ``12,345``, ``0.5``, ``yes``, escaped text."""
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
        case _:
            return escaped(str(value))


@dataclass(frozen=True, slots=True)
class Column:
    """Shows the value of each row at ``key``; ``show`` formats it, e.g. with its unit."""

    key: str
    title: str
    show: Callable[[Any], str] = plain


def table(columns: Sequence[Column], rows: Sequence[Mapping[str, object]]) -> str:
    """Return the heading and ``rows``, one per line, without trailing blanks.

    Columns of numbers are aligned to the right. A value that is None or missing is shown as ``-``.
    """
    return "\n".join(
        _GAP.join(cells).rstrip()
        for cells in zip(*(_cells(column, rows) for column in columns), strict=True)
    )


def print_rows(
    columns: Sequence[Column], rows: Sequence[Mapping[str, object]], *, json: bool
) -> None:
    """Print ``rows`` as a table, or as JSON, one object per line; nothing without rows."""
    if json:
        for row in rows:
            click.echo(json_line(row))
    elif rows:
        click.echo(table(columns, rows))


def _cells(column: Column, rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Return the title and values of ``column``, padded to the same width."""
    values = [row.get(column.key) for row in rows]
    cells = [column.title, *("-" if value is None else column.show(value) for value in values)]
    widest = max(map(width, cells))
    blanks = [" " * (widest - width(cell)) for cell in cells]
    if any(value is not None for value in values) and all(map(_is_number, values)):
        return [blank + cell for blank, cell in zip(blanks, cells, strict=True)]
    return [cell + blank for blank, cell in zip(blanks, cells, strict=True)]


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
