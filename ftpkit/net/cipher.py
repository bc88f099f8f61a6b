"""Encryption of datagrams; WIRE.md has the layout."""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ftpkit.protocol.udp.packet import HEADER, TAG, Datagram, Header, nonce_of, read_header


class DatagramCipher:
    """Encrypts and authenticates the payload of datagrams, and authenticates their headers.

    AES-128-GCM (NIST SP 800-38D) with a nonce of direction, kind and number, which never
    repeats under one key. What a method returns is overwritten by its next call, because fresh
    memory pages cost more than the encryption; a cipher belongs to one thread.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self._encrypted = self._decrypted = memoryview(bytearray())

    def encrypt(self, *datagrams: Datagram) -> list[tuple[bytes, memoryview]]:
        """Return header and encrypted payload of each datagram."""
        sizes = [len(payload) + TAG for _, payload in datagrams]
        self._encrypted = free = _at_least(self._encrypted, sum(sizes))
        parts = []
        for (header, payload), size in zip(datagrams, sizes, strict=True):
            encrypted, free = free[:size], free[size:]
            self._cipher.encrypt_into(nonce_of(header), payload, header, encrypted)
            parts.append((header, encrypted))
        return parts

    def decrypt(self, raw: memoryview) -> tuple[Header, memoryview] | None:
        """Return header and payload of a datagram, None if it is not authentic."""
        header = read_header(raw)
        if header is None:
            return None
        head, encrypted = raw[: HEADER.size], raw[HEADER.size :]
        self._decrypted = _at_least(self._decrypted, len(encrypted) - TAG)
        payload = self._decrypted[: len(encrypted) - TAG]
        try:
            self._cipher.decrypt_into(nonce_of(head), encrypted, head, payload)
        except InvalidTag:
            return None
        return header, payload


def _at_least(memory: memoryview, length: int) -> memoryview:
    return memory if len(memory) >= length else memoryview(bytearray(length))
