"""The limits of a whole server: connections of each user, failed logins and quotas."""

from dataclasses import dataclass
from typing import Protocol

from ftpkit.server.auth.quota import QuotaLedger, UsedBytes
from ftpkit.server.auth.throttle import LoginThrottle
from ftpkit.server.connection_limit import ConnectionLimiter
from ftpkit.storage.quota import NO_RESERVATION, Reservation


class Quotas(Protocol):
    """The bytes that are stored and reserved in each directory."""

    def reserve(self, name: str, count: int, under: str, quota: int | None) -> Reservation:
        """Reserve ``count`` bytes for ``name`` if ``under`` stays within ``quota`` bytes.

        RefusedError with QUOTA_EXCEEDED if it would not, with BUSY if that is not known
        within 3 seconds. Without a quota the bytes are only counted.
        """

    def note_deleted(self, name: str) -> None:
        """Note that ``name``, or something in it, was deleted or became smaller."""

    def note_renamed(self, name: str, to: str) -> None: ...


class SharedLimits(Protocol):
    """The limits of a server as each of its processes uses them."""

    @property
    def quotas(self) -> Quotas: ...

    def acquire(self, user: str, max_connections: int | None, /) -> bool:
        """Count one more connection of ``user``, unless it has ``max_connections``."""

    def release(self, user: str, /) -> None: ...

    def login_failed(self, host: str) -> float:
        """Note a login with an invalid token; return the seconds by which to delay the reply."""


class LocalLimits:
    """The limits of a server, counted in this process; ``used_bytes`` counts the store."""

    def __init__(self, used_bytes: UsedBytes) -> None:
        self.quotas = QuotaLedger(used_bytes)
        self.connections = ConnectionLimiter()
        self.acquire, self.release = self.connections.acquire, self.connections.release
        self.login_failed = LoginThrottle().failed


@dataclass(frozen=True, slots=True)
class AccountQuota:
    """The quota scope of a user who may store ``quota`` bytes in ``under``; None is no limit."""

    quotas: Quotas
    under: str
    quota: int | None

    def reserve(self, name: str, count: int) -> Reservation:
        if not count:
            return NO_RESERVATION
        return self.quotas.reserve(name, count, self.under, self.quota)

    def note_deleted(self, name: str) -> None:
        self.quotas.note_deleted(name)

    def note_renamed(self, name: str, to: str) -> None:
        self.quotas.note_renamed(name, to)
