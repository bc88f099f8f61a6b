"""The server's log: one line a record, of which every field can be read back."""

import json
import logging
import re
import sys
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ftpkit.cli.format import escaped
from ftpkit.cli.serve.logs import JsonFormatter, TextFormatter
from tests.support.logs import Log
from tests.support.raw import Raw

# One of a list, and a field of it: plain, or a JSON string.
_ITEM: Final = r'(?:"(?:[^"\\]|\\.)*"|[^ "=,\\]+)'
_FIELD: Final = re.compile(rf" (\w+)=({_ITEM}(?:,{_ITEM})*)")

NASTY: Final = (
    "",
    " ",
    "a b",
    "a\nb",
    "a\r\n2026-11-06 14:03:22 transfer name=forged outcome=ok",
    'a" outcome="ok',
    "a=b",
    "a,b",
    "\\",
    '\\"',
    "\\n",
    "\x1b[2J\x1b]0;title\x07",
    "\x7f\x80\x9b31m\x85",
    "\u202egpj.exe\u202c",
    "\u2066\u2028\u2029\ufeff",
    "\0",
    "\ud800",
    "\U000e0041",
    "\u00e9\u6f22\U0001f600",
    "x" * 4096,
    "\x1b" * 4096,
)


def record(event: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("ftpkit.server", logging.ERROR, "", 0, event, (), None)
    made.fields = fields
    return made


def read(line: str) -> dict[str, list[str]]:
    """Return the fields of a line, each with its values; fail where something is left over."""
    head, rest = line[:19], line[19:]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", head)
    event = re.match(r" [a-z]+", rest)
    assert event is not None
    found, at = {}, event.end()
    while match := _FIELD.match(rest, at):
        items = re.findall(_ITEM, match[2])
        found[match[1]] = [json.loads(item) if item[0] == '"' else item for item in items]
        at = match.end()
    assert rest[at:] == ""
    return found


def test_a_line_is_plain_where_it_can_be() -> None:
    made = record("transfer", name="a b", bytes=5, rate=1.1e9, seconds=0.25, left=["x", "y"])
    line = TextFormatter().format(made)
    assert line.endswith(' transfer name="a b" bytes=5 rate=1100000000 seconds=0.250 left=x,y')


@given(st.lists(st.text(), min_size=1, max_size=4))
@example(list(NASTY))
def test_every_field_comes_back_and_no_terminal_obeys_it(texts: list[str]) -> None:
    made = record("transfer", first=texts[0], all=texts, last=texts[-1], outcome="ok")
    line = TextFormatter().format(made)
    assert line.isprintable()
    assert read(line) == {"first": [texts[0]], "all": texts, "last": [texts[-1]], "outcome": ["ok"]}
    line = JsonFormatter().format(made)
    assert line.isascii()
    assert line.isprintable()
    fields = json.loads(line)
    assert (fields["first"], fields["all"], fields["outcome"]) == (texts[0], texts, "ok")


@given(st.text())
@example("".join(NASTY))
def test_escaped_text_is_one_line_without_control_characters(text: str) -> None:
    assert escaped(text).isprintable()


def test_an_error_is_one_line_that_says_where() -> None:
    made = record("error", reference="r")
    try:
        raise ValueError("line\nbreak\x1b")
    except ValueError:
        made.exc_info = sys.exc_info()
    for line in (TextFormatter().format(made), JsonFormatter().format(made)):
        assert line.isprintable()
        assert "ValueError" in line
        assert "test_logs.py:" in line
    assert read(TextFormatter().format(made))["error"] == ["ValueError: line\nbreak\x1b"]


@pytest.mark.parametrize("name", ["a b", "a=b,c", 'a" outcome="ok', "\u202egpj.exe", "\U000e0041"])
def test_a_name_that_is_logged_is_one_field(raw: Raw, log: Log, name: str) -> None:
    assert raw.ask("put", b"x", name=name).ok
    fields = log.wait_for("transfer")
    line = TextFormatter().format(record("transfer", **fields))
    assert read(line)["name"] == [name]
    assert read(line)["outcome"] == ["ok"]
