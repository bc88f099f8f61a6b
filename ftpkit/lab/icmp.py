"""The ICMP errors with which a router reports a packet over the MTU of the next network."""

import struct
from typing import Final

# ICMP type and code: RFC 1191, section 4, and RFC 4443, section 3.2.
_FRAGMENTATION_NEEDED: Final = (3, 4)
_PACKET_TOO_BIG: Final = (2, 0)
_ICMP, _ICMP_V6 = 1, 58
_HOPS: Final = 64
# How much of the packet is quoted: the answer has at most the minimum MTU of each version.
_QUOTED_V4: Final = 576 - 28
_QUOTED_V6: Final = 1280 - 48


def too_big(packet: bytes, mtu: int) -> bytes:
    """Return the IP packet that reports ``mtu``, in bytes, to the sender of ``packet``.

    Its source is the destination of ``packet``.
    """
    return _too_big_v6(packet, mtu) if packet[0] >> 4 == 6 else _too_big_v4(packet, mtu)


def _too_big_v4(packet: bytes, mtu: int) -> bytes:
    source, target = packet[12:16], packet[16:20]
    message = struct.pack("!BBHHH", *_FRAGMENTATION_NEEDED, 0, 0, mtu) + packet[:_QUOTED_V4]
    fields = (0x45, 0, 20 + len(message), 0, 0, _HOPS, _ICMP, 0, target, source)
    header = struct.pack("!BBHHHBBH4s4s", *fields)
    return _with_checksum(header, 10) + _with_checksum(message, 2)


def _too_big_v6(packet: bytes, mtu: int) -> bytes:
    source, target = packet[8:24], packet[24:40]
    message = struct.pack("!BBHI", *_PACKET_TOO_BIG, 0, mtu) + packet[:_QUOTED_V6]
    header = struct.pack("!IHBB16s16s", 6 << 28, len(message), _ICMP_V6, _HOPS, target, source)
    pseudo = target + source + struct.pack("!II", len(message), _ICMP_V6)
    return header + _with_checksum(message, 2, pseudo)


def _with_checksum(data: bytes, at: int, pseudo: bytes = b"") -> bytes:
    """Return ``data`` with its checksum (RFC 1071) at offset ``at``, where it has two zeros."""
    whole = pseudo + data
    total = sum(struct.unpack(f"!{len(whole) // 2}H", whole))
    total = (total & 0xFFFF) + (total >> 16)
    total += total >> 16
    return data[:at] + struct.pack("!H", ~total & 0xFFFF) + data[at + 2 :]
