"""The kernel's statistics of a TCP connection, and its congestion controls (Linux)."""

import contextlib
import socket
import sys
from struct import Struct
from typing import Final, NamedTuple

_AVAILABLE: Final = "/proc/sys/net/ipv4/tcp_available_congestion_control"
_LONGEST_NAME: Final = 16
# struct tcp_info (linux/tcp.h): tcpi_bytes_acked, tcpi_bytes_sent and tcpi_bytes_retrans.
_INFO: Final = Struct("=120x Q 72x QQ")


class TcpInfo(NamedTuple):
    """Bytes of a connection: acknowledged; sent, including retransmissions; retransmitted."""

    acked: int
    sent: int
    resent: int


def tcp_info(sock: socket.socket) -> TcpInfo | None:
    """Return the statistics of a connection; None where the kernel has none."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
            if len(raw) == _INFO.size:  # shorter before Linux 4.19
                return TcpInfo._make(_INFO.unpack(raw))
    return None


def congestion_of(sock: socket.socket) -> str | None:
    """Return the name of a connection's congestion control; None where it is unknown."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _LONGEST_NAME)
            return raw.partition(b"\0")[0].decode("ascii")
    return None


def use_congestion(sock: socket.socket, name: str) -> None:
    """Set a connection's congestion control; OSError if it is missing or not permitted."""
    if sys.platform == "linux":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode("ascii"))


def congestion_controls() -> list[str]:
    """Return the congestion controls that this user may set, the default first."""
    try:
        with open(_AVAILABLE, encoding="ascii") as file:
            names = file.read().split()
    except OSError:
        return []
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        default = congestion_of(sock)
        return sorted(filter(lambda name: _may_use(sock, name), names), key=default.__ne__)


def _may_use(sock: socket.socket, name: str) -> bool:
    try:
        use_congestion(sock, name)
    except OSError:
        return False
    return True
