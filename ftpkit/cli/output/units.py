"""Parse and format sizes, rates and durations."""

import re
from fractions import Fraction
from typing import Final

FACTORS: Final[dict[str, int | Fraction]] = {
    prefix + suffix: base**power
    for suffix, base in (("", 1000), ("i", 1024))
    for power, prefix in enumerate("kmgt", start=1)
} | {"": 1}
SECONDS: Final[dict[str, int | Fraction]] = {
    "": 1,
    "ms": Fraction(1, 1000),
    "s": 1,
    "m": 60,
    "h": 3600,
    "d": 86400,
}

# So few digits that every result fits into a float and a C integer.
_QUANTITY: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?) ?([A-Za-z]*)")


def parse_size(text: str) -> int:
    """Parse a number of bytes: ``20M`` is 20,000,000 and ``20Mi`` 20 * 2^20.

    A ``B`` may follow, but not a ``b``, which means bits. Raises ValueError.
    """
    number, unit = _split(text)
    return int(number * _factor(unit.removesuffix("B").lower(), FACTORS))


def parse_rate(text: str) -> int:
    """Parse bytes per second, a size or like ``20M/s``. Raises ValueError."""
    return parse_size(text.removesuffix("/s"))


def parse_duration(text: str) -> float:
    """Parse a duration, in seconds: ``500ms``, ``30`` or ``30s``, ``10m``, ``2h``, ``7d``.

    Raises ValueError.
    """
    number, unit = _split(text)
    return float(number * _factor(unit, SECONDS))


def format_size(count: float) -> str:
    """Format a number of bytes: ``512 B``, ``4.29 GB``."""
    if count < 999.5:
        return f"{count:.0f} B"
    for prefix in "kMGTPE":
        count /= 1000
        if count < 999.5 or prefix == "E":
            break
    digits = 2 if count < 9.995 else 1 if count < 99.95 else 0
    return f"{count:.{digits}f} {prefix}B"


def format_rate(bytes_per_s: float) -> str:
    """Format a rate: ``252 MB/s``."""
    return f"{format_size(bytes_per_s)}/s"


def format_bit_rate(bits_per_s: float) -> str:
    """Format a rate in bits: ``92.3 Mbit/s``."""
    return f"{format_size(bits_per_s).removesuffix('B')}bit/s"


def format_duration(seconds: float) -> str:
    """Format a duration: ``12 ms``, ``3.9 s``, ``2 min 05 s``, ``1 h 02 min``."""
    if not seconds:
        return "0 s"
    if seconds < 0.9995:
        return f"{seconds * 1000:.{1 if seconds < 0.00995 else 0}f} ms"
    if seconds < 59.5:
        return f"{seconds:.{1 if seconds < 9.95 else 0}f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60:,} h {minutes % 60:02} min"


def _split(text: str) -> tuple[Fraction, str]:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a number with a unit")
    return Fraction(match[1]), match[2]


def _factor(unit: str, units: dict[str, int | Fraction]) -> int | Fraction:
    if unit not in units:
        raise ValueError(f"{unit!r} is not a unit")
    return units[unit]
