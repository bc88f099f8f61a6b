"""Room for what is stored: taken before the first byte, given back where nothing came of it."""

from dataclasses import dataclass
from typing import Final, Protocol


class Reservation(Protocol):
    """Room for something that is on its way to the disk; only the first call has an effect."""

    def commit(self) -> None:
        """Note that it stands on the disk, where a count finds it."""

    def cancel(self) -> None:
        """Note that it does not stand there, and never will."""


class QuotaScope(Protocol):
    """What somebody may still store. Names are those of the store."""

    def reserve(self, name: str, count: int) -> Reservation:
        """Take room for ``count`` bytes under ``name``; RefusedError says that there is not enough.

        It may take seconds: hold no lock that others need.
        """

    def freed(self, name: str) -> None:
        """Note that something is gone, or smaller: ``name``, or what is in it."""

    def moved(self, name: str, to: str) -> None:
        """Note that what stood under ``name`` stands under ``to``, perhaps in place of another."""


@dataclass(frozen=True, slots=True)
class NoReservation:
    """Room that was not needed."""

    def commit(self) -> None:
        """Keep nothing."""

    def cancel(self) -> None:
        """Give nothing back."""


@dataclass(frozen=True, slots=True)
class Unlimited:
    """The room of who may fill the disk."""

    def reserve(self, name: str, count: int) -> Reservation:
        """Take what is there for everybody."""
        return NO_RESERVATION

    def freed(self, name: str) -> None:
        """Have no more than before."""

    def moved(self, name: str, to: str) -> None:
        """Have no more than before."""


NO_RESERVATION: Final = NoReservation()
UNLIMITED: Final = Unlimited()
