"""The client: uploads, downloads and the other operations on one server."""

from ftpkit.client.client import Client, TransferResult
from ftpkit.client.transfer.udp import UdpMode
from ftpkit.protocol.messages import ListEntry

__all__ = ["Client", "ListEntry", "TransferResult", "UdpMode"]
