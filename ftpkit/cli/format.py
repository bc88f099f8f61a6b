"""Format names and replies of a server: escaped, aligned, or as JSON."""

import json
import unicodedata
from datetime import datetime
from itertools import accumulate
from typing import TYPE_CHECKING

from ftpkit.cli.output.units import format_size

if TYPE_CHECKING:  # otherwise importing ftpkit.cli would import the protocol
    from ftpkit.protocol.messages import ListEntry, StatReply

_ELLIPSIS = "..."
_MARKS = {"dir": "/", "link": "@", "other": "?"}


def escaped(text: str) -> str:
    """Return ``text`` with control and format characters as escapes like ``\\x1b``.

    So are line breaks and undecodable bytes: a name from the server must not move the cursor or
    reverse the direction of writing.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def width(text: str) -> int:
    """Return the number of terminal columns that escaped ``text`` takes."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def truncated(text: str, columns: int) -> str:
    """Return the start of ``text`` that fits into ``columns``."""
    ends = accumulate(map(_columns, text))
    return text[: sum(1 for end in ends if end <= columns)]


def fitted(text: str, columns: int) -> str:
    """Return ``text`` in ``columns``; the middle of a longer one is replaced by ``...``."""
    if width(text) <= columns:
        return text
    head = truncated(text, max(0, columns - width(_ELLIPSIS)) // 2)
    start, left = len(text), columns - width(head) - width(_ELLIPSIS)
    while start and (left := left - _columns(text[start - 1])) >= 0:
        start -= 1
    return f"{head}{_ELLIPSIS}{text[start:]}"


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def directory_name(text: str) -> str:
    """Return the name on the server for ``/``, ``d/`` or ``/d``, as a shell completes them."""
    return text.strip("/")


def json_line(values: object) -> str:
    """Return ``values`` as JSON on one line of printable ASCII."""
    return json.dumps(values, default=str).replace("\x7f", "\\u007f")


def quoted(text: str) -> str:
    """Return ``text`` as a JSON string, with only unprintable characters escaped."""
    string = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else json_line(c)[1:-1] for c in string)


def ls_line(entry: "ListEntry") -> str:
    """Return the line of ``ls``: size, date, name with a mark for its kind."""
    size = format_size(entry.total) if entry.kind == "file" else "-"
    mark = _MARKS.get(entry.kind, "")
    return f"{size:>7}  {format_time(entry.mtime):16}  {escaped(entry.name)}{mark}"


def stat_lines(reply: "StatReply") -> str:
    """Return the output of ``stat``, one fact per line."""
    facts = {"name": reply.name or "(root)", "kind": reply.kind}
    if reply.kind == "file":
        facts["size"] = f"{format_size(reply.total)} ({reply.total:,} bytes)"
    facts["modified"] = format_time(reply.mtime)
    facts["version"] = reply.version
    if reply.content_digest is not None:
        facts["digest"] = reply.content_digest
    return "\n".join(f"{title:8}  {escaped(fact)}" for title, fact in facts.items())


def format_time(mtime: int) -> str:
    """Return nanoseconds since 1970 as local time, to the minute."""
    try:
        return f"{datetime.fromtimestamp(mtime // 10**9):%Y-%m-%d %H:%M}"
    except (OverflowError, OSError, ValueError):
        return "?"
