"""Identities: pins, and the files of certificate and key."""

import base64
import contextlib
import hashlib
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from hypothesis import given
from hypothesis import strategies as st

from ftpkit.net.tls_identity import Identity
from ftpkit.net.trust import pin_of
from tests.support.tls import (
    Authority,
)

IDENTITY = Identity.make()


def test_every_generated_identity_has_its_own_pin() -> None:
    assert len(IDENTITY.pin) == 43
    assert IDENTITY.pin != Identity.make().pin
    assert Identity(IDENTITY.certificate, IDENTITY.key) == IDENTITY


def test_a_pin_is_the_digest_of_the_public_key() -> None:
    key = load_pem_private_key(IDENTITY.key, None).public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = base64.urlsafe_b64encode(hashlib.sha256(spki).digest())
    assert IDENTITY.pin == digest.decode().rstrip("=")


@pytest.mark.parametrize("version", [x509.Version.v1, x509.Version.v3])
@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["P-384", "RSA", "Ed25519"],
)
def test_a_key_of_any_kind_is_found_in_its_certificate(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey,
    version: x509.Version,
) -> None:
    certificate = bytearray(Authority().certify(key))
    if version is x509.Version.v1:
        at = certificate.index(b"\xa0\x03\x02\x01\x02")
        del certificate[at : at + 5]
        for place in (2, 6):
            length = int.from_bytes(certificate[place : place + 2], "big") - 5
            certificate[place : place + 2] = length.to_bytes(2, "big")
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = base64.urlsafe_b64encode(hashlib.sha256(spki).digest())
    assert pin_of(bytes(certificate)) == digest.decode().rstrip("=")


@given(st.data())
def test_an_invalid_certificate_is_a_value_error(data: st.DataObject) -> None:
    der = ssl.PEM_cert_to_DER_cert(IDENTITY.certificate.decode())
    at = data.draw(st.integers(0, len(der)))
    with contextlib.suppress(ValueError):
        pin_of(der[:at] + data.draw(st.binary(max_size=20)))


def test_the_private_key_is_not_in_the_repr() -> None:
    assert "KEY" not in repr(IDENTITY)


def test_an_identity_is_read_from_its_files(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate", tmp_path / "key"
    certificate.write_bytes(IDENTITY.certificate)
    key.write_bytes(IDENTITY.key)
    assert Identity.read(str(certificate), str(key)) == IDENTITY


def encrypted() -> bytes:
    key = load_pem_private_key(IDENTITY.key, None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))


@pytest.mark.parametrize(
    ("certificate", "key", "message"),
    [
        (b"", IDENTITY.key, "c is not a certificate"),
        (IDENTITY.key, IDENTITY.key, "c is not a certificate"),
        (IDENTITY.certificate, b"\0\xff", "k is not a private key"),
        (IDENTITY.certificate, IDENTITY.certificate, "k is not a private key"),
        (IDENTITY.certificate, Identity.make().key, "k does not match .*c"),
        (IDENTITY.certificate, encrypted(), "k is encrypted"),
    ],
)
def test_invalid_identity_files_are_a_value_error_with_the_reason(
    tmp_path: Path, certificate: bytes, key: bytes, message: str
) -> None:
    (tmp_path / "c").write_bytes(certificate)
    (tmp_path / "k").write_bytes(key)
    with pytest.raises(ValueError, match=message):
        Identity.read(str(tmp_path / "c"), str(tmp_path / "k"))


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Identity.read(str(tmp_path / "c"), str(tmp_path / "k"))
