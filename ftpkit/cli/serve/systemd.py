"""Socket activation and status notification: sd_listen_fds(3) and sd_notify(3)."""

import logging
import os
import socket
import sys
import time
from typing import Final

# SD_LISTEN_FDS_START.
_FIRST_FD: Final = 3
# Time to close everything after the grace period.
_CLEANUP_S: Final = 15.0

log = logging.getLogger("ftpkit.cli")


def inherited_sockets() -> list[socket.socket]:
    """Return the sockets passed to this process, if any; child processes do not inherit them.

    ValueError: the variables or descriptors are invalid.
    """
    names = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
    pid, count, *_ = [os.environ.pop(name, "") for name in names]
    if pid != str(os.getpid()):
        return []
    if not count.isdecimal():
        raise ValueError(f"LISTEN_FDS: expected a number, got {count!r}")
    sockets = list[socket.socket]()
    for fd in range(_FIRST_FD, _FIRST_FD + int(count)):
        try:
            os.set_inheritable(fd, False)
            sockets.append(socket.socket(fileno=fd))
        except OSError as error:
            raise ValueError(f"LISTEN_FDS: descriptor {fd}: {error.strerror}") from None
    return sockets


def stdout_is_journal() -> bool:
    """Whether stdout is written to the systemd journal."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(sys.stdout.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


class ServiceManager:
    """Notifies the service manager, if one started this process."""

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def ready(self, status: str) -> None:
        """The server has started or reloaded; ``status`` is shown by systemctl."""
        self._notify("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """The settings are being reloaded; ``ready`` follows."""
        self._notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, grace_s: float) -> None:
        """The server is stopping, which may take ``grace_s`` and a little longer."""
        self._notify("STOPPING=1", f"EXTEND_TIMEOUT_USEC={(grace_s + _CLEANUP_S) * 1e6:.0f}")

    def _notify(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.connect(self._address)
                sock.sendall("\n".join(lines).encode())
        except OSError as error:
            log.warning("cannot notify the service manager of %s: %s", lines[0], error)
