"""A file on its way up: one ``put`` if it is small, else a row of blocks."""

import contextlib
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from itertools import islice
from typing import Final, Self

from ftpkit.client.connection import Connection, SendBody
from ftpkit.client.digest_cache import DigestCache
from ftpkit.client.retry import OnRetry
from ftpkit.client.udp import UdpTransfer
from ftpkit.errors import (
    Code,
    CorruptDataError,
    FtpkitError,
    LocalFileError,
    ProtocolError,
    RefusedError,
    SourceChangedError,
)
from ftpkit.osapi import files as os_files
from ftpkit.protocol.digest import (
    DIGEST_BYTES,
    digest_of,
    format_digest,
    new_hasher,
    split_digest,
)
from ftpkit.protocol.fields import BLOCK_RECORD, unpack_block_records
from ftpkit.protocol.messages import (
    Abort,
    Begin,
    BeginReply,
    Commit,
    DigestRequest,
    FileReply,
    OkReply,
    Put,
    Request,
    Write,
)
from ftpkit.protocol.udp.packet import MAX_BLOCKS

OnProgress = Callable[[int, int], None]
"""Called with the bytes that have been moved, and the bytes in all."""

SMALL_FILE: Final = 1024 * 1024
BLOCK: Final = 4 * 1024 * 1024
# How far sending runs ahead of the answers: enough to fill a long line.
WINDOW: Final = 16
TRIES: Final = 3

_PIECE: Final = 256 * 1024


class Source:
    """A file that is being sent; it must stay as it was when it was opened."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._check(os.stat(path))
            flags = os.O_RDONLY | os_files.O_NONBLOCK | os_files.O_BINARY | os_files.O_CLOEXEC
            self.fd = os.open(path, flags)
        except OSError as error:
            raise LocalFileError(f"cannot read {path!r}: {error.strerror or error}") from None
        self.status = os.fstat(self.fd)
        self.total = self.status.st_size
        self.mtime = self.status.st_mtime_ns
        self.mode = self.status.st_mode & 0o777
        self._buffer = memoryview(bytearray(_PIECE))

    def read(self, view: memoryview, offset: int) -> None:
        """Fill ``view`` from ``offset``."""
        while view:
            count = self._read(view, offset)
            view, offset = view[count:], offset + count

    def digest(self, offset: int, size: int, algorithm: str) -> str:
        """Return the digest of a range."""
        hasher, session = new_hasher(algorithm), offset + size
        while offset < session:
            count = self._read(self._buffer[: session - offset], offset)
            hasher.update(self._buffer[:count])
            offset += count
        return format_digest(algorithm, hasher.digest())

    def check_unchanged(self) -> None:
        """Raise SourceChangedError if somebody wrote to the file since it was opened."""
        now, then = os.fstat(self.fd), self.status
        if (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns):
            raise SourceChangedError(f"{self.path!r} changed while it was being sent")

    def _read(self, view: memoryview, offset: int) -> int:
        try:
            count = os_files.read_at(self.fd, view, offset)
        except OSError as error:
            raise LocalFileError(f"cannot read {self.path!r}: {error.strerror or error}") from None
        if count == 0:
            raise SourceChangedError(f"{self.path!r} became shorter while it was being sent")
        return count

    def _check(self, status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            raise LocalFileError(f"{self.path!r} is a directory")
        if not stat.S_ISREG(status.st_mode):
            raise LocalFileError(f"{self.path!r} is not a regular file")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)


class Upload:
    """One file on its way to ``name``, over as many connections as it takes.

    ``run`` may be called again with another link after a ConnectionLostError: it goes on
    where the server says that it stands.
    """

    def __init__(
        self,
        source: Source,
        name: str,
        *,
        overwrite: bool,
        memory: str | None,
        on_progress: OnProgress,
        on_retry: OnRetry,
        udp_transfer: UdpTransfer,
    ) -> None:
        self._source, self._name, self._overwrite = source, name, overwrite
        self._on_retry, self._udp_transfer = on_retry, udp_transfer
        self._memory_directory = memory
        self._on_progress = on_progress
        self._moved = 0
        self._sent = False
        self._committing: Commit | None = None

    def run(self, connection: Connection) -> FileReply:
        """Send what is missing, and return what was published."""
        self._moved = 0
        self._on_progress(0, self._source.total)
        as_datagrams = self._udp_transfer.wanted and self._source.total > 0
        # Who may not look could not find out that only the reply to a put was lost.
        if self._source.total <= SMALL_FILE and not as_datagrams and connection.allows("read"):
            published = self._put(connection)
        else:
            published = self._published_before(connection) or self._send_blocks(connection)
        # Headers have no checksum: damage could have changed the name that the server read.
        if (published.name, published.total) != (self._name, self._source.total):
            raise ProtocolError("the server published something else than was sent")
        return published

    # A small file: one request

    def _put(self, connection: Connection) -> FileReply:
        source = self._source
        request = Put(
            name=self._name,
            size=source.total,
            digest=source.digest(0, source.total, connection.algorithm),
            mtime=source.mtime,
            mode=source.mode,
            overwrite=self._overwrite,
        )
        # What was digested is one state of the file; whatever is sent instead of it is refused.
        source.check_unchanged()
        for _ in range(TRIES):
            sent_before, self._sent = self._sent, True
            connection.send(
                request,
                lambda header: connection.stream.send_range(header, source.fd, 0, source.total),
            )
            reply = connection.receive().reply
            if isinstance(reply, RefusedError) and reply.code is Code.EXISTS and sent_before:
                # Perhaps it is ours: only the reply to the first try was lost.
                reply = self._is_already_stored(connection, request) or reply
            if isinstance(reply, FileReply):
                self._count(source.total)
                return reply
            if not isinstance(reply, RefusedError):
                raise ProtocolError("the reply does not fit the request")
            if reply.code is not Code.DIGEST_MISMATCH:
                raise reply
            source.check_unchanged()
        raise CorruptDataError(f"{self._name!r} arrived damaged {TRIES} times in a row")

    def _is_already_stored(self, connection: Connection, request: Put) -> FileReply | None:
        reply = connection.request(DigestRequest(name=self._name), FileReply)
        return reply if reply.content_digest == request.digest else None

    # A large file: a row of blocks

    def _send_blocks(self, connection: Connection) -> FileReply:
        with closing(
            DigestCache(
                self._memory_directory,
                self._source.status,
                block=BLOCK,
                algorithm=connection.algorithm,
            )
        ) as memory:
            for _ in range(TRIES):
                self._moved = 0
                self._committing = self._send_missing(connection, memory)
                try:
                    published = connection.request(self._committing, FileReply)
                except RefusedError as refusal:
                    # What the server's disk has not kept is no longer held, and is sent again.
                    if refusal.code is not Code.INCOMPLETE:
                        raise
                    last = refusal
                else:
                    memory.forget()
                    return published
        raise last

    def _send_missing(self, connection: Connection, memory: DigestCache) -> Commit:
        """Send what the server lacks, and return the request that publishes it."""
        row = BlockUpload(
            connection, self._source, self._name, memory, self._count, overwrite=self._overwrite
        )
        try:
            row.begin()
            if self._udp_transfer.wanted:
                row.transfer_udp(self._udp_transfer, self._on_retry)
            row.send()
            self._source.check_unchanged()
        except SourceChangedError:
            memory.forget()
            row.abort()
            raise
        return row.commit()

    def _published_before(self, connection: Connection) -> FileReply | None:
        """If only the reply to our commit was lost, get it now."""
        if self._committing is None:
            return None
        try:
            return connection.request(self._committing, FileReply)
        except RefusedError as refusal:
            if refusal.code in (Code.NOT_FOUND, Code.INCOMPLETE):
                return None
            raise

    def _count(self, moved: int) -> None:
        self._moved += moved
        self._on_progress(self._moved, self._source.total)


class BlockUpload:
    """The blocks of one upload over one link: which are missing, which are on their way."""

    def __init__(
        self,
        connection: Connection,
        source: Source,
        name: str,
        memory: DigestCache,
        count: Callable[[int], None],
        *,
        overwrite: bool,
    ) -> None:
        self.upload = ""
        self._connection, self._source, self._name, self._overwrite = (
            connection,
            source,
            name,
            overwrite,
        )
        self._memory, self._count = memory, count
        self._counted = 0
        self._held: dict[int, str] = {}
        self._digests: dict[int, str] = {}
        self._again: deque[int] = deque()
        self._damaged: dict[int, int] = {}

    def begin(self) -> None:
        """Open the upload, or continue it: learn which blocks the server holds."""
        source = self._source
        request = Begin(
            name=self._name,
            total=source.total,
            block=BLOCK,
            mtime=source.mtime,
            mode=source.mode,
            overwrite=self._overwrite,
        )
        reply = self._connection.request(request, BeginReply)
        if reply.block != BLOCK:
            raise ProtocolError("the server chose another block size")
        self.upload = reply.upload
        most = -(-source.total // BLOCK) * BLOCK_RECORD.size
        if reply.size % BLOCK_RECORD.size or reply.size > most:
            raise ProtocolError("the server's records are no row of blocks of this file")
        records = unpack_block_records(
            self._connection.stream.read_body(), self._connection.algorithm
        )
        self._held = {offset: digest for offset, _, digest in records}

    def send(self) -> None:
        """Send what is missing at once; what is held, but not remembered here, is compared last.

        So the first new byte leaves without reading again what was sent.
        """
        missing, unsure = self._plan()
        self._count_held(sum(map(self._size, missing)))
        self.write(missing)
        self._write(self._differing(unsure))
        while self._again:
            waiting, self._again = list(self._again), deque()
            self.write(waiting)

    def write(self, offsets: Iterable[int]) -> None:
        """Send the blocks at ``offsets``; what arrives damaged waits for ``send``."""
        self._write(self._digested(offsets))

    def transfer_udp(self, udp_transfer: UdpTransfer, on_retry: OnRetry) -> None:
        """Send what is missing as datagrams, as far as they get."""
        missing = self.missing()
        if not missing:
            return
        self._count_held(sum(missing.values()))
        sizes = dict(islice(missing.items(), MAX_BLOCKS))
        moved = udp_transfer.send(
            self._connection, self.upload, BLOCK, sizes, self.fill, self._count, on_retry
        )
        self._counted += moved
        self.count_arrived(sizes, moved)

    def missing(self) -> dict[int, int]:
        """Return the bytes of each block that is to be sent, by its number."""
        return {offset // BLOCK: self._size(offset) for offset in self._plan()[0]}

    def fill(self, number: int, body: memoryview) -> None:
        """Put the bytes of a block, and its raw digest behind them, into ``body``.

        A block is read once, so what was digested is what leaves, whatever becomes of the file.
        """
        data = body[:-DIGEST_BYTES]
        self._source.read(data, number * BLOCK)
        digest = digest_of(data, self._connection.algorithm)
        self._know(number * BLOCK, digest)
        body[-DIGEST_BYTES:] = split_digest(digest)[1]

    def count_arrived(self, sizes: Mapping[int, int], moved: int) -> None:
        """Learn which of the blocks in ``sizes`` are held, ``moved`` bytes of which arrived."""
        if moved == sum(sizes.values()):
            self._held.update((block * BLOCK, self._digests[block * BLOCK]) for block in sizes)
        else:
            self.begin()

    def commit(self) -> Commit:
        """Return the request that publishes exactly the blocks that we mean."""
        hasher = new_hasher(self._connection.algorithm)
        for _, digest in sorted(self._digests.items()):
            hasher.update(split_digest(digest)[1])
        blocks_digest = format_digest(self._connection.algorithm, hasher.digest())
        return Commit(upload=self.upload, total=self._source.total, blocks_digest=blocks_digest)

    def abort(self) -> None:
        """Throw away on the server what can be of no more use, if it still listens.

        A conversation that broke off within a frame cannot say so: a new one does.
        """
        if not self.upload:
            return
        with contextlib.suppress(FtpkitError):
            if self._connection.usable:
                self._connection.request(Abort(upload=self.upload), OkReply)
                return
            with closing(self._connection.reconnect()) as connection:
                connection.request(Abort(upload=self.upload), OkReply)

    def _plan(self) -> tuple[list[int], list[int]]:
        """Return which blocks are to be sent, and which are held but not remembered here."""
        missing, unsure = [], []
        for offset in range(0, self._source.total, BLOCK):
            held, known = self._held.get(offset), self._memory.get(offset)
            if held is None or known not in (None, held):
                missing.append(offset)
            elif known is None:
                unsure.append(offset)
            else:
                self._digests[offset] = known
        return missing, unsure

    def _count_held(self, missing: int) -> None:
        """Count all but ``missing`` bytes; of what was counted before, the difference."""
        held = self._source.total - missing
        self._count(held - self._counted)
        self._counted = held

    def _know(self, offset: int, digest: str) -> None:
        self._digests[offset] = digest
        self._memory.add(offset, digest)

    def _digested(self, offsets: Iterable[int]) -> Iterator[int]:
        for offset in offsets:
            size = self._size(offset)
            os_files.start_readahead(self._source.fd, offset + size, BLOCK)
            self._know(offset, self._source.digest(offset, size, self._connection.algorithm))
            yield offset

    def _differing(self, offsets: Iterable[int]) -> Iterator[int]:
        for offset in self._digested(offsets):
            differs = self._digests[offset] != self._held[offset]
            # Told also where nothing moves, so that who listens can end it there.
            self._count(-self._size(offset) if differs else 0)
            if differs:
                yield offset

    def _write(self, offsets: Iterable[int]) -> None:
        for answer in self._connection.pipeline(map(self._request, offsets), WINDOW):
            if isinstance(answer.reply, RefusedError) and isinstance(answer.request, Write):
                self._refused(answer.request, answer.reply)

    def _request(self, offset: int) -> tuple[Request, SendBody]:
        size = self._size(offset)
        request = Write(upload=self.upload, offset=offset, size=size, digest=self._digests[offset])

        def send(header: bytes) -> None:
            self._connection.stream.send_range(header, self._source.fd, offset, size, self._count)

        return request, send

    def _refused(self, request: Write, refusal: RefusedError) -> None:
        """Send a damaged block again, a few times; anything else ends the upload."""
        if refusal.code is not Code.DIGEST_MISMATCH:
            raise refusal
        self._source.check_unchanged()
        tries = self._damaged[request.offset] = self._damaged.get(request.offset, 0) + 1
        if tries >= TRIES:
            raise CorruptDataError(f"the block at {request.offset:,} arrived damaged {TRIES} times")
        self._count(-request.size)
        self._again.append(request.offset)

    def _size(self, offset: int) -> int:
        return min(BLOCK, self._source.total - offset)
