"""A download: blocks of one version of a file, staged beside the target until all have arrived."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from ftpkit.client.connection import Connection, expect
from ftpkit.client.retry import OnRetry
from ftpkit.client.transfer.blocks import BLOCK, BlockTransfer, OnProgress, repeat_refused
from ftpkit.client.transfer.target import DownloadTarget
from ftpkit.client.transfer.udp import UdpTransfer
from ftpkit.errors import Code, CorruptDataError, ProtocolError, RefusedError
from ftpkit.protocol.digest import digest_of, format_digest
from ftpkit.protocol.messages import FileReply, Get, GetReply, Stat, StatReply
from ftpkit.storage.api import Upload, UploadSpec, hold_block

DOWNLOAD_WINDOW: Final = 4

_PIECE: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Download:
    """The download of the file ``name`` to ``target``.

    After a ConnectionLostError ``run`` may be called again with another connection: it fetches
    only the missing blocks if the file is still the same. ``server`` names the server in the
    identity of what is staged.
    """

    name: str
    server: str
    target: DownloadTarget
    on_progress: OnProgress
    on_retry: OnRetry
    udp_transfer: UdpTransfer

    def run(self, connection: Connection) -> FileReply:
        """Fetch what is missing and publish it; return what was downloaded."""
        # If the file was replaced, start again with its new version.
        return repeat_refused(connection, Code.CHANGED, self._fetch)

    def _fetch(self, connection: Connection) -> FileReply:
        first = self._request_first(connection)
        if first.name != self.name:
            raise ProtocolError("the reply is about another file")
        total = first.total
        identity = digest_of(repr((self.server, self.name, first.version, total)).encode())
        spec = UploadSpec(name=self.name, total=total, mtime=first.mtime, mode=first.mode)
        upload = self.target.stage(identity, spec)
        blocks = BlockDownload(connection, upload, first, self.target, self.on_progress)
        if self.udp_transfer.enabled:
            blocks.fetch_udp(self.udp_transfer, self.on_retry)
        blocks.fetch()
        with self.target.errors():
            try:
                info = upload.commit(total, first.content_digest, None, lambda done, total: None)
            except RefusedError as refusal:
                if refusal.code is not Code.DIGEST_MISMATCH:
                    raise
                self.target.drop()
                raise CorruptDataError(
                    f"{self.name!r} is damaged on the server: its content does not match"
                    " the stored digest. Upload it again"
                ) from None
        return FileReply(
            name=self.name, total=total, version=first.version, content_digest=info.content_digest
        )

    def _request_first(self, connection: Connection) -> GetReply | StatReply:
        """Ask for the first block, or for the metadata alone if blocks are staged already."""
        if self.target.has_blocks or self.udp_transfer.enabled:
            reply = connection.request(Stat(name=self.name), StatReply)
            if reply.kind == "dir":
                raise RefusedError(Code.IS_A_DIRECTORY, f"{self.name!r} is a directory")
            return reply
        request = Get(name=self.name, offset=0, length=BLOCK, digest=connection.algorithm)
        return connection.request(request, GetReply)


class BlockDownload:
    """The blocks of one download over one connection."""

    def __init__(
        self,
        connection: Connection,
        upload: Upload,
        file: GetReply | StatReply,
        target: DownloadTarget,
        on_progress: OnProgress,
    ) -> None:
        self._connection, self._upload, self._file = connection, upload, file
        self._target, self._buffer = target, memoryview(bytearray(_PIECE))
        self._blocks = BlockTransfer(connection, file.total, DOWNLOAD_WINDOW, on_progress)
        self._held = {record.offset for record in upload.records(connection.algorithm)}
        self._blocks.count_missing(self._missing())

    def fetch(self) -> None:
        # The first block may have come with the file's metadata.
        if isinstance(self._file, GetReply) and not self._finish(0, self._file):
            self._blocks.count_damaged(0)
        self._blocks.run(self._missing(), self._request, self._finish)

    def fetch_udp(self, udp_transfer: UdpTransfer, on_retry: OnRetry) -> None:
        """Fetch the missing blocks as datagrams, as many as arrive."""
        sizes = self._blocks.sizes(self._missing())
        if not sizes:
            return
        # Imported here: only a transfer over UDP needs it.
        from ftpkit.client.transfer.udp_session import receive_blocks

        connection, file, on_moved = self._connection, self._file, self._blocks.count

        def hold(number: int, data: memoryview, raw: bytes) -> None:
            offset, digest = number * BLOCK, format_digest(connection.algorithm, raw)
            with self._target.errors():
                # A damaged block stays missing, and is fetched over TCP.
                if hold_block(self._upload, offset, data, digest):
                    self._held.add(offset)

        receive = partial(
            receive_blocks, connection, file.name, file.version, sizes, hold, on_moved
        )
        udp_transfer.run(connection, receive, on_retry)
        # Datagrams do not carry the version, which a write in place changes.
        if connection.request(Stat(name=file.name), StatReply).version != file.version:
            raise RefusedError(Code.CHANGED, f"{file.name!r} has changed")
        self._blocks.count_missing(self._missing())

    def _missing(self) -> Iterator[int]:
        return (offset for offset in self._blocks.offsets if offset not in self._held)

    def _request(self, offset: int) -> tuple[Get, None]:
        request = Get(
            name=self._file.name,
            offset=offset,
            length=BLOCK,
            digest=self._connection.algorithm,
            if_version=self._file.version,
        )
        return request, None

    def _finish(self, offset: int, reply: object) -> bool:
        """Write the body of ``reply``, which must be the block at ``offset``."""
        reply = expect(reply, GetReply)
        size = self._blocks.size(offset)
        if (reply.offset, reply.size) != (offset, size) or reply.digest is None:
            raise ProtocolError("invalid get reply: not the range that was requested")
        self._connection.check_algorithm(reply.digest)
        if size == 0:
            return True
        with self._target.errors():
            writer = self._upload.write(offset, size, reply.digest)
            try:
                while count := self._connection.stream.read_into(self._buffer):
                    writer.write(self._buffer[:count])
                    self._blocks.count(count)
                writer.finish()
            except RefusedError as refusal:
                if refusal.code is not Code.DIGEST_MISMATCH:
                    raise
                return False
            finally:
                writer.release()
        self._held.add(offset)
        return True
