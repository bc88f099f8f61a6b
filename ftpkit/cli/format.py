"""How names, entries and other answers are shown: escaped, aligned, or as JSON."""

import json
import unicodedata
from dataclasses import asdict
from datetime import datetime
from itertools import accumulate

from ftpkit.cli.output.units import format_size
from ftpkit.protocol.messages import ListEntry, StatReply

_CUT = "..."
_MARKS = {"dir": "/", "link": "@", "other": "?"}


def escaped(text: str) -> str:
    """Return ``text`` so that no terminal obeys it.

    Control and format characters, line breaks and bytes that are not text become escapes like
    ``\\x1b``: a name from somewhere else must not move the cursor or turn the writing around.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def width(text: str) -> int:
    """Return how many columns of a terminal ``text`` takes, as ``shown`` has made it."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def truncated(text: str, room: int) -> str:
    """Return as much of the start of ``text`` as ``room`` columns hold."""
    used = accumulate(map(_columns, text))
    return text[: sum(1 for columns in used if columns <= room)]


def fitted(text: str, room: int) -> str:
    """Return a name in ``room`` columns; the end of a path tells more than its start."""
    if width(text) <= room:
        return text
    start = len(text)
    room -= width(_CUT)
    while start and (room := room - _columns(text[start - 1])) >= 0:
        start -= 1
    return _CUT + text[start:]


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def json_line(values: object) -> str:
    """Return ``values`` as JSON on one line of printable ASCII."""
    return json.dumps(values, default=str).replace("\x7f", "\\u007f")


def quoted(text: str) -> str:
    """Return ``text`` as a JSON string that can be read, and that no terminal obeys."""
    string = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else json_line(c)[1:-1] for c in string)


def ls_line(entry: ListEntry) -> str:
    """Return the line of ``ls`` for ``entry``: size, date, marked name."""
    size = format_size(entry.total) if entry.kind == "file" else "-"
    mark = _MARKS.get(entry.kind, "")
    return f"{size:>7}  {format_time(entry.mtime):16}  {escaped(entry.name)}{mark}"


def ls_json(entry: ListEntry) -> str:
    """Return ``entry`` as the server lists it: ``mtime`` in nanoseconds."""
    values = {"name": entry.name, "kind": entry.kind, "total": entry.total, "mtime": entry.mtime}
    return json_line(values)


def stat_lines(reply: StatReply) -> str:
    """Return what is known about one name, a line for each fact."""
    facts = {"name": reply.name or "(the root)", "kind": reply.kind}
    if reply.kind == "file":
        facts["size"] = f"{format_size(reply.total)} ({reply.total:,} bytes)"
    facts["modified"] = format_time(reply.mtime)
    facts["version"] = reply.version
    if reply.content_digest is not None:
        facts["digest"] = reply.content_digest
    return "\n".join(f"{word:8}  {escaped(fact)}" for word, fact in facts.items())


def stat_json(reply: StatReply) -> str:
    """Return ``reply`` with the words of the wire."""
    return json_line(asdict(reply))


def format_time(mtime: int) -> str:
    """Return nanoseconds since 1970 as local time, to the minute."""
    try:
        return f"{datetime.fromtimestamp(mtime // 10**9):%Y-%m-%d %H:%M}"
    except (OverflowError, OSError, ValueError):
        return "?"
