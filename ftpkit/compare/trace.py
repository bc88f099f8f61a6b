"""Traces of uploads: arrival times, sizes and users; generated with a seed, or read from a file."""

import csv
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TextIO

from ftpkit.errors import LocalFileError

# File sizes in bytes follow a bounded Pareto distribution, as on real servers (Crovella and
# Bestavros 1997): most files are small, and a few hold most of the bytes.
SMALLEST: Final = 32 * 1024
LARGEST: Final = 256 * 1024 * 1024
SHAPE: Final = 1.1
USERS: Final = 8
_MAX_SIZE: Final = 2**50


@dataclass(frozen=True, slots=True)
class Arrival:
    """``user`` begins to upload a file of ``size`` bytes, ``at_s`` seconds after the start."""

    at_s: float
    size: int
    user: str


def make_trace(flows: int, *, load: float, bytes_per_s: float, seed: int) -> list[Arrival]:
    """Return Poisson arrivals with a ``load`` relative to ``bytes_per_s``.

    The same seed gives the same sizes and users at every load. The number of files of a user
    follows Zipf's law: the second has half as many as the first.
    """
    chance = random.Random(seed)  # noqa: S311  # a trace is not secret
    numbers = range(1, USERS + 1)
    whose = chance.choices(
        [f"user{number}" for number in numbers], [1 / number for number in numbers], k=flows
    )
    sizes = [_size(chance.random()) for _ in range(flows)]
    pauses = [chance.expovariate(1.0) for _ in range(flows)]
    # Scaled to these files: the sample mean of so heavy a tail differs from its expectation.
    scale = sum(sizes) / (load * bytes_per_s) / sum(pauses)
    at_s, arrivals = 0.0, []
    for pause, size, user in zip(pauses, sizes, whose, strict=True):
        arrivals.append(Arrival(at_s, size, user))
        at_s += pause * scale
    return arrivals


def read_trace(path: str) -> list[Arrival]:
    """Return the arrivals in a file, sorted by time; the first is at 0.

    Each line has ``seconds``, ``bytes`` and ``user``: as a JSON object, or in this order as
    CSV. Raises LocalFileError for a file that cannot be read or is not a trace.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            arrivals = sorted(_arrivals(file, path), key=lambda arrival: arrival.at_s)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LocalFileError(f"cannot read {path!r}: {reason}") from None
    if not arrivals:
        raise LocalFileError(f"{path!r} is not a trace: it is empty")
    start_s = arrivals[0].at_s
    return [Arrival(each.at_s - start_s, each.size, each.user) for each in arrivals]


def load_of(trace: Sequence[Arrival], bytes_per_s: float) -> float:
    """Return the load of a trace relative to ``bytes_per_s``, until its last file could end."""
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
                f"{path!r} is not a trace: line {number} needs seconds, bytes and user"
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
    """Return the size below which a ``share`` of all sizes lies."""
    rest = 1 - share * (1 - (SMALLEST / LARGEST) ** SHAPE)
    return int(SMALLEST * rest ** (-1 / SHAPE))
