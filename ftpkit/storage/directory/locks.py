"""How the processes of one server share a root: each upload is open in one of them at a time."""

from dataclasses import dataclass
from typing import Protocol


class UploadLocks(Protocol):
    """Knows which process of this server has which upload."""

    def claim(self, key: str) -> None:
        """Have an upload to ourselves until ``give_up``; WrongWorkerError says who has it."""

    def give_up(self, key: str) -> None:
        """Let others have an upload again."""


class LocalUploadLocks:
    """The claims of the only process: it has everything."""

    def claim(self, key: str) -> None:
        """Have an upload, as ever."""

    def give_up(self, key: str) -> None:
        """Go on having it."""


@dataclass(frozen=True, slots=True)
class RootLease:
    """A place in a root that another process has opened, and keeps tidy, for all.

    ``lock`` is a descriptor of that process's lock on the root, which is held until the
    last one is closed; it belongs to who is given it. ``number`` is not that of another place.
    """

    lock: int
    number: int
    locks: UploadLocks
