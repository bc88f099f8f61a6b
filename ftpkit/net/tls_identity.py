"""The TLS identity of a server: its private key and certificate."""

import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from ftpkit.net.trust import pin_of
from ftpkit.osapi import files as os_files


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate with its chain, and its private key; both in PEM."""

    certificate: bytes
    key: bytes = field(repr=False)

    @classmethod
    def make(cls) -> "Identity":
        """Generate a key and a self-signed certificate, which clients verify by its pin."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ftpkit")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            # Clients that have the pin ignore the validity.
            .not_valid_before(datetime.now(UTC) - timedelta(days=1))
            .not_valid_after(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
            .sign(key, SHA256())
        )
        return cls(
            certificate.public_bytes(Encoding.PEM),
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )

    @classmethod
    def read(cls, certificate_path: str, key_path: str) -> "Identity":
        """Read both from PEM files; raises OSError, or ValueError if they cannot be used."""
        with open(certificate_path, "rb") as certificate_file, open(key_path, "rb") as key_file:
            certificate, key = certificate_file.read(), key_file.read()
        try:
            public = x509.load_pem_x509_certificate(certificate).public_key()
        except (ValueError, UnsupportedAlgorithm):
            raise ValueError(f"{certificate_path} is not a certificate in PEM format") from None
        try:
            private = load_pem_private_key(key, None)
        except TypeError:
            raise ValueError(
                f"the private key in {key_path} is encrypted; remove its passphrase"
            ) from None
        except (ValueError, UnsupportedAlgorithm):
            raise ValueError(f"{key_path} is not a private key in PEM format") from None
        if private.public_key() != public:
            raise ValueError(f"the private key in {key_path} does not match {certificate_path}")
        identity = cls(certificate, key)
        try:
            identity.context()
        except ssl.SSLError as error:
            raise ValueError(f"{certificate_path} cannot be used: {error.reason}") from None
        return identity

    @property
    def pin(self) -> str:
        """The pin of the key; see ``pin_of``."""
        return pin_of(x509.load_pem_x509_certificate(self.certificate).public_bytes(Encoding.DER))

    def context(self) -> ssl.SSLContext:
        """Return a server's TLS context: TLS 1.3 only, without session tickets."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # A client would have to read them before the first reply.
        context.num_tickets = 0
        with os_files.secret_file(self.certificate + b"\n" + self.key) as path:
            context.load_cert_chain(path)
        return context
