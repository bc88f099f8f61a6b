"""The client: files up and down over one conversation."""

from ftpkit.client.client import Client, TransferResult
from ftpkit.client.udp import UdpMode
from ftpkit.protocol.messages import ListEntry

__all__ = ["Client", "ListEntry", "TransferResult", "UdpMode"]
