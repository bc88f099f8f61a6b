"""A file on its way down: blocks of one version, staged beside the target until all are there."""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final, Self

from ftpkit.client.connection import Connection, SendBody
from ftpkit.client.retry import OnRetry
from ftpkit.client.transfer.upload import BLOCK, TRIES, OnProgress
from ftpkit.client.udp import UdpTransfer
from ftpkit.errors import Code, CorruptDataError, LocalFileError, ProtocolError, RefusedError
from ftpkit.osapi import files as os_files
from ftpkit.protocol.digest import digest_of, format_digest
from ftpkit.protocol.messages import Get, GetReply, Pull, Request, Stat, StatReply
from ftpkit.protocol.udp.packet import MAX_BLOCKS
from ftpkit.storage.api import FileInfo, UploadSpec, hold_block
from ftpkit.storage.directory.filesystem import DirHandle, FileSystem
from ftpkit.storage.directory.tree import Tree
from ftpkit.storage.directory.upload import (
    DATA,
    JOURNAL,
    DirectoryUpload,
    create_upload,
    read_journal,
    reopen_upload,
)

WINDOW: Final = 4

_PIECE: Final = 1024 * 1024
# They have to fit into a header; what is beyond comes over the conversation.
_MOST_RANGES: Final = 1000


class DownloadTarget:
    """Where a download goes: into ``.NAME.part/`` beside its name, and from there to its name.

    What a failed download leaves there is continued by the next one. ``path``
    is replaced in one step if ``overwrite`` is set, else it must be free.
    """

    def __init__(self, path: str, *, overwrite: bool) -> None:
        self.path, self._overwrite = path, overwrite
        self._files = FileSystem()
        self._upload: DirectoryUpload | None = None
        # Where the name is a link, the file that it names is replaced.
        directory, self._base = os.path.split(os.path.realpath(path))
        self._part = f".{self._base[:200]}.part"
        with contextlib.ExitStack() as stack, self.errors():
            self._directory = stack.enter_context(DirHandle.open(directory))
            self._tree = Tree(self._directory, self._files)
            self._tree.check_target(self._base, overwrite=overwrite)
            with contextlib.suppress(FileExistsError):
                self._files.mkdir(self._directory, self._part, 0o700)
            self._stage = stack.enter_context(self._directory.open_directory(self._part))
            stack.enter_context(self._alone())
            self._stack = stack.pop_all()

    @property
    def left(self) -> bool:
        """Whether an earlier download left something to go on with."""
        state = read_journal(self._stage, JOURNAL)
        return state is not None and bool(state.blocks)

    def stage(self, identity: str, spec: UploadSpec) -> DirectoryUpload:
        """Open the staged blocks of ``identity``; those of anything else are dropped."""
        with self.errors():
            if self._upload is None:
                self._upload = self._reopen()
            if self._upload is not None and self._upload.id != identity:
                self._upload.close()
                self._upload = None
            if self._upload is None:
                self._empty()
                self._upload = self._create(identity, spec)
            return self._upload

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Tell what fails on this side as such."""
        try:
            yield
        except RefusedError as refusal:
            raise LocalFileError(f"cannot write {self.path!r}: {refusal}") from refusal
        except OSError as error:
            reason = error.strerror or str(error)
            raise LocalFileError(f"cannot write {self.path!r}: {reason}") from error

    def drop(self) -> None:
        """Throw away what is staged."""
        if self._upload is not None:
            self._upload.close()
            self._upload = None
        self._empty()

    def close(self) -> None:
        """Let go; what could be continued stays."""
        if self._upload is not None:
            self._upload.close()
        if not self.left:
            with contextlib.suppress(OSError):
                self._empty()
                self._files.rmdir(self._directory, self._part)
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _reopen(self) -> DirectoryUpload | None:
        stage = self._directory.open_directory(self._part)
        return reopen_upload(
            stage, self._files, publish=self._publish, on_release=DirectoryUpload.close
        )

    def _create(self, identity: str, spec: UploadSpec) -> DirectoryUpload:
        return create_upload(
            self._directory.open_directory(self._part),
            self._files,
            identity,
            spec,
            BLOCK,
            publish=self._publish,
            on_release=DirectoryUpload.close,
        )

    def _publish(self, upload: DirectoryUpload, content_digest: str) -> FileInfo:
        entry = self._tree.publish(
            upload.directory,
            DATA,
            self._base,
            fd=upload.fileno(),
            overwrite=self._overwrite,
            content_digest=content_digest,
        )
        self._empty()
        return entry

    def _empty(self) -> None:
        for part, _ in list(self._stage.names()):
            self._tree.purge(self._stage, part, lambda done, total: None)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if self._stage.dir_fd is None:
            yield
            return
        with os_files.lock(self._stage.dir_fd) as alone:
            if not alone:
                raise LocalFileError(f"another download to {self.path!r} is running")
            yield


class Download:
    """One file on its way from ``name``, over as many connections as it takes.

    ``run`` may be called again with another link after a ConnectionLostError: it goes on
    with the blocks that are missing, if the file is still the same.
    """

    def __init__(
        self,
        name: str,
        server: str,
        target: DownloadTarget,
        on_progress: OnProgress,
        on_retry: OnRetry,
        udp_transfer: UdpTransfer,
    ) -> None:
        self._name, self._server, self._target = name, server, target
        self._on_progress, self._on_retry = on_progress, on_retry
        self._udp_transfer = udp_transfer
        self._buffer = memoryview(bytearray(_PIECE))

    def run(self, connection: Connection) -> tuple[GetReply | StatReply, FileInfo]:
        """Fetch what is missing, and publish; return what the server said, and what stands here."""
        for _ in range(TRIES):
            try:
                return self._fetch(connection)
            except RefusedError as refusal:
                # Another version took its place: nothing of this one may be kept.
                if refusal.code is not Code.CHANGED:
                    raise
                last = refusal
                connection.drain()
        raise last

    def _fetch(self, connection: Connection) -> tuple[GetReply | StatReply, FileInfo]:
        first = self._request_stat(connection)
        if first.name != self._name:
            raise ProtocolError("the reply is about another file")
        total = first.total
        identity = digest_of(repr((self._server, self._name, first.version, total)).encode())
        spec = UploadSpec(name=self._name, total=total, mtime=first.mtime, mode=first.mode)
        upload = self._target.stage(identity, spec)
        row = BlockDownload(
            connection, upload, first, self._target.errors, self._buffer, self._on_progress
        )
        if isinstance(first, GetReply):
            row.receive(first)
        if self._udp_transfer.wanted:
            row.transfer_udp(self._udp_transfer, self._on_retry)
        row.fetch()
        with self._target.errors():
            try:
                entry = upload.commit(total, first.content_digest, None, lambda done, total: None)
            except RefusedError as refusal:
                if refusal.code is not Code.DIGEST_MISMATCH:
                    raise
                self._target.drop()
                raise CorruptDataError(
                    f"{self._name!r} is damaged on the server: it no longer has the digest"
                    " that it was stored with"
                ) from None
        return first, entry

    def _request_stat(self, connection: Connection) -> GetReply | StatReply:
        """Learn what the file is; with nothing here yet its first block comes along."""
        if self._target.left or self._udp_transfer.wanted:
            reply = connection.request(Stat(name=self._name), StatReply)
            if reply.kind == "dir":
                raise RefusedError(Code.IS_A_DIRECTORY, f"{self._name!a} is a directory")
            return reply
        request = Get(name=self._name, offset=0, length=BLOCK, digest=connection.algorithm)
        return connection.request(request, GetReply)


class BlockDownload:
    """The blocks of one download over one link: which are missing, which are on their way."""

    def __init__(
        self,
        connection: Connection,
        upload: DirectoryUpload,
        what: GetReply | StatReply,
        local: Callable[[], contextlib.AbstractContextManager[None]],
        buffer: memoryview,
        on_progress: OnProgress,
    ) -> None:
        self._connection, self._upload, self._what, self._local = connection, upload, what, local
        self._buffer, self._on_progress = buffer, on_progress
        self._again: deque[int] = deque()
        self._damaged: dict[int, int] = {}
        self._held = {record.offset for record in upload.records(connection.algorithm)}
        self._moved = sum(map(self._size, self._held))
        on_progress(self._moved, what.total)

    def transfer_udp(self, udp_transfer: UdpTransfer, on_retry: OnRetry) -> None:
        """Fetch what is not held as datagrams, as far as they get."""
        missing = islice(self._missing(), MAX_BLOCKS)
        ranges = _ranges(offset // BLOCK for offset in missing)
        sizes = {
            number: self._size(number * BLOCK)
            for first, behind in ranges
            for number in range(first, behind)
        }
        if not sizes:
            return
        taken = 0

        def take(number: int, data: memoryview, raw: bytes) -> None:
            nonlocal taken
            offset, digest = number * BLOCK, format_digest(self._connection.algorithm, raw)
            with self._local():
                # One that is damaged comes over the conversation.
                if hold_block(self._upload, offset, data, digest):
                    self._held.add(offset)
                    taken += len(data)

        what = self._what
        pull = Pull(name=what.name, version=what.version, block=BLOCK, ranges=ranges)
        moved = udp_transfer.receive(self._connection, pull, sizes, take, self._count, on_retry)
        self._count(taken - moved)

    def fetch(self) -> None:
        """Fetch what is not held."""
        self._pipeline(self._missing())
        while self._again:
            waiting, self._again = list(self._again), deque()
            self._pipeline(waiting)

    def receive(self, reply: GetReply) -> None:
        """Take the body of ``reply`` into its block; if it is damaged, ask again later."""
        if reply.digest is None or reply.size != self._size(reply.offset):
            raise ProtocolError("the reply has another range than was asked for")
        self._connection.check_algorithm(reply.digest)
        if reply.size == 0:
            return
        with self._local():
            writer = self._upload.write(reply.offset, reply.size, reply.digest)
            try:
                while count := self._connection.stream.read_into(self._buffer):
                    writer.write(self._buffer[:count])
                    self._count(count)
                writer.finish()
                self._held.add(reply.offset)
            except RefusedError as refusal:
                if refusal.code is not Code.DIGEST_MISMATCH:
                    raise
                self._damage(reply)
            finally:
                writer.release()

    def _missing(self) -> Iterator[int]:
        for offset in range(0, self._what.total, BLOCK):
            if offset not in self._held and offset not in self._again:
                yield offset

    def _damage(self, reply: GetReply) -> None:
        """Ask for a damaged block again, a few times."""
        tries = self._damaged[reply.offset] = self._damaged.get(reply.offset, 0) + 1
        if tries >= TRIES:
            raise CorruptDataError(f"the block at {reply.offset:,} arrived damaged {TRIES} times")
        self._count(-reply.size)
        self._again.append(reply.offset)

    def _pipeline(self, offsets: Iterable[int]) -> None:
        for answer in self._connection.pipeline(map(self._request, offsets), WINDOW):
            if isinstance(answer.reply, RefusedError):
                raise answer.reply
            if not isinstance(answer.reply, GetReply) or not isinstance(answer.request, Get):
                raise ProtocolError("the reply does not fit the request")
            if answer.reply.offset != answer.request.offset:
                raise ProtocolError("the reply has another range than was asked for")
            self.receive(answer.reply)

    def _request(self, offset: int) -> tuple[Request, SendBody | None]:
        request = Get(
            name=self._what.name,
            offset=offset,
            length=BLOCK,
            digest=self._connection.algorithm,
            if_version=self._what.version,
        )
        return request, None

    def _size(self, offset: int) -> int:
        return min(BLOCK, self._what.total - offset)

    def _count(self, moved: int) -> None:
        self._moved += moved
        self._on_progress(self._moved, self._what.total)


def _ranges(blocks: Iterable[int]) -> list[list[int]]:
    """Return blocks, in their order, as ranges of [first, behind the last]; not too many."""
    ranges: list[list[int]] = []
    for block in blocks:
        if ranges and ranges[-1][1] == block:
            ranges[-1][1] += 1
        else:
            ranges.append([block, block + 1])
    return ranges[:_MOST_RANGES]
