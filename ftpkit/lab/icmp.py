"""What a router answers to a packet that is too long for its next wire."""

import struct
from typing import Final

# RFC 1191 and RFC 4443, section 3.2: the type and the code.
_FRAGMENTATION_NEEDED: Final = (3, 4)
_PACKET_TOO_BIG: Final = (2, 0)
_ICMP, _ICMP_V6 = 1, 58
_HOPS: Final = 64
# As much of a packet comes back as fits into what every wire carries.
_QUOTED_V4: Final = 576 - 28
_QUOTED_V6: Final = 1280 - 48


def too_big(packet: bytes, mtu: int) -> bytes:
    """Return the IP packet that tells the sender of ``packet`` that ``mtu`` bytes would pass.

    It comes in the name of the host that was not reached.
    """
    return _too_big_v6(packet, mtu) if packet[0] >> 4 == 6 else _too_big_v4(packet, mtu)


def _too_big_v4(packet: bytes, mtu: int) -> bytes:
    source, target = packet[12:16], packet[16:20]
    message = struct.pack("!BBHHH", *_FRAGMENTATION_NEEDED, 0, 0, mtu) + packet[:_QUOTED_V4]
    fields = (0x45, 0, 20 + len(message), 0, 0, _HOPS, _ICMP, 0, target, source)
    header = struct.pack("!BBHHHBBH4s4s", *fields)
    return _summed(header, 10) + _summed(message, 2)


def _too_big_v6(packet: bytes, mtu: int) -> bytes:
    source, target = packet[8:24], packet[24:40]
    message = struct.pack("!BBHI", *_PACKET_TOO_BIG, 0, mtu) + packet[:_QUOTED_V6]
    header = struct.pack("!IHBB16s16s", 6 << 28, len(message), _ICMP_V6, _HOPS, target, source)
    pseudo = target + source + struct.pack("!II", len(message), _ICMP_V6)
    return header + _summed(message, 2, pseudo)


def _summed(data: bytes, at: int, pseudo: bytes = b"") -> bytes:
    """Return ``data`` with its checksum (RFC 1071) at ``at``, where it has two zeros."""
    whole = pseudo + data
    total = sum(struct.unpack(f"!{len(whole) // 2}H", whole))
    total = (total & 0xFFFF) + (total >> 16)
    total += total >> 16
    return data[:at] + struct.pack("!H", ~total & 0xFFFF) + data[at + 2 :]
