"""How names, entries and other answers are shown: escaped, aligned, or as JSON."""

import json
from dataclasses import asdict
from datetime import datetime

from ftpkit.cli.units import format_size
from ftpkit.protocol.messages import Entry, StatReply

_MARKS = {"dir": "/", "link": "@", "other": "?"}


def shown(text: str) -> str:
    """Return ``text`` so that no terminal obeys it.

    Control and format characters, line breaks and bytes that are not text become escapes like
    ``\\x1b``: a name from somewhere else must not move the cursor or turn the writing around.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def json_line(values: dict[str, object]) -> str:
    """Return ``values`` as JSON on one line of printable ASCII."""
    return json.dumps(values, default=str).replace("\x7f", "\\u007f")


def ls_line(entry: Entry) -> str:
    """Return the line of ``ls`` for ``entry``: size, date, marked name."""
    size = format_size(entry.total) if entry.kind == "file" else "-"
    mark = _MARKS.get(entry.kind, "")
    return f"{size:>7}  {format_time(entry.mtime):16}  {shown(entry.name)}{mark}"


def ls_json(entry: Entry) -> str:
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
    return "\n".join(f"{word:8}  {shown(fact)}" for word, fact in facts.items())


def stat_json(reply: StatReply) -> str:
    """Return ``reply`` with the words of the wire."""
    return json_line(asdict(reply))


def format_time(mtime: int) -> str:
    """Return nanoseconds since 1970 as local time, to the minute."""
    try:
        return f"{datetime.fromtimestamp(mtime // 10**9):%Y-%m-%d %H:%M}"
    except (OverflowError, OSError, ValueError):
        return "?"
