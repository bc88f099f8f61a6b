"""The public names of ``ftpkit.protocol``, and what importing it imports."""

import subprocess
import sys
from pathlib import Path

import ftpkit.protocol

ROOT = Path(__file__).parents[2]

IMPORT = """
import sys
before = set(sys.modules)
import ftpkit.protocol
print(*sorted(set(sys.modules) - before))
"""


def test_the_public_names_are_these() -> None:
    assert ftpkit.protocol.__all__ == [
        "MAX_HEADER",
        "ClientProtocol",
        "Decoder",
        "EndOfStreamError",
        "ProtocolError",
        "RefusedError",
        "Response",
        "ServerProtocol",
        "TruncatedError",
        "check_name",
        "encode_header",
    ]
    assert all(hasattr(ftpkit.protocol, name) for name in ftpkit.protocol.__all__)


def test_importing_the_protocol_imports_no_socket_and_no_terminal() -> None:
    found = subprocess.run(
        [sys.executable, "-c", IMPORT], cwd=ROOT, capture_output=True, text=True, check=True
    )
    modules = found.stdout.split()
    ours = [name for name in modules if name.split(".")[0] == "ftpkit"]
    assert "ftpkit.protocol.frame" in ours
    assert [
        name for name in ours if name not in ("ftpkit", "ftpkit.errors", "ftpkit.protocol")
        and not name.startswith("ftpkit.protocol.")
    ] == []  # fmt: skip
    strangers = {"click", "tqdm", "cryptography", "socket", "ssl", "socketserver", "asyncio"}
    assert strangers & {name.split(".")[0] for name in modules} == set()
