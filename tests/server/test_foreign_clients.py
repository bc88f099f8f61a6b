"""What a peer costs that has shown no token: memory of a whole process."""

import contextlib
import re
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.support.raw import Raw, frame
from tests.support.tls import TlsClient, secure

MANY: Final = 200
MOST: Final = 96 * 1024
MIB: Final = 1024 * 1024

SERVER: Final = """
import sys
from ftpkit import Server
from ftpkit.tokens import Tokens
from ftpkit.net.tls_identity import Identity

tokens = Tokens(sys.argv[2])
identity = Identity.make()
with Server(sys.argv[1], port=0, tokens=tokens, identity=identity, plain=True) as server:
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

# A handshake that is not finished; for so long a hello OpenSSL would take as much memory.
HELLO: Final = TlsClient().hello()
LONG: Final = HELLO[:6] + (131_000).to_bytes(3, "big") + HELLO[9:]
HANDSHAKES: Final = {
    "a hello": HELLO,
    "a part of a hello": HELLO[:-1],
    "a hello that is too long": LONG,
}


def peak(pid: int) -> int:
    """Return the most memory that a process has had at a time, in bytes."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text("ascii"))
    assert match is not None
    return int(match[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
@pytest.mark.parametrize("trick", [*TRICKS, *HANDSHAKES])
def test_an_unauthenticated_client_costs_little_memory(tmp_path: Path, trick: str) -> None:
    command = [sys.executable, "-c", SERVER, str(tmp_path / "root"), str(tmp_path / "tokens.json")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        address = "127.0.0.1", int(server.stdout.readline())
        with Raw(address) as raw, secure(Raw(address)) as secured:
            raw.granted("hello", version=1)
            secured.granted("hello", version=1)
        before = peak(server.pid)
        with ExitStack() as stack:
            clients = [stack.enter_context(Raw(address)) for _ in range(MANY)]
            for client in clients:
                if trick in TRICKS:
                    client.granted("hello", version=1)
                with contextlib.suppress(OSError):  # it was let go in the middle
                    client.sock.sendall(TRICKS.get(trick) or HANDSHAKES[trick])
            # Only now may the first of them end: all have cost what they cost at once.
            for client in clients:
                with contextlib.suppress(OSError):
                    client.sock.shutdown(socket.SHUT_WR)
                    client.rest()
        cost = (peak(server.pid) - before) / MANY
        server.communicate()
    assert cost < MOST
