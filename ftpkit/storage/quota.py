"""Quotas: space is reserved before anything is stored, then committed or cancelled."""

import threading
from collections.abc import Callable
from typing import Final, Protocol


class Reservation:
    """Bytes of a quota that are reserved until ``commit`` or ``cancel``; further calls do nothing.

    ``on_end`` is called once, with True for commit and False for cancel.
    """

    def __init__(self, on_end: Callable[[bool], None]) -> None:
        self._on_end = on_end
        self._ended = threading.Lock()

    def commit(self) -> None:
        """Count the bytes as stored: a count of the store finds them."""
        self._end(committed=True)

    def cancel(self) -> None:
        """Free the bytes: they are not stored, and will not be."""
        self._end(committed=False)

    def _end(self, *, committed: bool) -> None:
        # Two connections may end it for the same block: one that wrote it, one that took it over.
        if self._ended.acquire(blocking=False):
            self._on_end(committed)


class QuotaScope(Protocol):
    """What one user may still store; names are those of the whole store."""

    def reserve(self, name: str, count: int) -> Reservation:
        """Reserve ``count`` bytes for ``name``; RefusedError if the quota does not allow them.

        It may take seconds: hold no lock that others need.
        """

    def note_deleted(self, name: str) -> None:
        """Note that ``name``, or something in it, was deleted or became smaller."""

    def note_renamed(self, name: str, to: str) -> None:
        """Note that ``name`` was renamed ``to``, and may have replaced a file."""


class Unlimited:
    """The scope of a user without a quota, in a server that counts nothing."""

    def reserve(self, name: str, count: int) -> Reservation:
        return NO_RESERVATION

    def note_deleted(self, name: str) -> None:
        pass

    def note_renamed(self, name: str, to: str) -> None:
        pass


NO_RESERVATION: Final = Reservation(lambda committed: None)
UNLIMITED: Final = Unlimited()
