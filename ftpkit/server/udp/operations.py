"""Carries out push and pull: uploads and downloads over UDP (WIRE.md section 11)."""

from functools import partial
from itertools import islice

from ftpkit.errors import Code, RefusedError
from ftpkit.osapi import files as os_files
from ftpkit.protocol import messages as m
from ftpkit.protocol.digest import DIGEST_BYTES, format_digest, new_hasher
from ftpkit.protocol.udp.congestion import BbrControl
from ftpkit.protocol.udp.packet import FROM_SERVER, MAX_BLOCKS, OVERHEAD, max_open_blocks
from ftpkit.protocol.udp.receiver import Receiver
from ftpkit.protocol.udp.sender import Sender
from ftpkit.scheduling.rate_limit import Direction
from ftpkit.server.context import Result, SessionContext
from ftpkit.storage.api import hold_block


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

    def store_block(number: int, data: memoryview, digest: bytes) -> None:
        # A damaged block stays missing: the client sends it again over the connection.
        hold_block(upload, number * block, data, format_digest(context.algorithm, digest))

    def start(session: int, piece: int, rtt_s: float, now: float) -> Receiver:
        return Receiver(
            session,
            missing,
            store_block,
            max_open=max_open_blocks(block),
            direction=FROM_SERVER,
            allocate=os_files.lazy_memory,
        )

    return Result(context.open_datagram_session(start, partial(context.join_upload, upload)))


def pull(context: SessionContext, request: m.Pull) -> Result:
    if request.rate == 0:
        raise RefusedError(Code.BAD_REQUEST, "pull: rate must be greater than 0")
    reader, block = context.store.read(request.name), request.block
    try:
        if reader.info.version != request.version:
            raise RefusedError(Code.CHANGED, f"{request.name!r} has changed")
        total = reader.info.total
        sizes = _sizes(request, total)

        def read_block(number: int, body: memoryview) -> None:
            size = len(body) - DIGEST_BYTES
            got = reader.read_into(body[:size], number * block)
            if got != size or not reader.unchanged():
                raise RefusedError(Code.CHANGED, "the file was written to while it was sent")
            hasher = new_hasher(context.algorithm)
            hasher.update(body[:size])
            body[size:] = hasher.digest()

        def start(session: int, piece: int, rtt_s: float, now: float) -> Sender:
            return Sender(
                session,
                piece,
                sizes,
                read_block,
                BbrControl(piece + OVERHEAD, rtt_s, now, request.rate),
                max_open=max_open_blocks(block),
                direction=FROM_SERVER,
                rtt_s=rtt_s,
                now=now,
            )

        moved = total - sum(sizes.values())
        join = partial(context.join_transfer, request.name, Direction.DOWN, total, moved)
        return Result(context.open_datagram_session(start, join, reader.__exit__))
    except BaseException:
        reader.__exit__()
        raise


def _sizes(request: m.Pull, total: int) -> dict[int, int]:
    block, blocks = request.block, -(-total // request.block)
    if any(stop > blocks for _, stop in request.ranges):
        raise RefusedError(Code.BAD_REQUEST, f"pull: the file has {blocks} blocks")
    if sum(stop - first for first, stop in request.ranges) > MAX_BLOCKS:
        raise RefusedError(Code.BAD_REQUEST, f"pull: at most {MAX_BLOCKS} blocks at a time")
    return {
        number: min(block, total - number * block)
        for first, stop in request.ranges
        for number in range(first, stop)
    }
