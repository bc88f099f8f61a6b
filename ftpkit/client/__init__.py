"""The client: files up and down over one conversation."""

from ftpkit.client.client import Client, TransferResult
from ftpkit.client.datagrams import UdpMode
from ftpkit.protocol.messages import Entry

__all__ = ["Client", "Entry", "TransferResult", "UdpMode"]
