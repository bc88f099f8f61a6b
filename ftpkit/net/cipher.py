"""Datagrams sealed: encrypted, and refused when anything of them was changed."""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ftpkit.protocol.udp.packet import HEADER, TAG, Datagram, Header, nonce_of, read_header


class DatagramCipher:
    """The key of one session; its header travels readable and its payload does not.

    AES-128-GCM (NIST SP 800-38D) with a nonce of direction, kind and number, none
    of which repeats under one key. What is returned lies in memory that the next call
    of the same kind uses again, for fresh pages cost more than the cipher: a seal is
    for one thread.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self._closed = self._opened = memoryview(bytearray())

    def encrypt(self, *datagrams: Datagram) -> list[tuple[bytes, memoryview]]:
        """Return the two parts of each datagram as they travel."""
        sizes = [len(payload) + TAG for _, payload in datagrams]
        self._closed = room = _room(self._closed, sum(sizes))
        parts = []
        for (header, payload), size in zip(datagrams, sizes, strict=True):
            sealed, room = room[:size], room[size:]
            self._cipher.encrypt_into(nonce_of(header), payload, header, sealed)
            parts.append((header, sealed))
        return parts

    def decrypt(self, raw: memoryview) -> tuple[Header, memoryview] | None:
        """Return what was sealed, or None if it was not sealed with this key."""
        header = read_header(raw)
        if header is None:
            return None
        head, sealed = raw[: HEADER.size], raw[HEADER.size :]
        self._opened = _room(self._opened, len(sealed) - TAG)
        payload = self._opened[: len(sealed) - TAG]
        try:
            self._cipher.decrypt_into(nonce_of(head), sealed, head, payload)
        except InvalidTag:
            return None
        return header, payload


def _room(memory: memoryview, length: int) -> memoryview:
    """Return memory of at least ``length`` bytes, the same as before where that is enough."""
    return memory if len(memory) >= length else memoryview(bytearray(length))
