"""An upload: one ``put`` for a small file, blocks for any other."""

import contextlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from ftpkit.client.connection import Connection, SendBody, expect
from ftpkit.client.digest_cache import DigestCache
from ftpkit.client.retry import OnRetry
from ftpkit.client.transfer.blocks import (
    BLOCK,
    TRIES,
    BlockTransfer,
    OnProgress,
    damaged_error,
    repeat_refused,
)
from ftpkit.client.transfer.source import Source
from ftpkit.client.transfer.udp import UdpTransfer
from ftpkit.errors import Code, FtpkitError, ProtocolError, RefusedError, SourceChangedError
from ftpkit.osapi import files as os_files
from ftpkit.protocol import messages as m
from ftpkit.protocol.digest import DIGEST_BYTES, digest_of, format_digest, new_hasher, split_digest
from ftpkit.protocol.fields import BLOCK_RECORD, unpack_block_records

SMALL_FILE: Final = 1024 * 1024
# Blocks sent ahead of their replies: enough to fill a path with a high bandwidth-delay product.
UPLOAD_WINDOW: Final = 16


@dataclass(slots=True)
class Upload:
    """The upload of one file as ``name``.

    After a ConnectionLostError ``run`` may be called again with another connection: it sends
    only the blocks that the server does not hold.
    """

    source: Source
    name: str
    overwrite: bool
    digest_cache: str | None
    on_progress: OnProgress
    on_retry: OnRetry
    udp_transfer: UdpTransfer
    _put_sent: bool = field(default=False, init=False)
    _put_job: str | None = field(default=None, init=False)
    _commit: m.Commit | None = field(default=None, init=False)

    def run(self, connection: Connection) -> m.FileReply:
        """Send what is missing, and return what was published."""
        total = self.source.total
        udp = self.udp_transfer.enabled and total > 0
        # Without permission to read, a put whose reply was lost could not be recognized.
        if total <= SMALL_FILE and not udp and connection.allows("read"):
            published = self._put(connection)
        else:
            published = self._repeat_commit(connection) or self._send_blocks(connection)
        # Headers have no checksum: the server may have read another name than was sent.
        if (published.name, published.total) != (self.name, total):
            raise ProtocolError("the server published a file of another name or size than was sent")
        return published

    def _put(self, connection: Connection) -> m.FileReply:
        source = self.source
        self.on_progress(0, source.total)
        failure: FtpkitError
        for _ in range(TRIES):
            # The server refuses any content but that which this digest was computed from.
            request = m.Put(
                name=self.name,
                size=source.total,
                digest=source.digest(0, source.total, connection.algorithm),
                mtime=source.mtime,
                mode=source.mode,
                overwrite=self.overwrite,
            )
            if source.was_touched():
                failure = source.changed_error()
                continue
            failure = damaged_error(repr(self.name))
            sent_before, wait_sent = self._put_sent, self._put_job is not None
            self._put_sent = True
            reply = self._put_reply(connection, request)
            if isinstance(reply, RefusedError) and reply.code is Code.NOT_FOUND and wait_sent:
                continue  # the server was restarted, or it is another worker that answers
            if isinstance(reply, RefusedError) and reply.code is Code.EXISTS and sent_before:
                # The file may be ours, and only the reply to an earlier put was lost.
                reply = self._stored(connection, request) or reply
            if not isinstance(reply, RefusedError) or reply.code is not Code.DIGEST_MISMATCH:
                published = expect(reply, m.FileReply)
                self.on_progress(source.total, source.total)
                return published
            source.check_unchanged()
        raise failure

    def _put_reply(self, connection: Connection, request: m.Put) -> m.FileReply | RefusedError:
        """Send the file, unless the server has it and its reply is pending; return the reply."""
        source = self.source
        if self._put_job is None:
            connection.send(
                request,
                lambda header: connection.stream.send_range(header, source.fd, 0, source.total),
            )
            reply = connection.receive().reply
            if isinstance(reply, m.FileReply | RefusedError):
                return reply
            if not isinstance(reply, m.Pending) or reply.job is None:
                raise ProtocolError("the reply does not match the request")
            self._put_job = reply.job
        try:
            published = connection.request(m.Wait(job=self._put_job), m.FileReply)
        except RefusedError as refusal:
            self._put_job = None
            return refusal
        return published

    def _stored(self, connection: Connection, request: m.Put) -> m.FileReply | None:
        """Return what is stored under the name if it has the content of ``request``."""
        reply = connection.request(m.DigestRequest(name=self.name), m.FileReply)
        return reply if reply.content_digest == request.digest else None

    def _send_blocks(self, connection: Connection) -> m.FileReply:
        for _ in range(TRIES):
            status, algorithm = self.source.status, connection.algorithm
            cache = DigestCache(self.digest_cache, status, block=BLOCK, algorithm=algorithm)
            with closing(cache):
                # If the server's disk lost blocks, the server no longer holds these.
                send_missing = partial(self._send_missing, cache)
                published = repeat_refused(connection, Code.INCOMPLETE, send_missing)
                cache.clear()
            if published is not None:
                return published
        raise self.source.changed_error()

    def _send_missing(self, cache: DigestCache, connection: Connection) -> m.FileReply | None:
        """Send the blocks that the server does not hold, and publish the upload.

        Return None if the file was touched meanwhile: then all blocks must be compared.
        """
        blocks = BlockUpload(
            connection, self.source, self.name, cache, self.on_progress, overwrite=self.overwrite
        )
        try:
            blocks.begin()
            if self.udp_transfer.enabled:
                blocks.send_udp(self.udp_transfer, self.on_retry)
            blocks.send()
            if self.source.was_touched():
                return None
        except SourceChangedError:
            cache.clear()
            blocks.abort()
            raise
        self._commit = blocks.commit()
        return connection.request(self._commit, m.FileReply)

    def _repeat_commit(self, connection: Connection) -> m.FileReply | None:
        """Ask again for a reply to ``commit`` that may have been lost."""
        if self._commit is None:
            return None
        try:
            return connection.request(self._commit, m.FileReply)
        except RefusedError as refusal:
            if refusal.code in (Code.NOT_FOUND, Code.INCOMPLETE):
                return None
            raise


class BlockUpload:
    """The blocks of one upload over one connection."""

    def __init__(
        self,
        connection: Connection,
        source: Source,
        name: str,
        cache: DigestCache,
        on_progress: OnProgress,
        *,
        overwrite: bool,
    ) -> None:
        self.upload = ""
        self._connection, self._source, self._cache = connection, source, cache
        self._begin = m.Begin(
            name=name,
            total=source.total,
            block=BLOCK,
            mtime=source.mtime,
            mode=source.mode,
            overwrite=overwrite,
        )
        self._blocks = BlockTransfer(connection, source.total, UPLOAD_WINDOW, on_progress)
        self._held: dict[int, str] = {}
        self._digests: dict[int, str] = {}

    def begin(self) -> None:
        """Begin the upload or continue it; learn which blocks the server holds."""
        reply = self._connection.request(self._begin, m.BeginReply)
        if reply.block != BLOCK:
            raise ProtocolError("invalid begin reply: another block size than was requested")
        self.upload = reply.upload
        record_bytes = len(self._blocks.offsets) * BLOCK_RECORD.size
        if reply.size % BLOCK_RECORD.size or reply.size > record_bytes:
            raise ProtocolError("invalid begin reply: its records are not blocks of this file")
        body = self._connection.stream.read_body()
        records = unpack_block_records(body, self._connection.algorithm)
        self._held = {offset: digest for offset, _, digest in records}

    def send(self) -> None:
        """Send the missing blocks, then compare the held ones that the digest cache lacks.

        In this order the first byte leaves before blocks that were sent earlier are read again.
        """
        missing, unverified = self._plan()
        self._blocks.count_missing(missing)
        self.write(missing)
        self.write(self._differing(unverified))

    def write(self, offsets: Iterable[int]) -> None:
        self._blocks.run(offsets, self._request, self._finish)

    def send_udp(self, udp_transfer: UdpTransfer, on_retry: OnRetry) -> None:
        """Send the missing blocks as datagrams, as many as arrive."""
        missing = self._plan()[0]
        if not missing:
            return
        # Imported here: only a transfer over UDP needs it.
        from ftpkit.client.transfer.udp_session import send_blocks

        self._blocks.count_missing(missing)
        connection, sizes = self._connection, self._blocks.sizes(missing)
        send = partial(send_blocks, connection, self.upload, sizes, self.fill, self._blocks.count)
        self.count_arrived(sizes, udp_transfer.run(connection, send, on_retry))

    def missing(self) -> dict[int, int]:
        """Return the bytes of each block that must be sent, by its number."""
        return self._blocks.sizes(self._plan()[0])

    def fill(self, number: int, body: memoryview) -> None:
        """Read a block, once, into ``body``, and put the raw digest of what was read behind it."""
        data = body[:-DIGEST_BYTES]
        self._source.read(data, number * BLOCK)
        digest = digest_of(data, self._connection.algorithm)
        self._set_digest(number * BLOCK, digest)
        body[-DIGEST_BYTES:] = split_digest(digest)[1]

    def count_arrived(self, sizes: dict[int, int], moved: int) -> None:
        """Update which blocks the server holds, after ``moved`` bytes of ``sizes`` arrived."""
        if moved == sum(sizes.values()):
            self._held.update((block * BLOCK, self._digests[block * BLOCK]) for block in sizes)
        else:
            self.begin()

    def commit(self) -> m.Commit:
        """Return the request that publishes exactly the blocks of the source."""
        hasher = new_hasher(self._connection.algorithm)
        for _, digest in sorted(self._digests.items()):
            hasher.update(split_digest(digest)[1])
        blocks_digest = format_digest(self._connection.algorithm, hasher.digest())
        return m.Commit(upload=self.upload, total=self._source.total, blocks_digest=blocks_digest)

    def abort(self) -> None:
        """Have the server discard the upload, over a new connection if this one cannot be used."""
        if not self.upload:
            return
        with contextlib.suppress(FtpkitError):
            if not self._connection.usable:
                self._connection.reconnect()
            self._connection.request(m.Abort(upload=self.upload), m.OkReply)

    def _plan(self) -> tuple[list[int], list[int]]:
        missing, unverified = [], []
        for offset in self._blocks.offsets:
            held, cached = self._held.get(offset), self._cache.get(offset)
            if held is None or cached not in (None, held):
                missing.append(offset)
            elif cached is None:
                unverified.append(offset)
            else:
                self._digests[offset] = cached
        return missing, unverified

    def _set_digest(self, offset: int, digest: str) -> None:
        self._digests[offset] = digest
        self._cache.add(offset, digest)

    def _read_digest(self, offset: int) -> str:
        size = self._blocks.size(offset)
        os_files.start_readahead(self._source.fd, offset + size, BLOCK)
        digest = self._source.digest(offset, size, self._connection.algorithm)
        self._set_digest(offset, digest)
        return digest

    def _differing(self, offsets: Iterable[int]) -> Iterator[int]:
        for offset in offsets:
            differs = self._read_digest(offset) != self._held[offset]
            # Called also where nothing changes: a transfer is cancelled where it counts.
            self._blocks.count(-self._blocks.size(offset) if differs else 0)
            if differs:
                yield offset

    def _request(self, offset: int) -> tuple[m.Write, SendBody]:
        size = self._blocks.size(offset)
        digest = self._digests.get(offset) or self._read_digest(offset)
        request = m.Write(upload=self.upload, offset=offset, size=size, digest=digest)

        def send(header: bytes) -> None:
            self._connection.stream.send_range(
                header, self._source.fd, offset, size, self._blocks.count
            )

        return request, send

    def _finish(self, offset: int, reply: object) -> bool:
        if not isinstance(reply, RefusedError):
            return True
        if reply.code is not Code.DIGEST_MISMATCH:
            raise reply
        self._source.check_unchanged()
        del self._digests[offset]  # it is computed again: it may be what is wrong
        return False
