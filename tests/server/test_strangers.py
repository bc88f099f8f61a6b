"""What a peer costs that has shown no token: memory of a whole process."""

import re
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.support.raw import Raw, frame

MANY: Final = 200
MOST: Final = 96 * 1024
MIB: Final = 1024 * 1024

SERVER: Final = """
import sys
from ftpkit import Server
from ftpkit.access import Tokens

tokens = Tokens(sys.argv[2])
with Server(sys.argv[1], port=0, tokens=tokens) as server:
    print(server.address.port, flush=True)
    sys.stdin.read()
"""

TRICKS: Final = {
    "an unfinished header": (4096).to_bytes(4, "big") + b'{"op":"' + b"x" * 4000,
    "a header that is too long": (60_000).to_bytes(4, "big") + b"x" * 30_000,
    "a body": frame({"op": "put", "name": "f", "size": MIB}, bytes(MIB // 4)),
    "a body that is too long": frame({"op": "put", "name": "f", "size": 2 * MIB}, bytes(MIB // 4)),
    "many requests": frame({"op": "ping", "id": "x" * 900}) * 100,
}


def peak(pid: int) -> int:
    """Return the most memory that a process has had at a time, in bytes."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text("ascii"))
    assert match is not None
    return int(match[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
@pytest.mark.parametrize("trick", TRICKS)
def test_a_stranger_costs_little_memory(tmp_path: Path, trick: str) -> None:
    command = [sys.executable, "-c", SERVER, str(tmp_path / "root"), str(tmp_path / "tokens.json")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        address = "127.0.0.1", int(server.stdout.readline())
        with Raw(address) as raw:
            raw.granted("hello", version=1)
        before = peak(server.pid)
        with ExitStack() as stack:
            strangers = [stack.enter_context(Raw(address)) for _ in range(MANY)]
            for stranger in strangers:
                stranger.granted("hello", version=1)
                stranger.sock.sendall(TRICKS[trick])
            # Only now may the first of them end: all have cost what they cost at once.
            for stranger in strangers:
                stranger.sock.shutdown(socket.SHUT_WR)
            for stranger in strangers:
                stranger.rest()
        cost = (peak(server.pid) - before) / MANY
        server.communicate()
    assert cost < MOST
