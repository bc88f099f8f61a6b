"""The client: files up and down over one conversation."""

from ftpkit.client.client import Client, Transfer
from ftpkit.protocol.messages import Entry

__all__ = ["Client", "Entry", "Transfer"]
