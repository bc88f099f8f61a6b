"""What all stores do alike with the blocks of an upload: check, verify, copy from a basis."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.digest import digest_of, format_digest, new_hasher, split_digest
from ftpkit.protocol.frame import MAX_SIZE
from ftpkit.storage.api import BlockRecord, Progress, Reader


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """The blocks of a file of ``total`` bytes (None: unknown), each of ``block`` bytes at most."""

    block: int
    total: int | None

    def fits(self, offset: int, size: int) -> bool:
        if offset < 0 or offset % self.block:
            return False
        if self.total is None:
            return 0 < size <= self.block and offset + size <= MAX_SIZE
        return 0 < size == min(self.block, self.total - offset)

    def check(self, offset: int, size: int) -> None:
        """Raise RefusedError ``bad-request`` unless the block fits."""
        if not self.fits(offset, size):
            raise RefusedError(
                Code.BAD_REQUEST,
                f"{size} bytes at offset {offset} are not a block of this upload: its blocks have"
                f" {self.block} bytes, and only the last may be shorter",
            )

    def missing(
        self, total: int, held: Mapping[int, BlockRecord], offered: Mapping[int, BlockRecord]
    ) -> list[BlockRecord]:
        """Return the blocks of a file of ``total`` bytes that are offered, but not held.

        RefusedError ``incomplete``: some are neither.
        """
        if self.total is not None and total != self.total:
            raise RefusedError(
                Code.BAD_REQUEST, f"the upload was begun with {self.total} bytes, not {total}"
            )
        # Counting comes first: a declared length alone must not cost work.
        if len(held) + len(offered) < -(-total // self.block):
            raise RefusedError(Code.INCOMPLETE, "the upload is not complete: blocks are missing")
        missing, absent = list[BlockRecord](), 0
        for offset in range(0, total, self.block):
            length = min(self.block, total - offset)
            if not _has(held, offset, length):
                if _has(offered, offset, length):
                    missing.append(offered[offset])
                else:
                    absent += 1
        beyond = any(offset >= total for offset in held)
        if absent or beyond:
            what = "it has blocks beyond its end" if beyond else f"{absent} blocks are missing"
            raise RefusedError(Code.INCOMPLETE, f"the upload is not complete: {what}")
        return missing


def _has(blocks: Mapping[int, BlockRecord], offset: int, length: int) -> bool:
    return offset in blocks and blocks[offset].length == length


class Basis:
    """A file whose blocks an upload may copy instead of receiving them."""

    def __init__(self, reader: Reader, grid: BlockGrid, algorithm: str, progress: Progress) -> None:
        self._reader, total = reader, reader.info.total
        self.blocks: dict[int, BlockRecord] = {}
        buffer = memoryview(bytearray(grid.block))
        for offset in range(0, total, grid.block):
            piece = buffer[: reader.read_into(buffer[: total - offset], offset)]
            # The last block of a shorter file is not a block of this one.
            if grid.fits(offset, len(piece)):
                digest = digest_of(piece, algorithm)
                self.blocks[offset] = BlockRecord(offset, len(piece), digest)
            progress(offset + len(piece), total)

    def read(self, block: BlockRecord) -> memoryview:
        """Return the bytes of ``block``; RefusedError ``changed`` if they are not as offered."""
        piece = memoryview(bytearray(block.length))
        got = self._reader.read_into(piece, block.offset)
        if digest_of(piece[:got], split_digest(block.digest)[0]) != block.digest:
            raise RefusedError(Code.CHANGED, "the existing file was changed during the upload")
        return piece

    def close(self) -> None:
        self._reader.__exit__()


def no_such_upload() -> RefusedError:
    """Return the refusal for an upload that is unknown, ended, or another user's."""
    return RefusedError(Code.NOT_FOUND, "there is no such unfinished upload")


def check_blocks_digest(digests: Iterable[str], expected: str | None) -> None:
    """Raise ``digest-mismatch`` unless ``expected`` is the digest of the blocks' raw digests."""
    if expected is None:
        return
    algorithm = split_digest(expected)[0]
    hasher = new_hasher(algorithm)
    for digest in digests:
        hasher.update(split_digest(digest)[1])
    if format_digest(algorithm, hasher.digest()) != expected:
        raise RefusedError(
            Code.DIGEST_MISMATCH, "blocks differ from those of the sender: send the file again"
        )


def check_content_digest(actual: str, expected: str | None) -> None:
    """Raise ``digest-mismatch`` unless ``expected``, if given, is the digest of the file."""
    if expected not in (None, actual):
        raise RefusedError(
            Code.DIGEST_MISMATCH, f"the file has the digest {actual}, not {expected}"
        )
