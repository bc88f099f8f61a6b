import pytest

from ftpkit.cli.output.table import Column, plain, table
from ftpkit.cli.output.units import format_size


def test_numbers_stand_under_each_other_and_text_begins_in_line() -> None:
    columns = [
        Column("way", "way"),
        Column("count", "messages"),
        Column("bytes", "sent", format_size),
        Column("good", "verified"),
    ]
    rows: list[dict[str, object]] = [
        {"way": "udp", "count": 12_345, "bytes": 4_290_000_000, "good": True},
        {"way": "tcp\x1b", "count": 7, "bytes": None, "good": False},
        {"way": "none", "count": None},
    ]
    assert table(columns, rows).splitlines() == [
        "way      messages     sent  verified",
        "udp        12,345  4.29 GB  yes",
        "tcp\\x1b         7        -  no",
        "none            -        -  -",
    ]


def test_wide_characters_take_two_columns() -> None:
    rows = [{"a": "名字", "b": "x"}, {"a": "abcd", "b": "y"}]
    assert table([Column("a", "a"), Column("b", "b")], rows).splitlines() == [
        "a     b",
        "名字  x",
        "abcd  y",
    ]


def test_a_table_without_rows_is_its_heading() -> None:
    assert table([Column("a", "one"), Column("b", "two")], []) == "one  two"


def test_keys_without_a_column_are_not_shown() -> None:
    assert table([Column("a", "a")], [{"a": 1, "b": 2}]) == "a\n1"


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (0, "0"),
        (-1234, "-1,234"),
        (True, "yes"),
        (False, "no"),
        (0.5, "0.5"),
        (12.3456, "12.3"),
        (1234.5678, "1,235"),
        ("two\nlines", "two\\nlines"),
    ],
)
def test_values_are_shown_for_people(value: object, word: str) -> None:
    assert plain(value) == word
