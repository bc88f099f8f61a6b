"""ICMP errors, parsed as a host does."""

import struct
from ipaddress import ip_address

from ftpkit.lab.icmp import too_big


def has_valid_checksum(data: bytes) -> bool:
    """Whether the words of ``data`` add up to all ones, as they do with a right checksum."""
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    return total % 0xFFFF == 0 and total > 0


def test_the_sender_of_an_ipv4_packet_learns_the_mtu() -> None:
    here, there = ip_address("10.0.0.1").packed, ip_address("10.0.0.2").packed
    packet = bytes.fromhex("450005dc000040004011") + bytes(2) + here + there + b"rest" * 370
    answer = too_big(packet, 1280)
    header, message = answer[:20], answer[20:]
    assert (header[0], header[9]) == (0x45, 1)
    assert (header[12:16], header[16:20]) == (there, here)
    assert struct.unpack_from("!H", header, 2) == (len(answer),) == (576,)
    assert message[:2] == bytes([3, 4])
    assert struct.unpack_from("!H", message, 6) == (1280,)
    assert packet.startswith(message[8:])
    assert has_valid_checksum(header)
    assert has_valid_checksum(message)


def test_the_sender_of_an_ipv6_packet_learns_the_mtu() -> None:
    here, there = ip_address("fd00::1").packed, ip_address("fd00::2").packed
    packet = bytes.fromhex("6000000005b41140") + here + there + b"rest" * 365
    answer = too_big(packet, 1400)
    header, message = answer[:40], answer[40:]
    assert (header[0] >> 4, header[6]) == (6, 58)
    assert (header[8:24], header[24:40]) == (there, here)
    assert struct.unpack_from("!H", header, 4) == (len(message),)
    assert len(answer) == 1280
    assert message[:2] == bytes([2, 0])
    assert struct.unpack_from("!I", message, 4) == (1400,)
    assert packet.startswith(message[8:])
    assert has_valid_checksum(there + here + struct.pack("!II", len(message), 58) + message)
