"""Rows of blocks that travel as datagrams: push and pull (WIRE.md section 11)."""

from collections.abc import Callable
from itertools import islice

from ftpkit.errors import Code, RefusedError
from ftpkit.osapi import files as os_files
from ftpkit.protocol import messages as m
from ftpkit.protocol.digest import DIGEST_BYTES, format_digest, new_hasher
from ftpkit.protocol.udp.congestion import BbrControl
from ftpkit.protocol.udp.packet import FROM_SERVER, MAX_BLOCKS, OVERHEAD, max_open_blocks
from ftpkit.protocol.udp.receiver import Receiver
from ftpkit.protocol.udp.sender import Sender
from ftpkit.scheduling.blocking import TurnHandle
from ftpkit.server.context import Result, SessionContext
from ftpkit.storage.api import Reader, Upload, hold_block


def push(context: SessionContext, request: m.Push) -> Result:
    upload = context.upload(request.upload)
    total, block = upload.spec.total, upload.block
    if total is None:
        raise RefusedError(Code.BAD_REQUEST, "push: the upload was begun without a total")
    held = {record.offset for record in upload.records(context.algorithm)}
    offsets = (offset for offset in range(0, total, block) if offset not in held)
    missing = {
        offset // block: min(block, total - offset) for offset in islice(offsets, MAX_BLOCKS)
    }

    def begin(session: int, piece: int, rtt_s: float, now: float) -> Receiver:
        return Receiver(
            session,
            missing,
            lambda number, data, raw: _take(upload, number, data, raw, context.algorithm),
            max_open=max_open_blocks(block),
            direction=FROM_SERVER,
            allocate=os_files.lazy_memory,
        )

    def join() -> TurnHandle:
        return context.registry.upload(context.account, context.peer, upload)

    return Result(context.open_datagram_session(begin, lambda: None, join))


def pull(context: SessionContext, request: m.Pull) -> Result:
    if request.rate == 0:
        raise RefusedError(Code.BAD_REQUEST, "pull: at a rate of 0 nothing would ever come")
    reader, block = context.store.read(request.name), request.block
    try:
        if reader.info.version != request.version:
            raise RefusedError(Code.CHANGED, f"{request.name!a} has changed")
        sizes = _sizes(request, reader.info.total)

        def begin(session: int, piece: int, rtt_s: float, now: float) -> Sender:
            return Sender(
                session,
                piece,
                sizes,
                _filler(reader, block, context.algorithm),
                BbrControl(piece + OVERHEAD, rtt_s, now, request.rate),
                max_open=max_open_blocks(block),
                direction=FROM_SERVER,
                rtt_s=rtt_s,
                now=now,
            )

        def join() -> TurnHandle:
            total = reader.info.total
            moved = total - sum(sizes.values())
            return context.registry.download(
                context.account, context.peer, request.name, total, moved
            )

        return Result(context.open_datagram_session(begin, reader.__exit__, join))
    except BaseException:
        reader.__exit__()
        raise


def _take(upload: Upload, number: int, data: memoryview, raw: bytes, algorithm: str) -> None:
    # One that is damaged the next begin does not list, and it comes over the conversation.
    hold_block(upload, number * upload.block, data, format_digest(algorithm, raw))


def _sizes(request: m.Pull, total: int) -> dict[int, int]:
    """Return the blocks that are asked for, and their bytes."""
    block, blocks = request.block, -(-total // request.block)
    if any(behind > blocks for _, behind in request.ranges):
        raise RefusedError(Code.BAD_REQUEST, f"pull: the file has {blocks} blocks")
    if sum(behind - first for first, behind in request.ranges) > MAX_BLOCKS:
        raise RefusedError(Code.BAD_REQUEST, f"pull: {MAX_BLOCKS} blocks at most at a time")
    return {
        number: min(block, total - number * block)
        for first, behind in request.ranges
        for number in range(first, behind)
    }


def _filler(reader: Reader, block: int, algorithm: str) -> Callable[[int, memoryview], None]:
    """Return what reads a block, as long as the file is still the one that was opened."""

    def fill(number: int, body: memoryview) -> None:
        size = len(body) - DIGEST_BYTES
        got = reader.read_into(body[:size], number * block)
        if got != size or not reader.unchanged():
            raise RefusedError(Code.CHANGED, "the file was written to while it was sent")
        hasher = new_hasher(algorithm)
        hasher.update(body[:size])
        body[size:] = hasher.digest()

    return fill
