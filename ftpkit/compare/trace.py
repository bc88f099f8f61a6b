"""Traces: which files come when, and whose they are; made by chance with a seed, or read."""

import csv
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TextIO

from ftpkit.errors import LocalFileError

# Sizes are of a bounded Pareto distribution, as those of files on servers are (Crovella and
# Bestavros 1997): most are small, and a few have most of the bytes.
SMALLEST: Final = 32 * 1024
LARGEST: Final = 256 * 1024 * 1024
SHAPE: Final = 1.1
USERS: Final = 8
_MAX_SIZE: Final = 2**50


@dataclass(frozen=True, slots=True)
class Arrival:
    """A file of ``size`` bytes that ``user`` begins to upload at a time."""

    at_s: float
    size: int
    user: str


def make_trace(flows: int, *, load: float, bytes_per_s: float, seed: int) -> list[Arrival]:
    """Return Poisson arrivals that ask for a share ``load`` of ``bytes_per_s`` bytes a second.

    The same seed gives the same sizes and users at every load, closer together or further
    apart. Users are busy after Zipf: the second has half as many files as the first.
    """
    chance = random.Random(seed)  # noqa: S311 - a trace is no secret
    numbers = range(1, USERS + 1)
    whose = chance.choices(
        [f"user{number}" for number in numbers], [1 / number for number in numbers], k=flows
    )
    sizes = [_size(chance.random()) for _ in range(flows)]
    pauses = [chance.expovariate(1.0) for _ in range(flows)]
    # The load is that of these files: the mean of so heavy a tail is seldom met by chance.
    scale = sum(sizes) / (load * bytes_per_s) / sum(pauses)
    at_s, arrivals = 0.0, []
    for pause, size, user in zip(pauses, sizes, whose, strict=True):
        arrivals.append(Arrival(at_s, size, user))
        at_s += pause * scale
    return arrivals


def read_trace(path: str) -> list[Arrival]:
    """Return the arrivals in a file, in the order of time: ``seconds``, ``bytes`` and ``user``.

    Each line is a JSON object with these keys, or has the three in this order with commas
    between (CSV). The first arrival is at 0. Raises LocalFileError for what is no trace.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            arrivals = sorted(_arrivals(file, path), key=lambda arrival: arrival.at_s)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LocalFileError(f"cannot read {path!r}: {reason}") from None
    if not arrivals:
        raise LocalFileError(f"{path!r} is no trace: it is empty")
    start_s = arrivals[0].at_s
    return [Arrival(each.at_s - start_s, each.size, each.user) for each in arrivals]


def load_of(trace: Sequence[Arrival], bytes_per_s: float) -> float:
    """Return the share of ``bytes_per_s`` that a trace asks for, until its last file could end."""
    alone_s = sum(each.size for each in trace) / bytes_per_s
    return alone_s / (trace[-1].at_s + trace[-1].size / bytes_per_s)


def _arrivals(file: TextIO, path: str) -> Iterator[Arrival]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            yield _arrival(line)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError, csv.Error):
            raise LocalFileError(
                f"{path!r} is no trace: line {number} has no seconds, bytes and user"
            ) from None


def _arrival(line: str) -> Arrival:
    if line.lstrip().startswith("{"):
        values = json.loads(line)
        seconds, size, user = values["seconds"], values["bytes"], values["user"]
    else:
        [[seconds, size, user]] = csv.reader([line.strip()])
    arrival = Arrival(float(seconds), int(size), str(user))
    if not (0 <= arrival.at_s < math.inf and 0 < arrival.size <= _MAX_SIZE):
        raise ValueError(line)
    return arrival


def _size(share: float) -> int:
    """Return the size below which a ``share`` of all sizes are."""
    rest = 1 - share * (1 - (SMALLEST / LARGEST) ** SHAPE)
    return int(SMALLEST * rest ** (-1 / SHAPE))
