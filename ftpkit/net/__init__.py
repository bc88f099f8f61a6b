"""Sockets: addresses, frames over TCP and TLS, datagrams, and rate limits."""
