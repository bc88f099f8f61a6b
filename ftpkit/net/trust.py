"""Whether a server is the one that a client means: by its key, or because others vouch for it."""

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
"""Is given the pin of a key that nobody vouches for; True: it is the right one."""

# In a certificate (RFC 5280, section 4.1): its version, which may miss, and how many
# elements stand between that and the key: serial, signature, issuer, validity, subject.
_VERSION: Final = 0xA0
_BEFORE_KEY: Final = 5

# What a server may say before it knows that we speak TLS.
_NOT_NOW: Final[dict[str, str]] = {
    Code.TOO_MANY_CONNECTIONS: "has too many connections",
    Code.SHUTTING_DOWN: "is stopping",
    Code.TIMEOUT: "heard nothing of us for too long",
}


def connect(
    stream: FrameStream,
    host: str,
    pin: str | None,
    confirm_pin: ConfirmPin | None,
    timeout_s: float,
) -> None:
    """Let ``stream`` go on with TLS, if the server has the key of ``pin``.

    Without a pin, ``confirm_pin`` is asked about the key; without that, too, the authorities that
    this system trusts must vouch for ``host``. Only then anything is sent.

    Raises UntrustedError for another server; RefusedError if it has no time for us, said in
    plaintext; CannotConnectError if it speaks no TLS that is safe; else ConnectionLostError.
    """

    def accept(certificate: bytes) -> None:
        try:
            shown = pin_of(certificate)
        except ValueError:
            raise UntrustedError(f"{host} shows a certificate that cannot be read") from None
        if pin is not None and shown != pin:
            raise UntrustedError(
                f"{host} has another key than its link says: somebody may be in between, or "
                "the server was set up anew; get a new link from whoever runs it"
            )
        if pin is None and confirm_pin is not None and not confirm_pin(shown):
            raise UntrustedError(f"the key of {host} was not accepted")

    known = pin is not None or confirm_pin is not None
    try:
        # A scope says something to this machine alone.
        name = host.partition("%")[0]
        secured = stream.start_tls(_context(known=known), timeout_s, host=name, accept=accept)
    except HandshakeError as error:
        if error.reason == "CERTIFICATE_VERIFY_FAILED":
            raise UntrustedError(
                f"nobody whom this system trusts vouches for {host} ({error.fault}); "
                "get a link from whoever runs it: it names the key"
            ) from None
        raise CannotConnectError(f"cannot connect to {host}: {error}", permanent=True) from None
    except StallTimeoutError:
        raise CannotConnectError(f"{host} does not answer; is it an ftpkit server?") from None
    if not secured:
        raise _plaintext(stream, host)


def pin_of(certificate: bytes) -> str:
    """Return the pin of the key in a certificate (DER); ValueError for what is none.

    That is the digest of the key as it stands there (SPKI, as in RFC 7469), in 43 characters.
    """
    try:
        at, _ = _inside(certificate, _inside(certificate, 0)[0])
        for _ in range(_BEFORE_KEY + (certificate[at] == _VERSION)):
            at = _inside(certificate, at)[1]
        key = certificate[at : _inside(certificate, at)[1]]
    except IndexError:
        raise ValueError("a certificate ends too early") from None
    return base64.urlsafe_b64encode(hashlib.sha256(key).digest()).rstrip(b"=").decode()


def _inside(data: bytes, at: int) -> tuple[int, int]:
    """Return where the content of the element at ``at`` begins and ends.

    Here, because a library for it takes longer to load than a small file to send.
    """
    length, start = data[at + 1], at + 2
    if length >= 0x80:
        start += length - 0x80
        length = int.from_bytes(data[at + 2 : start], "big")
    # In DER no length is unknown, and none of these tags is longer than a byte.
    if data[at] & 0x1F == 0x1F or start + length > len(data) or data[at + 1] == 0x80:
        raise ValueError("that is no DER")
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
    """Return what a refusal in plaintext says; its words could be anybody's, and are not shown."""
    try:
        code = str(stream.read_header().get("code"))
    except (ConnectionLostError, ProtocolError):
        code = ""
    if code in _NOT_NOW:
        return RefusedError(Code(code), f"{host} {_NOT_NOW[code]}")
    return CannotConnectError(f"{host} does not speak TLS", permanent=True)
