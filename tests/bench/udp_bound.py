"""Datagrams over loopback with nothing around them: what Python and the kernel can do at most.

``main`` runs in two processes: one sends as fast as it can, cut and joined by the kernel, and
the other takes so many bytes of what arrives, and says how long that took.
"""

import contextlib
import json
import os
import socket
import sys
import time
from tempfile import TemporaryFile
from typing import Any, Final

from blake3 import blake3

from ftpkit.client.transfer.blocks import BLOCK
from ftpkit.osapi import sockets as os_sockets

_HOST: Final = "127.0.0.1"
# As long as Ethernet carries, and as many as fit into one call.
_SEGMENT: Final = 1472
_CALL: Final = 65_535 // _SEGMENT * _SEGMENT
_QUEUE_BYTES: Final = 4 * 1024 * 1024


def main(job: str) -> None:
    """Receive ``size`` bytes, or send to ``port`` until nobody listens there."""
    fields = json.loads(job)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if "port" in fields:
            _send(sock, fields["port"])
        else:
            _receive(sock, **fields)


def _send(sock: socket.socket, port: int) -> None:
    sock.connect((_HOST, port))
    payload, segments = os.urandom(_CALL), os_sockets.segment_ancillary(_SEGMENT)
    with contextlib.suppress(ConnectionRefusedError):
        while True:
            sock.sendmsg([payload], segments)


def _receive(sock: socket.socket, size: int, *, store: bool) -> None:
    """Take ``size`` bytes; digest them twice and write them, a block at a time, if to ``store``."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _QUEUE_BYTES)
    os_sockets.join_segments(sock)
    sock.bind((_HOST, 0))
    _say(port=sock.getsockname()[1])
    block, whole = memoryview(bytearray(BLOCK + _CALL)), blake3()
    with TemporaryFile() as file:
        # The clock starts when the sender does.
        filled, total = sock.recv_into(block), 0
        started = time.monotonic()
        while total < size:
            filled += sock.recv_into(block[filled:])
            if filled >= BLOCK:
                if store:
                    blake3(block[:filled]).digest()
                    whole.update(block[:filled])
                    os.pwrite(file.fileno(), block[:filled], total)
                filled, total = 0, total + filled
        _say(bytes=total, seconds=time.monotonic() - started)


def _say(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()
