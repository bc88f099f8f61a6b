"""The client: files up and down over one conversation."""

from ftpkit.client.client import Client, Transfer
from ftpkit.client.datagrams import Udp
from ftpkit.protocol.messages import Entry

__all__ = ["Client", "Entry", "Transfer", "Udp"]
