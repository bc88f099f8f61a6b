"""Datagrams: encryption, and rejection of everything that is not authentic."""

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ftpkit.net.cipher import DatagramCipher
from ftpkit.protocol.udp.packet import FROM_SERVER, Datagram, Header, Kind, pack_header

KEY = bytes(range(16))
CIPHER = DatagramCipher(KEY)


def encrypted(header: bytes, payload: bytes) -> bytes:
    (parts,) = CIPHER.encrypt(Datagram(header, payload))
    return b"".join(parts)


def decrypted(raw: bytes, cipher: DatagramCipher = CIPHER) -> tuple[Header, bytes] | None:
    found = cipher.decrypt(memoryview(raw))
    return (found[0], bytes(found[1])) if found else None


@pytest.mark.parametrize("kind", [*Kind, *(kind | FROM_SERVER for kind in Kind)])
@pytest.mark.parametrize("payload", [b"", b"hello", bytes(60_000)])
def test_decryption_reverses_encryption(kind: int, payload: bytes) -> None:
    raw = encrypted(pack_header(42, 7, kind, 3, 1024), payload)
    assert decrypted(raw) == (Header(42, 7, 3, 1024, kind), payload)


def test_the_format_is_plain_aes_gcm() -> None:
    raw = encrypted(pack_header(42, 7, Kind.DATA, 1, 1024), b"hello")
    nonce = bytes([Kind.DATA]) + bytes(7) + (7).to_bytes(4, "big")
    assert AESGCM(KEY).decrypt(nonce, raw[17:], raw[:17]) == b"hello"
    assert raw[:17] == bytes.fromhex("0000002a 00000007 00000001 00000400 00")


def test_every_flipped_bit_is_detected() -> None:
    raw = encrypted(pack_header(42, 7, Kind.DATA, 1, 1024), b"hello")
    for bit in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        assert decrypted(bytes(changed)) is None, f"bit {bit}"


def test_truncated_and_extended_datagrams_are_rejected() -> None:
    raw = encrypted(pack_header(42, 7, Kind.DATA, 1, 1024), b"hello")
    for length in range(len(raw)):
        assert decrypted(raw[:length]) is None
        assert decrypted(raw[length + 1 :]) is None
    assert decrypted(raw + b"\0") is None
    assert decrypted(raw + raw) is None


@pytest.mark.parametrize("key", [bytes(16), KEY[::-1], bytes([*KEY[:15], KEY[15] ^ 1])])
def test_another_key_decrypts_nothing(key: bytes) -> None:
    assert (
        decrypted(encrypted(pack_header(42, 7, Kind.DATA), b"hello"), DatagramCipher(key)) is None
    )


def test_a_reflected_datagram_keeps_its_direction() -> None:
    """An attacker cannot make it one of the other side."""
    raw = encrypted(pack_header(42, 7, Kind.ACK), b"hello")
    reflected = decrypted(raw)
    assert reflected is not None
    assert not reflected[0].kind & FROM_SERVER
    changed = bytearray(raw)
    changed[16] |= FROM_SERVER
    assert decrypted(bytes(changed)) is None


def test_many_datagrams_are_encrypted_in_one_call() -> None:
    batch = [Datagram(pack_header(42, n, Kind.DATA), b"%d" % n * n) for n in range(1, 60)]
    for datagrams in (batch, batch[:3], batch[3:]):
        raws = [b"".join(parts) for parts in CIPHER.encrypt(*datagrams)]
        payloads = [found[1] for raw in raws if (found := decrypted(raw)) is not None]
        assert payloads == [payload for _, payload in datagrams]
    assert CIPHER.encrypt() == []


def test_a_payload_under_another_header_is_rejected() -> None:
    one = encrypted(pack_header(42, 7, Kind.DATA, 1, 1024), b"hello")
    for other in (
        pack_header(42, 8, Kind.DATA, 1, 1024),
        pack_header(43, 7, Kind.DATA, 1, 1024),
        pack_header(42, 7, Kind.DATA, 2, 1024),
        pack_header(42, 7, Kind.DATA, 1, 2048),
        pack_header(42, 7, Kind.ACK, 1, 1024),
    ):
        assert decrypted(other + one[17:]) is None


def test_unknown_kinds_and_number_0_are_rejected() -> None:
    for kind in range(256):
        raw = encrypted(pack_header(42, 7, kind), b"hello")
        assert (decrypted(raw) is not None) is (kind & 0x7F <= Kind.END)
    assert decrypted(encrypted(pack_header(42, 0, Kind.DATA), b"hello")) is None


def test_equal_payloads_never_encrypt_to_equal_bytes() -> None:
    """Two numbers, two kinds, two directions: two nonces."""
    payloads = {
        encrypted(pack_header(42, number, kind), b"hello")[17:]
        for number in (1, 2, 2**32 - 1)
        for kind in (*Kind, *(kind | FROM_SERVER for kind in Kind))
    }
    assert len(payloads) == 3 * 2 * len(Kind)
