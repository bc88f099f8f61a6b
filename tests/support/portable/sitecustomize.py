"""A Python without the powers of Linux: put this directory on PYTHONPATH and run anything.

``PYTHONPATH=tests/support/portable python -m pytest`` runs all tests as they would run where
there are no held directory descriptors, no positional reads and no kernel socket timeouts.
"""

import os
import socket
import sys
from typing import Final

OS_POWERS: Final = (
    "O_CLOEXEC",
    "O_DIRECTORY",
    "O_NOFOLLOW",
    "O_NONBLOCK",
    "copy_file_range",
    "fchmod",
    "fdatasync",
    "memfd_create",
    "posix_fadvise",
    "posix_fallocate",
    "pread",
    "preadv",
    "pwrite",
    "pwritev",
    "sendfile",
    "splice",
)
# MSG_WAITALL stays: tests and WIRE.md's ten-line client, which are no part of ftpkit, use it.
# tests/net takes it from the streams it tests.
SOCKET_POWERS: Final = ("MSG_MORE", "SOL_UDP", "SO_RCVTIMEO", "SO_SNDTIMEO")
CAPABILITIES: Final = ("supports_dir_fd", "supports_fd", "supports_follow_symlinks")


def take_powers() -> None:
    """Delete the powers, before anything can have looked for them."""
    for name in OS_POWERS:
        if hasattr(os, name):
            delattr(os, name)
    for name in SOCKET_POWERS:
        if hasattr(socket, name):
            delattr(socket, name)
    for name in CAPABILITIES:
        getattr(os, name).clear()
    sys.modules["fcntl"] = None  # type: ignore[assignment]  # what an import of nothing leaves
    # A child that runs in another directory must find this file and ftpkit again.
    root = os.path.join(os.path.dirname(__file__), *[os.pardir] * 3)
    paths = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), root]
    os.environ["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths if path)


if __name__ == "sitecustomize":
    take_powers()
