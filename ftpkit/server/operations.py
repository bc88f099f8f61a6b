"""Carries out each request: one function per operation (WIRE.md section 4)."""

import contextlib
import secrets
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any, Final

from ftpkit import __version__
from ftpkit.errors import Code, RefusedError
from ftpkit.net.buffer_pool import BufferPool
from ftpkit.protocol import messages as m
from ftpkit.protocol.codec import list_entry_to_json
from ftpkit.protocol.digest import digest_of, format_digest, new_hasher, pick_algorithm
from ftpkit.protocol.fields import MAX_BLOCK, pack_block_record
from ftpkit.protocol.frame import MAX_HEADER
from ftpkit.protocol.status import encode_status
from ftpkit.server.context import Page, Result, SessionContext
from ftpkit.server.status import status_under
from ftpkit.server.udp.operations import pull, push
from ftpkit.storage.api import FileInfo, Progress, Reader, UploadSpec, offer_basis
from ftpkit.tokens import Permission

_FEATURES: Final = ["basis", "blocks_digest"]


def hello(context: SessionContext, request: m.Hello) -> Result:
    context.algorithm = pick_algorithm(request.digests or ())
    return Result(
        m.HelloReply(
            version=m.PROTOCOL_VERSION,
            agent=f"ftpkit/{__version__}",
            digest=context.algorithm,
            auth=context.unauthenticated,
            features=[*_FEATURES, *(["datagrams"] if context.udp_listener else [])],
            limits={"header": MAX_HEADER, "block": MAX_BLOCK},
        )
    )


def ping(context: SessionContext, request: m.Ping) -> Result:
    return Result(m.OkReply())


def auth(context: SessionContext, request: m.Auth) -> Result:
    if context.authenticator is None:
        raise RefusedError(Code.UNSUPPORTED, "this server requires no token")
    if not context.unauthenticated:
        raise RefusedError(Code.BAD_REQUEST, "this connection is already authenticated")
    grant = context.authenticator.authenticate(request.token, context.peer)
    store = context.authenticator.open_home(grant)
    context.authenticator.acquire(grant)
    context.authenticated(grant, store)
    return Result(m.AuthReply(user=grant.user, can=[can for can in Permission if can in grant.can]))


def status(context: SessionContext, request: m.Status) -> Result:
    found = context.status()
    if context.authenticator is not None:
        found = status_under(context.grant.under, found, context.authenticator.roots())
    body = encode_status(found)
    return Result(m.StatusReply(size=len(body)), body)


def stat(context: SessionContext, request: m.Stat) -> Result:
    return Result(m.StatReply(**context.store.stat(request.name).facts()))


def list_names(context: SessionContext, request: m.List) -> Result:
    pages = context.paused_lists.take(context.stream, request) or _pages(
        context.store.list_files(request.name, recursive=request.recursive, after=request.after)
    )
    body, after = next(pages)

    def read_ahead() -> None:
        # After a failure nothing is kept: the next request begins anew, and reports it.
        with contextlib.suppress(RefusedError, OSError):
            rest = chain((next(pages),), pages)
            context.paused_lists.keep(context.stream, replace(request, after=after), rest)

    reply = m.ListReply(size=len(body), digest=digest_of(body, context.algorithm), next=after)
    return Result(reply, body, then=None if after is None else read_ahead)


def mkdir(context: SessionContext, request: m.Mkdir) -> Result:
    def work(progress: Progress) -> m.NameReply:
        context.store.mkdir(request.name)
        return m.NameReply(name=request.name)

    key = context.grant, request
    # It may have been deleted since, and to make it again does no harm.
    context.jobs.forget(key)
    return Result(context.run_job(key, work, must_finish=True))


def rename(context: SessionContext, request: m.Rename) -> Result:
    def work(progress: Progress) -> m.NameReply:
        context.store.rename(request.name, request.to, overwrite=request.overwrite)
        return m.NameReply(name=request.to)

    key = context.grant, request
    _forget_if_exists(context, request.name, key)
    return Result(context.run_job(key, work, must_finish=True))


def delete(context: SessionContext, request: m.Delete) -> Result:
    def work(progress: Progress) -> m.NameReply:
        context.store.delete(request.name, recursive=request.recursive, progress=progress)
        return m.NameReply(name=request.name)

    key = context.grant, request
    _forget_if_exists(context, request.name, key)
    return Result(context.run_job(key, work, must_finish=True))


def digest(context: SessionContext, request: m.DigestRequest) -> Result:
    store, buffers = context.store, context.buffers
    algorithm = request.digest or context.algorithm

    def work(progress: Progress) -> m.FileReply:
        with store.read(request.name) as reader:
            total = reader.info.total
            actual = _digest_range(reader, 0, total, algorithm, buffers, progress)
            return _file_reply(replace(reader.info, content_digest=actual))

    version = store.stat(request.name).version
    return Result(context.run_job((context.grant, request, algorithm, version), work))


def put(context: SessionContext, request: m.Put) -> Result:
    staged = context.store.stage(_upload_spec(request, request.size), request.digest)
    job = secrets.token_hex(16)

    def work(progress: Progress) -> m.FileReply:
        try:
            return _file_reply(staged.commit())
        finally:
            staged.discard()

    try:
        _receive(context, staged.write)
        reply = context.run_job((context.grant, job), work, must_finish=True)
    except BaseException:
        staged.discard()
        raise
    return Result(_with_job(reply, job))


def wait(context: SessionContext, request: m.Wait) -> Result:
    return Result(_with_job(context.jobs.wait((context.grant, request.job)), request.job))


def get(context: SessionContext, request: m.Get) -> Result:
    reader = context.store.read(request.name)
    try:
        info = reader.info
        if request.if_version not in (None, info.version):
            raise RefusedError(Code.CHANGED, f"{request.name!r} has changed")
        if request.offset > info.total:
            raise RefusedError(
                Code.BAD_REQUEST, f"offset {request.offset} is beyond the end at {info.total}"
            )
        rest = info.total - request.offset
        size = rest if request.length is None else min(rest, request.length)
        if request.digest is not None and size > MAX_BLOCK:
            raise RefusedError(
                Code.TOO_LARGE, f"a range with a digest has at most {MAX_BLOCK} bytes"
            )
        return Result(
            m.GetReply(
                name=info.name,
                offset=request.offset,
                size=size,
                total=info.total,
                mtime=info.mtime,
                version=info.version,
                mode=info.mode,
                content_digest=info.content_digest,
                digest=request.digest
                and _digest_range(reader, request.offset, size, request.digest, context.buffers),
            ),
            reader=reader,
            offset=request.offset,
            count=size,
        )
    except BaseException:
        reader.__exit__()
        raise


def begin(context: SessionContext, request: m.Begin) -> Result:
    spec = _upload_spec(request, request.total)
    store, owner, algorithm = context.store, context.grant.user, context.algorithm

    def open_upload(progress: Progress) -> str:
        return context.open_upload(lambda: store.begin(spec, owner=owner, block=request.block)).id

    # Each connection opens the upload for itself, and closes it at its end.
    opened = context.run_job((context.stream, request), open_upload, must_finish=True)
    if isinstance(opened, m.Pending):
        return Result(opened)
    upload = context.upload(opened)

    def work(progress: Progress) -> None:
        # The connection may end, and release the upload, before this work does.
        held = store.upload(upload.id, owner=owner)
        try:
            offer_basis(store, held, algorithm, progress)
        finally:
            held.release()

    if request.basis:
        # An upload loses its basis when it is closed: one that was opened again has none.
        pending = context.run_job((upload, "basis", algorithm), work)
        if pending is not None:
            return Result(pending)
    body = b"".join(
        pack_block_record(each.offset, each.length, each.digest)
        for each in upload.records(algorithm)
    )
    return Result(m.BeginReply(upload=upload.id, block=upload.block, size=len(body)), body)


def write(context: SessionContext, request: m.Write) -> Result:
    writer = context.upload(request.upload).write(request.offset, request.size, request.digest)
    try:
        _receive(context, writer.write)
        writer.finish()
    finally:
        writer.release()
    return Result(m.WriteReply(upload=request.upload, offset=request.offset, size=0))


def commit(context: SessionContext, request: m.Commit) -> Result:
    store, owner = context.store, context.grant.user

    def work(progress: Progress) -> m.FileReply:
        try:
            upload = store.upload(request.upload, owner=owner)
        except RefusedError as refusal:
            publication = store.published(request.upload, owner=owner)
            if publication is None:
                raise refusal from None
            return _file_reply(publication)
        try:
            # The upload may have begun when its owner was still allowed to replace files.
            if upload.spec.overwrite and Permission.DELETE not in context.grant.can:
                upload.renew(replace(upload.spec, overwrite=False))
            return _file_reply(
                upload.commit(
                    request.total, request.content_digest, request.blocks_digest, progress
                )
            )
        finally:
            upload.release()

    reply = context.run_job((context.grant, request), work)
    if not isinstance(reply, m.Pending):
        context.release(request.upload)
    return Result(reply)


def abort(context: SessionContext, request: m.Abort) -> Result:
    store, owner = context.store, context.grant.user

    def work(progress: Progress) -> m.OkReply:
        store.abort(request.upload, owner=owner)
        return m.OkReply()

    reply = context.run_job((context.grant, request), work, must_finish=True)
    if not isinstance(reply, m.Pending):
        context.release(request.upload)
    return Result(reply)


_NONE: Final = frozenset[Permission]()
_READ: Final = frozenset({Permission.READ})
_WRITE: Final = frozenset({Permission.WRITE})
_DELETE: Final = frozenset({Permission.DELETE})

Operation = Callable[[SessionContext, Any], Result]
OPERATIONS: Final[dict[type[m.Request], tuple[Operation, frozenset[Permission]]]] = {
    m.Hello: (hello, _NONE),
    m.Auth: (auth, _NONE),
    m.Ping: (ping, _NONE),
    m.Stat: (stat, _READ),
    m.List: (list_names, _READ),
    m.Get: (get, _READ),
    m.Pull: (pull, _READ),
    m.DigestRequest: (digest, _READ),
    m.Mkdir: (mkdir, _WRITE),
    m.Put: (put, _WRITE),
    m.Wait: (wait, _WRITE),
    m.Begin: (begin, _WRITE),
    m.Write: (write, _WRITE),
    m.Commit: (commit, _WRITE),
    m.Abort: (abort, _WRITE),
    m.Push: (push, _WRITE),
    m.Delete: (delete, _DELETE),
    m.Rename: (rename, _WRITE | _DELETE),
    m.Status: (status, frozenset({Permission.ADMIN})),
}
"""The function of each request, and the permissions that it needs."""


def _pages(entries: Iterator[FileInfo]) -> Iterator[Page]:
    page, last = bytearray(), ""
    for info in entries:
        encoded = list_entry_to_json(
            m.ListEntry(
                name=info.name, kind=info.kind, total=info.total, mtime=info.mtime, error=info.error
            )
        )
        if len(page) + len(encoded) > m.MAX_PAGE:
            yield bytes(page), last
            page.clear()
        page += encoded
        last = info.name
    yield bytes(page), None


def _forget_if_exists(context: SessionContext, name: str, key: Hashable) -> None:
    """Forget the result of an earlier request to remove ``name`` if it exists (again)."""
    with contextlib.suppress(RefusedError):
        context.store.stat(name)
        context.jobs.forget(key)


def _with_job(reply: m.FileReply | m.Pending, job: str) -> m.FileReply | m.Pending:
    """Name the job in a pending reply to a request whose body cannot be sent again."""
    return replace(reply, job=job) if isinstance(reply, m.Pending) else reply


def _receive(context: SessionContext, sink: Callable[[memoryview], None]) -> None:
    """Read the body of the request into a borrowed buffer, and pass each piece to ``sink``."""
    with context.buffers.borrow() as buffer:
        while count := context.stream.read_into(buffer):
            sink(buffer[:count])
            context.on_bytes(count)


def _digest_range(
    reader: Reader,
    offset: int,
    size: int,
    algorithm: str,
    buffers: BufferPool,
    progress: Progress = lambda done, total: None,
) -> str:
    hasher, done = new_hasher(algorithm), 0
    with buffers.borrow() as buffer:
        while done < size:
            count = reader.read_into(buffer[: size - done], offset + done)
            if count == 0:
                raise RefusedError(Code.CHANGED, "the file became shorter while it was read")
            hasher.update(buffer[:count])
            done += count
            progress(done, size)
    return format_digest(algorithm, hasher.digest())


def _upload_spec(request: m.Put | m.Begin, total: int | None) -> UploadSpec:
    return UploadSpec(
        name=request.name,
        total=total,
        mtime=request.mtime,
        mode=request.mode,
        overwrite=request.overwrite,
    )


def _file_reply(info: FileInfo) -> m.FileReply:
    return m.FileReply(
        name=info.name, total=info.total, version=info.version, content_digest=info.content_digest
    )
