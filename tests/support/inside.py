"""The inside of a running server, for tests that have to reach there."""

from ftpkit import Server
from ftpkit.server.handler import ConnectionHandler


def service_of(server: Server) -> ConnectionHandler:
    """Return what serves the connections of a server that was started."""
    assert server.handler is not None
    return server.handler
