"""Tables for people: a heading, and rows whose numbers stand under each other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ftpkit.cli.format import escaped, width

_GAP: Final = "  "


def plain(value: object) -> str:
    """Return ``value`` for a person: ``12,345``, ``0.5``, ``yes``, text that no terminal obeys."""
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
    """Shows the value that each row has under ``key``; ``show`` makes a word of it.

    ``show`` is one of ftpkit.cli.units, for values that have a unit.
    """

    key: str
    title: str
    show: Callable[[Any], str] = plain


def table(columns: Sequence[Column], rows: Sequence[Mapping[str, object]]) -> str:
    """Return the heading and ``rows``, a line for each, without trailing blanks.

    A column that holds numbers and nothing else is aligned to the right. A
    value that is None or missing is shown as ``-``.
    """
    return "\n".join(
        _GAP.join(words).rstrip()
        for words in zip(*(_words(column, rows) for column in columns), strict=True)
    )


def _words(column: Column, rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Return what stands in ``column``, its title first, all of one width."""
    values = [row.get(column.key) for row in rows]
    words = [column.title, *("-" if value is None else column.show(value) for value in values)]
    room = max(map(width, words))
    blanks = [" " * (room - width(word)) for word in words]
    if any(value is not None for value in values) and all(map(_is_number, values)):
        return [blank + word for blank, word in zip(blanks, words, strict=True)]
    return [word + blank for blank, word in zip(blanks, words, strict=True)]


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
