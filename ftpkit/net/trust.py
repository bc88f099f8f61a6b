"""Verification of a server: by the pin of its key, or by certificate authorities."""

import base64
import hashlib
import ssl
from collections.abc import Callable
from typing import Final

from ftpkit.errors import (
    CannotConnectError,
    Code,
    ConnectionLostError,
    HandshakeError,
    ProtocolError,
    RefusedError,
    StallTimeoutError,
    UntrustedError,
)
from ftpkit.net.frame_stream import FrameStream

ConfirmPin = Callable[[str], bool]
"""Is called with the pin of the server's key; True accepts it."""

# In a certificate (RFC 5280, section 4.1): the tag of its version, which is optional, and the
# number of elements between that and the key: serial, signature, issuer, validity, subject.
_VERSION: Final = 0xA0
_BEFORE_KEY: Final = 5

# Refusals that a server sends in plaintext, before a TLS handshake.
_REFUSALS: Final[dict[str, str]] = {
    Code.TOO_MANY_CONNECTIONS: "has too many connections",
    Code.SHUTTING_DOWN: "is stopping",
    Code.TIMEOUT: "received nothing from this client for too long",
}


def connect(
    stream: FrameStream,
    host: str,
    pin: str | None,
    confirm_pin: ConfirmPin | None,
    timeout_s: float,
) -> None:
    """Switch ``stream`` to TLS and verify the server before anything is sent.

    The server's key must have ``pin``; without one ``confirm_pin`` decides, and without both
    the certificate must be valid for ``host`` under the authorities that this system trusts.

    Raises UntrustedError if the server cannot be verified, RefusedError if it refuses the
    connection in plaintext, CannotConnectError if it does not speak TLS 1.3 or does not reply
    within ``timeout_s``, else ConnectionLostError.
    """

    def accept(certificate: bytes) -> None:
        try:
            shown = pin_of(certificate)
        except ValueError:
            raise UntrustedError(f"{host} sent an invalid TLS certificate") from None
        if pin is not None and shown != pin:
            raise UntrustedError(
                f"the key of {host} does not match the pinned key. Either the server was "
                "reinstalled or the connection is being intercepted. Ask its administrator for "
                "a new login URL"
            )
        if pin is None and confirm_pin is not None and not confirm_pin(shown):
            raise UntrustedError(f"the key of {host} was not accepted")

    known = pin is not None or confirm_pin is not None
    try:
        # An IPv6 scope has a meaning on this machine only.
        name = host.partition("%")[0]
        secured = stream.start_tls(_context(known=known), timeout_s, host=name, accept=accept)
    except HandshakeError as error:
        if error.reason == "CERTIFICATE_VERIFY_FAILED":
            raise UntrustedError(
                f"cannot verify the TLS certificate of {host}: {error.fault}. "
                "Log in with the URL that the server printed: ftpkit login URL"
            ) from None
        raise CannotConnectError(f"cannot connect to {host}: {error}", permanent=True) from None
    except StallTimeoutError:
        raise CannotConnectError(f"{host} does not answer; is it an ftpkit server?") from None
    if not secured:
        raise _plaintext(stream, host)


def pin_of(certificate: bytes) -> str:
    """Return the pin of the key in a certificate (DER); ValueError if it is invalid.

    The pin is the SHA-256 digest of the public key (SPKI, as in RFC 7469) in base64url,
    43 characters.
    """
    try:
        at, _ = _inside(certificate, _inside(certificate, 0)[0])
        for _ in range(_BEFORE_KEY + (certificate[at] == _VERSION)):
            at = _inside(certificate, at)[1]
        key = certificate[at : _inside(certificate, at)[1]]
    except IndexError:
        raise ValueError("the certificate is truncated") from None
    return base64.urlsafe_b64encode(hashlib.sha256(key).digest()).rstrip(b"=").decode()


def _inside(data: bytes, at: int) -> tuple[int, int]:
    """Return start and end of the content of the DER element at ``at``.

    Written out here because a library for it takes longer to load than a small file to send.
    """
    length, start = data[at + 1], at + 2
    if length >= 0x80:
        start += length - 0x80
        length = int.from_bytes(data[at + 2 : start], "big")
    # DER has no indefinite length, and a certificate no tag of several bytes.
    if data[at] & 0x1F == 0x1F or start + length > len(data) or data[at + 1] == 0x80:
        raise ValueError("the certificate is not valid DER")
    return start, start + length


def _context(*, known: bool) -> ssl.SSLContext:
    if not known:
        context = ssl.create_default_context()
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _plaintext(stream: FrameStream, host: str) -> Exception:
    """Return the error for a reply in plaintext; its text is not authentic, so it is not shown."""
    try:
        code = str(stream.read_header().get("code"))
    except (ConnectionLostError, ProtocolError):
        code = ""
    if code in _REFUSALS:
        return RefusedError(Code(code), f"{host} {_REFUSALS[code]}")
    return CannotConnectError(f"{host} does not speak TLS", permanent=True)
