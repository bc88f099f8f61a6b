"""Who a server is: its key, and a certificate for it."""

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
    """The certificate of a server, with those that vouch for it, and its key; both in PEM."""

    certificate: bytes
    key: bytes = field(repr=False)

    @classmethod
    def make(cls) -> "Identity":
        """Make a key, and a certificate for it that vouches for itself: clients know the pin."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ftpkit")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            # Clocks may be wrong, and no client that knows the pin looks at these.
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
        """Read both from files; OSError or ValueError says what is wrong with them."""
        with open(certificate_path, "rb") as file:
            certificate = file.read()
        with open(key_path, "rb") as file:
            key = file.read()
        try:
            public = x509.load_pem_x509_certificate(certificate).public_key()
        except (ValueError, UnsupportedAlgorithm):
            raise ValueError(f"{certificate_path} is no certificate in PEM") from None
        try:
            private = load_pem_private_key(key, None)
        except TypeError:
            raise ValueError(f"the key in {key_path} is encrypted") from None
        except (ValueError, UnsupportedAlgorithm):
            raise ValueError(f"{key_path} is no private key in PEM") from None
        if private.public_key() != public:
            raise ValueError(f"the key in {key_path} is not that of {certificate_path}")
        identity = cls(certificate, key)
        try:
            identity.context()
        except ssl.SSLError as error:
            raise ValueError(f"{certificate_path} cannot be used: {error.reason}") from None
        return identity

    @property
    def pin(self) -> str:
        """What clients know the key by."""
        return pin_of(x509.load_pem_x509_certificate(self.certificate).public_bytes(Encoding.DER))

    def context(self) -> ssl.SSLContext:
        """Return what a server shakes hands with: TLS 1.3, without tickets."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # Each would be a record that nobody reads before the first reply.
        context.num_tickets = 0
        with os_files.secret_file(self.certificate + b"\n" + self.key) as path:
            context.load_cert_chain(path)
        return context
