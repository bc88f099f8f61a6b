"""Who a server is, and whether it is the one that a client means."""

import base64
import hashlib
import ssl
from collections.abc import Callable
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
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from ftpkit import system
from ftpkit.errors import (
    CannotConnectError,
    Code,
    HandshakeError,
    LinkError,
    ProtocolError,
    RefusedError,
    StalledError,
    UntrustedError,
)
from ftpkit.net.stream import Stream

Ask = Callable[[str], bool]
"""Is given the pin of a key that nobody vouches for; True: it is the right one."""


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
        return _pin(x509.load_pem_x509_certificate(self.certificate))

    def context(self) -> ssl.SSLContext:
        """Return what a server shakes hands with: TLS 1.3, without tickets."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # Each would be a record that nobody reads before the first reply.
        context.num_tickets = 0
        with system.secret_file(self.certificate + b"\n" + self.key) as path:
            context.load_cert_chain(path)
        return context


def connect(stream: Stream, host: str, pin: str | None, ask: Ask | None, timeout_s: float) -> None:
    """Let ``stream`` go on with TLS, if the server has the key of ``pin``.

    Without a pin, ``ask`` is asked about the key; without that, too, the authorities that
    this system trusts must vouch for ``host``. Only then anything is sent.

    Raises UntrustedError for another server; RefusedError if it has no time for us, said in
    plaintext; CannotConnectError if it speaks no TLS that is safe; else LinkError.
    """

    def accept(certificate: bytes) -> None:
        shown = _pin_of(certificate, host)
        if pin is not None and shown != pin:
            raise UntrustedError(
                f"{host} has another key than its link says: somebody may be in between, or "
                "the server was set up anew; get a new link from whoever runs it"
            )
        if pin is None and ask is not None and not ask(shown):
            raise UntrustedError(f"the key of {host} was not accepted")

    known = pin is not None or ask is not None
    try:
        # A scope says something to this machine alone.
        name = host.partition("%")[0]
        secured = stream.secure(_context(known=known), timeout_s, host=name, accept=accept)
    except HandshakeError as error:
        if error.reason == "CERTIFICATE_VERIFY_FAILED":
            raise UntrustedError(
                f"nobody whom this system trusts vouches for {host} ({error.fault}); "
                "get a link from whoever runs it: it names the key"
            ) from None
        raise CannotConnectError(f"cannot connect to {host}: {error}", permanent=True) from None
    except StalledError:
        raise CannotConnectError(f"{host} does not answer; is it an ftpkit server?") from None
    if not secured:
        raise _plaintext(stream, host)


def _context(*, known: bool) -> ssl.SSLContext:
    if known:
        # Who is asked for nobody's word need not load all authorities, which takes long.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _plaintext(stream: Stream, host: str) -> Exception:
    """Return what a refusal in plaintext says; its words could be anybody's, and are not shown."""
    try:
        code = stream.read_header().get("code")
    except (LinkError, ProtocolError):
        code = None
    if code == Code.TOO_MANY_CONNECTIONS:
        return RefusedError(Code.TOO_MANY_CONNECTIONS, f"{host} has too many connections")
    return CannotConnectError(f"{host} does not speak TLS", permanent=True)


def _pin_of(certificate: bytes, host: str) -> str:
    try:
        return _pin(x509.load_der_x509_certificate(certificate))
    except (ValueError, UnsupportedAlgorithm):
        raise UntrustedError(f"{host} shows a certificate that cannot be read") from None


def _pin(certificate: x509.Certificate) -> str:
    """Return the digest of a certificate's key (SPKI, as in RFC 7469), in 43 characters."""
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.urlsafe_b64encode(hashlib.sha256(key).digest()).rstrip(b"=").decode()
