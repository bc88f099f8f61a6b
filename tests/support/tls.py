"""The other end of TLS, as it comes with Python, and certificates of every kind."""

import contextlib
import ssl
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from ftpkit.net.tls_identity import Identity
from tests.support.raw import Raw

_DAY: Final = timedelta(days=1)
_SIGNS: Final = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)
_RECORD_PREFIX: Final = 5
APPLICATION_DATA: Final = 0x17


def any_server() -> ssl.SSLContext:
    """Return the context of a client that talks to anybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Talk:
    """A client's half of TLS over bytes that the test moves itself."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = (context or any_server()).wrap_bio(self._in, self._out)

    def hello(self) -> bytes:
        """Return what a client sends first."""
        return self.finish(b"")

    def finish(self, answer: bytes) -> bytes:
        """Take what the server answers to that; return what ends the handshake, once it does."""
        self._in.write(answer)
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        return self._out.read()

    def say(self, *pieces: bytes) -> bytes:
        """Return ``pieces``, encrypted, each a record or more."""
        for piece in pieces:
            assert self._tls.write(piece) == len(piece)
        return self._out.read()

    def hear(self, data: bytes) -> bytes:
        """Return what ``data``, from the server, says."""
        self._in.write(data)
        heard = bytearray()
        with contextlib.suppress(ssl.SSLWantReadError):
            while piece := self._tls.read(1 << 16):
                heard += piece
        return bytes(heard)


def records(data: bytes) -> list[int]:
    """Return the kinds of the TLS records of which ``data`` is a row."""
    kinds = []
    while data:
        kinds.append(data[0])
        data = data[_RECORD_PREFIX + int.from_bytes(data[3:_RECORD_PREFIX]) :]
    return kinds


def secure(raw: Raw) -> Raw:
    """Let a raw connection go on with TLS."""
    raw.sock = any_server().wrap_socket(raw.sock)
    return raw


class Authority:
    """Vouches for servers."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("Somebody")
        constraint = x509.BasicConstraints(ca=True, path_length=0)
        own = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        self._whose = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
        self.certificate = (
            _builder(self._name, self._name, self._key, -_DAY, _DAY)
            .add_extension(constraint, critical=True)
            .add_extension(_SIGNS, critical=True)
            .add_extension(own, critical=False)
            .sign(self._key, SHA256())
            .public_bytes(Encoding.PEM)
        )

    def certify(
        self, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
    ) -> bytes:
        """Return a certificate for any key, in DER."""
        certificate = _builder(_name("x" * 60), self._name, key, -_DAY, _DAY)
        return certificate.sign(self._key, SHA256()).public_bytes(Encoding.DER)

    def vouch(self, host: str, *, since: timedelta = -_DAY, until: timedelta = _DAY) -> Identity:
        """Return the identity of the server of ``host``."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        certificate = (
            _builder(_name(host), self._name, key, since, until)
            .add_extension(names, critical=False)
            .add_extension(self._whose, critical=False)
            .sign(self._key, SHA256())
        )
        return Identity(certificate.public_bytes(Encoding.PEM), in_pem(key))


def in_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return ``key`` as it stands in a file."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey,
    since: timedelta,
    until: timedelta,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + since)
        .not_valid_after(now + until)
    )
