"""What a service manager hands over and wants to know: sd_listen_fds(3) and sd_notify(3)."""

import logging
import os
import socket
import sys
import time
from typing import Final

# The first descriptor that is handed over.
_FIRST: Final = 3
# What is left to do behind the grace.
_ENDING_S: Final = 15.0

log = logging.getLogger("ftpkit.cli")


def handed_over() -> list[socket.socket]:
    """Take the sockets that were opened for this process, if any; no child will find them.

    ValueError says that what was handed over is none.
    """
    names = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
    pid, count, *_ = [os.environ.pop(name, "") for name in names]
    if pid != str(os.getpid()):
        return []
    if not count.isdecimal():
        raise ValueError(f"LISTEN_FDS: expected a number, got {count!r}")
    sockets = list[socket.socket]()
    for fd in range(_FIRST, _FIRST + int(count)):
        try:
            os.set_inheritable(fd, False)
            sockets.append(socket.socket(fileno=fd))
        except OSError as error:
            raise ValueError(f"LISTEN_FDS: descriptor {fd}: {error.strerror}") from None
    return sockets


def shown_to_the_journal() -> bool:
    """Whether what is printed on stdout is kept in the system's log."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(sys.stdout.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


class Manager:
    """Who started this process and wants to hear how it goes, if anybody does."""

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def ready(self, status: str) -> None:
        """Tell that the server serves, again or for the first time, and in a few words what."""
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Tell that the settings are read again; ``ready`` follows."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, grace_s: float) -> None:
        """Tell that the server ends, and how long that may take."""
        self._tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={(grace_s + _ENDING_S) * 1e6:.0f}")

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.connect(self._address)
                sock.sendall("\n".join(lines).encode())
        except OSError as error:
            log.warning("the service manager cannot be told %s: %s", lines[0], error)
