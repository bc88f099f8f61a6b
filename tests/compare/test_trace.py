"""Traces: repeatable by seed, and read from files."""

import json
from collections import Counter
from pathlib import Path

import pytest

from ftpkit.compare.trace import LARGEST, SMALLEST, Arrival, load_of, make_trace, read_trace
from ftpkit.errors import LocalFileError

RATE = 12.5e6


def test_a_seed_makes_the_same_trace_at_every_load() -> None:
    half, most = (make_trace(1000, load=load, bytes_per_s=RATE, seed=7) for load in (0.4, 0.8))
    assert half == make_trace(1000, load=0.4, bytes_per_s=RATE, seed=7)
    assert [(each.size, each.user) for each in half] == [(each.size, each.user) for each in most]
    assert [each.at_s for each in half] == pytest.approx([2 * each.at_s for each in most])
    assert half != make_trace(1000, load=0.4, bytes_per_s=RATE, seed=8)


def test_a_trace_asks_for_its_load() -> None:
    assert load_of(make_trace(20_000, load=0.8, bytes_per_s=RATE, seed=1), RATE) == pytest.approx(
        0.8, rel=0.02
    )


def test_most_files_are_small_and_few_have_most_of_the_bytes() -> None:
    sizes = sorted(each.size for each in make_trace(20_000, load=0.8, bytes_per_s=RATE, seed=1))
    assert sizes[0] >= SMALLEST
    assert sizes[-1] <= LARGEST
    assert sizes[len(sizes) // 2] < 2 * SMALLEST
    assert sum(sizes[-len(sizes) // 20 :]) > sum(sizes) / 2


def test_users_differ_in_activity() -> None:
    users = Counter(
        each.user for each in make_trace(20_000, load=0.8, bytes_per_s=RATE, seed=1)
    ).most_common()
    assert [user for user, _ in users] == [f"user{number}" for number in range(1, 9)]
    assert users[0][1] == pytest.approx(2 * users[1][1], rel=0.1)


def test_a_trace_is_sorted_and_starts_at_zero(tmp_path: Path) -> None:
    rows = [{"seconds": 12.5, "bytes": 10, "user": "bob"}, {"seconds": 10, "bytes": 7, "user": "x"}]
    path = tmp_path / "trace"
    path.write_text("\n\n".join(map(json.dumps, rows)))
    expected = [Arrival(0.0, 7, "x"), Arrival(2.5, 10, "bob")]
    assert read_trace(str(path)) == expected
    path.write_text('12.5,10,bob\r\n10,7,"x"\r\n')
    assert read_trace(str(path)) == expected


def test_the_load_of_a_burst() -> None:
    assert load_of([Arrival(0.0, 100, "a")] * 3, RATE) == pytest.approx(3)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"1,2",
        b"1,2,a,b",
        b"seconds,bytes,user",
        b"1,0,a",
        b"1,-5,a",
        b"-1,5,a",
        b"nan,5,a",
        b"inf,5,a",
        b"1,1e400,a",
        b"1,99999999999999999999,a",
        b"{}",
        b"{",
        b'{"seconds": 1, "bytes": null, "user": "a"}',
        b'{"seconds": 1, "bytes": Infinity, "user": "a"}',
        b'{"seconds": [], "bytes": 1, "user": "a"}',
        b'{"a":' * 100_000,
        b"1,\xff,a",
        b"1,\0,a",
        b'1,2,"' + b"a" * 200_000,
    ],
)
def test_an_invalid_trace_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trace"
    path.write_bytes(content)
    with pytest.raises(LocalFileError):
        read_trace(str(path))


def test_a_missing_trace_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LocalFileError, match="No such file"):
        read_trace(str(tmp_path / "nothing"))
