"""The server side of UDP transfers."""
