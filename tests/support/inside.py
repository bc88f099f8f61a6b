"""The connection handler of a running server, for tests that need its internals."""

from ftpkit import Server
from ftpkit.server.handler import ConnectionHandler


def handler_of(server: Server) -> ConnectionHandler:
    """Return the handler of a server that runs."""
    assert server.handler is not None
    return server.handler
