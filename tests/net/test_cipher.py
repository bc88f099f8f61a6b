"""What was not sealed with the key of a session, exactly like this, is nothing."""

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ftpkit.net.cipher import DatagramCipher
from ftpkit.protocol.udp.packet import FROM_SERVER, Datagram, Header, Kind, pack_header

KEY = bytes(range(16))
SEAL = DatagramCipher(KEY)


def sealed(header: bytes, payload: bytes) -> bytes:
    (parts,) = SEAL.encrypt(Datagram(header, payload))
    return b"".join(parts)


def opened(raw: bytes, seal: DatagramCipher = SEAL) -> tuple[Header, bytes] | None:
    found = seal.decrypt(memoryview(raw))
    return (found[0], bytes(found[1])) if found else None


@pytest.mark.parametrize("kind", [*Kind, *(kind | FROM_SERVER for kind in Kind)])
@pytest.mark.parametrize("payload", [b"", b"hello", bytes(60_000)])
def test_what_was_sealed_opens(kind: int, payload: bytes) -> None:
    raw = sealed(pack_header(42, 7, kind, 3, 1024), payload)
    assert opened(raw) == (Header(42, 7, 3, 1024, kind), payload)


def test_it_is_what_any_aes_gcm_opens() -> None:
    raw = sealed(pack_header(42, 7, Kind.DATA, 1, 1024), b"hello")
    nonce = bytes([Kind.DATA]) + bytes(7) + (7).to_bytes(4, "big")
    assert AESGCM(KEY).decrypt(nonce, raw[17:], raw[:17]) == b"hello"
    assert raw[:17] == bytes.fromhex("0000002a 00000007 00000001 00000400 00")


def test_every_flipped_bit_is_noticed() -> None:
    raw = sealed(pack_header(42, 7, Kind.DATA, 1, 1024), b"hello")
    for bit in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        assert opened(bytes(changed)) is None, f"bit {bit}"


def test_what_is_cut_short_or_too_long_is_noticed() -> None:
    raw = sealed(pack_header(42, 7, Kind.DATA, 1, 1024), b"hello")
    for length in range(len(raw)):
        assert opened(raw[:length]) is None
        assert opened(raw[length + 1 :]) is None
    assert opened(raw + b"\0") is None
    assert opened(raw + raw) is None


@pytest.mark.parametrize("key", [bytes(16), KEY[::-1], bytes([*KEY[:15], KEY[15] ^ 1])])
def test_another_key_opens_nothing(key: bytes) -> None:
    assert opened(sealed(pack_header(42, 7, Kind.DATA), b"hello"), DatagramCipher(key)) is None


def test_a_reflected_datagram_keeps_its_direction() -> None:
    """Whoever sends it back cannot make it one of the other side."""
    raw = sealed(pack_header(42, 7, Kind.ACK), b"hello")
    reflected = opened(raw)
    assert reflected is not None
    assert not reflected[0].kind & FROM_SERVER
    turned = bytearray(raw)
    turned[16] |= FROM_SERVER
    assert opened(bytes(turned)) is None


def test_a_row_is_sealed_in_one_go_and_each_of_it_opens() -> None:
    row = [Datagram(pack_header(42, n, Kind.DATA), b"%d" % n * n) for n in range(1, 60)]
    for datagrams in (row, row[:3], row[3:]):
        raws = [b"".join(parts) for parts in SEAL.encrypt(*datagrams)]
        payloads = [found[1] for raw in raws if (found := opened(raw)) is not None]
        assert payloads == [payload for _, payload in datagrams]
    assert SEAL.encrypt() == []


def test_header_and_payload_of_two_datagrams_do_not_fit() -> None:
    one = sealed(pack_header(42, 7, Kind.DATA, 1, 1024), b"hello")
    for other in (
        pack_header(42, 8, Kind.DATA, 1, 1024),
        pack_header(43, 7, Kind.DATA, 1, 1024),
        pack_header(42, 7, Kind.DATA, 2, 1024),
        pack_header(42, 7, Kind.DATA, 1, 2048),
        pack_header(42, 7, Kind.ACK, 1, 1024),
    ):
        assert opened(other + one[17:]) is None


def test_kinds_that_are_unknown_and_the_number_0_are_nothing() -> None:
    for kind in range(256):
        raw = sealed(pack_header(42, 7, kind), b"hello")
        assert (opened(raw) is not None) is (kind & 0x7F <= Kind.END)
    assert opened(sealed(pack_header(42, 0, Kind.DATA), b"hello")) is None


def test_the_same_bytes_are_never_sealed_alike() -> None:
    """Two numbers, two kinds, two directions: two nonces."""
    payloads = {
        sealed(pack_header(42, number, kind), b"hello")[17:]
        for number in (1, 2, 2**32 - 1)
        for kind in (*Kind, *(kind | FROM_SERVER for kind in Kind))
    }
    assert len(payloads) == 3 * 2 * len(Kind)
