"""Whether a peer is on this machine, so that no network lies in between."""

import socket
from typing import Any


def is_local_connection(sock: socket.socket) -> bool:
    """Whether a connected socket's peer is on this machine; False if it has disconnected."""
    try:
        own, peer = sock.getsockname()[0], sock.getpeername()[0]
    except OSError:
        return False
    return bool(own == peer or peer.startswith("127."))


def is_local_host(host: str) -> bool:
    """Whether every address of ``host`` is one of this machine."""
    try:
        found = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return False
    return all(_is_local_address(family, address) for family, _, _, _, address in found)


def _is_local_address(family: int, address: tuple[Any, ...]) -> bool:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            # Connecting a UDP socket sends nothing, but selects the address to send from.
            probe.connect(address)
        except OSError:
            return False
        return is_local_connection(probe)
