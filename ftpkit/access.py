"""Tokens: who may do what, where, how much, how fast, and until when."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Can(StrEnum):
    """What a token may allow."""

    READ = "read"
    WRITE = "write"
    DELETE = "delete"
    ADMIN = "admin"


EVERYTHING: Final = frozenset(Can)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What the holder of a token, ``user``, may do.

    ``under`` is the directory that is the holder's root; ``quota`` bytes may be stored and
    reserved there. ``rate_bps`` limits each direction over all of its connections, of which
    there are ``connections`` at most, and ``weight`` is its share beside others. It ends at
    ``expires_at``, in seconds since 1970.
    """

    user: str
    can: frozenset[Can] = EVERYTHING
    under: str = ""
    quota: int | None = None
    rate_bps: float | None = None
    weight: float = 1.0
    connections: int | None = None
    expires_at: float | None = None
