import pytest

from ftpkit.cli.output.units import (
    format_bit_rate,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("512", 512),
        ("20M", 20_000_000),
        ("20Mi", 20 * 2**20),
        ("20 MiB", 20 * 2**20),
        ("1.5k", 1500),
        ("1Ki", 1024),
        ("3G", 3 * 10**9),
        ("3Gi", 3 * 2**30),
        ("2T", 2 * 10**12),
        ("2TiB", 2 * 2**40),
        ("0.1", 0),
    ],
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize(
    "text", ["", "M", "-1", "20Mb", "20 megs", "1e3", "nan", "1..2", "1_0", "٣", "9" * 13, "1P"]
)
def test_what_is_no_size_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("30s", 30), ("500ms", 0.5), ("10m", 600), ("1.5h", 5400), ("7d", 604_800)],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "10M", "1w", "1m30s"])
def test_what_is_no_duration_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1.00 kB"),
        (1000, "1.00 kB"),
        (9_994, "9.99 kB"),
        (99_940, "99.9 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (4_294_967_296, "4.29 GB"),
        (2**63 - 1, "9.22 EB"),
        (10**24, "1000000 EB"),
    ],
)
def test_sizes_are_shown_with_three_digits(count: float, text: str) -> None:
    assert format_size(count) == text


def test_bit_rates() -> None:
    shown = [format_bit_rate(bits) for bits in (0, 92_340_000, 1.5e9)]
    assert shown == ["0 bit/s", "92.3 Mbit/s", "1.50 Gbit/s"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.0012, "1.2 ms"),
        (0.012, "12 ms"),
        (0.9999, "1.0 s"),
        (3.94, "3.9 s"),
        (30.0, "30 s"),
        (59.7, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3725, "1 h 02 min"),
        (4_000_000, "1,111 h 06 min"),
    ],
)
def test_durations_are_shown_briefly(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
