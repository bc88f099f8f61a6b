"""Sockets: addresses, frames over a stream, and the pace of bytes."""
