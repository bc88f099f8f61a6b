"""Datagrams sealed: encrypted, and refused when anything of them was changed."""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ftpkit.protocol.datagram import HEADER, Datagram, Header, nonce_of, read_header


class Seal:
    """The key of one session; its header travels readable and its payload does not.

    AES-128-GCM (NIST SP 800-38D) with a nonce of direction, kind and number, none
    of which repeats under one key.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def close(self, datagram: Datagram) -> tuple[bytes, bytes]:
        """Return the two parts of a datagram as they travel."""
        header, payload = datagram
        return header, self._cipher.encrypt(nonce_of(header), payload, header)

    def open(self, raw: memoryview) -> tuple[Header, bytes] | None:
        """Return what was sealed, or None if it was not sealed with this key."""
        header = read_header(raw)
        if header is None:
            return None
        head = raw[: HEADER.size]
        try:
            return header, self._cipher.decrypt(nonce_of(head), raw[HEADER.size :], head)
        except InvalidTag:
            return None
