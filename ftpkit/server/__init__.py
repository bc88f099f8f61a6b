"""The server: who connects, what each asks, and what is done about it."""

from ftpkit.server.server import Server

__all__ = ["Server"]
