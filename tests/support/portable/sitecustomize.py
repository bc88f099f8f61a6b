"""Python without Linux's system calls, for every process with this directory on PYTHONPATH.

``PYTHONPATH=tests/support/portable python -m pytest`` runs all tests as on a system without
directory descriptors, positional reads and kernel socket timeouts.
"""

import os
import socket
import sys
from typing import Final

OS_NAMES: Final = (
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
# MSG_WAITALL stays: tests and WIRE.md's ten-line client use it; tests/net removes it itself.
SOCKET_NAMES: Final = ("MSG_MORE", "SOL_UDP", "SO_RCVTIMEO", "SO_SNDTIMEO")
CAPABILITIES: Final = ("supports_dir_fd", "supports_fd", "supports_follow_symlinks")


def remove_names() -> None:
    """Delete the names before anything can have looked for them."""
    for name in OS_NAMES:
        if hasattr(os, name):
            delattr(os, name)
    for name in SOCKET_NAMES:
        if hasattr(socket, name):
            delattr(socket, name)
    for name in CAPABILITIES:
        getattr(os, name).clear()
    sys.modules["fcntl"] = None  # type: ignore[assignment]  # makes the import fail
    # A child in another directory must find this file and ftpkit.
    root = os.path.join(os.path.dirname(__file__), *[os.pardir] * 3)
    paths = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), root]
    os.environ["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths if path)


if __name__ == "sitecustomize":
    remove_names()
