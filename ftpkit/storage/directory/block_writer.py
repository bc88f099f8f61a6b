"""One block on its way into an upload: verified while it arrives, held when it is whole."""

import threading
from typing import Protocol

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.digest import Hasher, format_digest, split_digest
from ftpkit.storage.quota import NO_RESERVATION, Reservation


class Owner(Protocol):
    """The upload that a block belongs to."""

    def put(self, view: memoryview, offset: int) -> None:
        """Write bytes of a block into the staged file."""

    def hold(self, writer: "BlockFileWriter") -> None:
        """Record a block that arrived whole and matched."""

    def leave(self, writer: "BlockFileWriter") -> None:
        """Let go of a block that was not finished."""


class BlockFileWriter:
    """One block on its way: verified while it arrives, held when it is whole."""

    def __init__(
        self,
        owner: Owner,
        offset: int,
        size: int,
        digest: str,
        hasher: Hasher,
        *,
        whole: Hasher | None,
        keep: bool,
        reservation: Reservation = NO_RESERVATION,
    ) -> None:
        self.offset, self.size, self.digest = offset, size, digest
        self.whole, self.keep, self.reservation = whole, keep, reservation
        self._owner = owner
        self._hasher = hasher
        self._at = offset
        self._lock = threading.Lock()
        self._revoked = False

    def write(self, view: memoryview) -> None:
        """Take the next bytes; a block that is held already is only compared."""
        self._hasher.update(view)
        if self.whole is not None:
            self.whole.update(view)
        if self.keep:
            with self._lock:
                if self._revoked:
                    raise upload_taken_over()
                self._owner.put(view, self._at)
        self._at += len(view)

    def finish(self) -> None:
        """Hold the block, or refuse it."""
        algorithm = split_digest(self.digest)[0]
        if format_digest(algorithm, self._hasher.digest()) != self.digest:
            raise RefusedError(
                Code.DIGEST_MISMATCH, f"the block at {self.offset} does not match its digest"
            )
        self._owner.hold(self)

    def release(self) -> None:
        """Let go of the block."""
        self._owner.leave(self)
        self.reservation.cancel()

    def revoke(self) -> None:
        """Make sure that not one more byte of this writer reaches the file."""
        with self._lock:
            self._revoked = True
        self.reservation.cancel()


def upload_taken_over() -> RefusedError:
    """Return the refusal for a writer that lost its block to a newer one."""
    return RefusedError(Code.BUSY, "another connection writes this block now")
