"""A TLS client on memory buffers, and a certificate authority."""

import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from ftpkit.errors import ConnectionLostError
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
_PATIENT_S: Final = 30.0
APPLICATION_DATA: Final = 0x17


@contextlib.contextmanager
def running(work: Callable[[], object]) -> Iterator[list[BaseException]]:
    """Run ``work`` in a thread beside the block; yield a list of what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except (OSError, ConnectionLostError) as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield raised
    finally:
        thread.join(_PATIENT_S)
        assert not thread.is_alive()


def unverified_context() -> ssl.SSLContext:
    """Return a client context that verifies nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class TlsClient:
    """The client side of TLS, over bytes that the test moves itself."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = (context or unverified_context()).wrap_bio(self._in, self._out)

    def hello(self) -> bytes:
        """Return the first bytes that a client sends."""
        return self.finish(b"")

    def finish(self, reply: bytes) -> bytes:
        """Process bytes of the server; return the end of the handshake once it is complete."""
        self._in.write(reply)
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        return self._out.read()

    def encrypt(self, *pieces: bytes) -> bytes:
        """Return ``pieces`` encrypted, each as one record or more."""
        for piece in pieces:
            assert self._tls.write(piece) == len(piece)
        return self._out.read()

    def decrypt(self, data: bytes) -> bytes:
        """Return the content of ``data``, from the server."""
        self._in.write(data)
        content = bytearray()
        with contextlib.suppress(ssl.SSLWantReadError):
            while piece := self._tls.read(1 << 16):
                content += piece
        return bytes(content)


def records(data: bytes) -> list[int]:
    """Return the types of the TLS records in ``data``."""
    kinds = []
    while data:
        kinds.append(data[0])
        data = data[_RECORD_PREFIX + int.from_bytes(data[3:_RECORD_PREFIX]) :]
    return kinds


def secure(raw: Raw) -> Raw:
    """Switch a raw connection to TLS."""
    raw.sock = unverified_context().wrap_socket(raw.sock)
    return raw


class Authority:
    """A certificate authority."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("Authority")
        constraint = x509.BasicConstraints(ca=True, path_length=0)
        own = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        self._issuer_key = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
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

    def issue(self, host: str, *, since: timedelta = -_DAY, until: timedelta = _DAY) -> Identity:
        """Return the identity of the server of ``host``."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        certificate = (
            _builder(_name(host), self._name, key, since, until)
            .add_extension(names, critical=False)
            .add_extension(self._issuer_key, critical=False)
            .sign(self._key, SHA256())
        )
        return Identity(certificate.public_bytes(Encoding.PEM), in_pem(key))


def in_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return ``key`` in PEM format."""
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
