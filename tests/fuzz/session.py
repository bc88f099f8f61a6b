"""Coverage-guided fuzzing of a session: any bytes get replies, and no internal error.

Run it for a minute: ``pip install -e '.[fuzz]'`` and
``python -m tests.fuzz.session -max_total_time=60``
"""

import shutil
import socket
import sys
import tempfile
from typing import cast

import atheris

with atheris.instrument_imports(include=["ftpkit"]):
    from ftpkit.net.buffer_pool import BufferPool
    from ftpkit.net.frame_stream import FrameStream
    from ftpkit.protocol.frame import encode_header
    from ftpkit.server.context import SessionContext
    from ftpkit.server.jobs import Jobs
    from ftpkit.server.session import Session
    from ftpkit.storage import DirectoryStore

from tests.fuzz.decoder import headers_in
from tests.support.split_socket import CutSocket
from tests.support.status import status

ROOT = tempfile.mkdtemp()


def framed(data: bytes) -> bytes:
    """Return ``data`` as frames: each line a header (without braces) and a body behind a tab."""
    frames = bytearray()
    for line in data.split(b"\n"):
        text, _, body = line.partition(b"\t")
        raw = b"{" + text + b"}"
        frames += len(raw).to_bytes(4, "big") + raw + body
    return bytes(frames)


def one(data: bytes) -> None:
    """Run two sessions: on the data as it is, and with frames around its lines."""
    for requests in (data, framed(data)):
        with DirectoryStore(ROOT) as store:
            sock = CutSocket(requests, [])
            stream = FrameStream(cast(socket.socket, sock), stall_timeout_s=1.0)
            context = SessionContext(
                store, Jobs(), BufferPool(), stream, status=status, peer="fuzz"
            )
            Session(context).run()
        for reply in headers_in(bytes(sock.sent)):
            assert reply.get("code") != "internal", encode_header(reply)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(ROOT)
