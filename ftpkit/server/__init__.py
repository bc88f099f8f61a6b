"""The server: listeners, sessions, operations and workers."""

from ftpkit.server.server import Server

__all__ = ["Server"]
