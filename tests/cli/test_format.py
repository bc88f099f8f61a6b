import json

import pytest

from ftpkit.cli.format import (
    escaped,
    fitted,
    format_time,
    json_line,
    ls_line,
    stat_lines,
    truncated,
    width,
)
from ftpkit.protocol.messages import ListEntry, StatReply


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain name.iso", "plain name.iso"),
        ("名字 é", "名字 é"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("two\nlines\r\t", "two\\nlines\\r\\t"),
        ("\x07\x00\x7f\x9b", "\\x07\\x00\\x7f\\x9b"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("bytes \udcff", "bytes \\udcff"),
    ],
)
def test_no_terminal_obeys_a_name(text: str, expected: str) -> None:
    assert escaped(text) == expected


def test_json_is_one_line_of_printable_ascii() -> None:
    values: dict[str, object] = {"name": "".join(map(chr, range(0x120))) + "\u202e\udcff"}
    line = json_line(values)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line) == values


def test_ls_aligns_and_marks() -> None:
    entries = [
        ListEntry(name="a", kind="file", total=999, mtime=0),
        ListEntry(name="b", kind="file", total=999_000_000, mtime=10**18),
        ListEntry(name="c", kind="dir", total=4096, mtime=10**18),
        ListEntry(name="d", kind="link", total=3, mtime=10**18),
        ListEntry(name="e\x1b", kind="other", total=0, mtime=10**18),
    ]
    lines = [ls_line(entry) for entry in entries]
    assert [line.rpartition("  ")[2] for line in lines] == ["a", "b", "c/", "d@", "e\\x1b?"]
    assert {line.rindex("  ") for line in lines} == {25}
    assert [line[:7] for line in lines] == ["  999 B", " 999 MB"] + ["      -"] * 3


def test_stat_lines() -> None:
    directory = StatReply(name="", kind="dir", total=0, mtime=10**18, version="v")
    assert [line.split()[0] for line in stat_lines(directory).splitlines()] == [
        "name",
        "kind",
        "modified",
        "version",
    ]
    file = StatReply(
        name="a\n", kind="file", total=4096, mtime=10**18, version="v", content_digest="blake3:ab"
    )
    assert stat_lines(file).splitlines()[0] == "name      a\\n"
    assert "size      4.10 kB (4,096 bytes)" in stat_lines(file)
    assert stat_lines(file).endswith("digest    blake3:ab")


@pytest.mark.parametrize("mtime", [2**70, -(2**70)])
def test_a_time_that_cannot_be_is_no_failure(mtime: int) -> None:
    assert format_time(mtime) == "?"


@pytest.mark.parametrize(
    ("text", "columns"), [("", 0), ("abc", 3), ("é", 1), ("e\u0301", 1), ("名字", 4), ("\uff21", 2)]
)
def test_columns_of_a_terminal_are_no_characters(text: str, columns: int) -> None:
    assert width(text) == columns


@pytest.mark.parametrize(
    ("text", "room", "expected"),
    [
        ("a/b.iso", 7, "a/b.iso"),
        ("a/bc.iso", 7, "a/...so"),
        ("dir/名字", 8, "dir/名字"),
        ("dirs/名字", 8, "di...字"),
        ("dir/名字", 6, "d...字"),
        ("abcdef", 3, "..."),
        ("abcdef", 0, "..."),
    ],
)
def test_both_ends_of_a_long_name_are_shown(text: str, room: int, expected: str) -> None:
    assert fitted(text, room) == expected


@pytest.mark.parametrize(
    ("text", "room", "expected"),
    [
        ("abc", 3, "abc"),
        ("abc", 2, "ab"),
        ("名字", 3, "名"),
        ("e\u0301x", 1, "e\u0301"),
        ("a", 0, ""),
    ],
)
def test_a_long_line_is_clipped(text: str, room: int, expected: str) -> None:
    assert truncated(text, room) == expected
