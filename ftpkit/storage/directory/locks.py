"""How the processes of one server share a root: each upload is open in one of them at a time."""

from dataclasses import dataclass

from ftpkit.storage.api import UploadLocks


class LocalUploadLocks:
    """The locks of a server with one process."""

    def acquire(self, key: str) -> None:
        pass

    def release(self, key: str) -> None:
        pass


@dataclass(frozen=True, slots=True)
class RootLease:
    """The right to use a root that another process has opened and keeps in order.

    ``lock`` is a descriptor of that process's lock on the root, which holds until the last
    copy is closed; it belongs to the store. ``number`` differs from that of every other lease.
    """

    lock: int
    number: int
    locks: UploadLocks
