"""Every exception of ftpkit, and the wire's words for "no"."""

from enum import StrEnum


class Code(StrEnum):
    """Why a request was refused (WIRE.md section 6); codes are added, never renamed."""

    BAD_FRAME = "bad-frame"
    BAD_REQUEST = "bad-request"
    BAD_NAME = "bad-name"
    UNSUPPORTED = "unsupported"
    AUTH_REQUIRED = "auth-required"
    AUTH_FAILED = "auth-failed"
    TLS_REQUIRED = "tls-required"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not-found"
    EXISTS = "exists"
    IS_A_DIRECTORY = "is-a-directory"
    NOT_A_DIRECTORY = "not-a-directory"
    NOT_EMPTY = "not-empty"
    CHANGED = "changed"
    BUSY = "busy"
    INCOMPLETE = "incomplete"
    DIGEST_MISMATCH = "digest-mismatch"
    TOO_LARGE = "too-large"
    NO_SPACE = "no-space"
    QUOTA_EXCEEDED = "quota-exceeded"
    TOO_MANY_CONNECTIONS = "too-many-connections"
    TIMEOUT = "timeout"
    SHUTTING_DOWN = "shutting-down"
    INTERNAL = "internal"


class FtpkitError(Exception):
    """The root of everything that ftpkit raises on purpose.

    ``code`` is a stable word for programs; ``str(error)`` is one sentence for a person.
    """

    code: str = "failed"


class ProtocolError(FtpkitError):
    """The peer sent what WIRE.md calls ``bad-frame``, or a reply that fits no request."""

    code = Code.BAD_FRAME


class HeaderTooLongError(ProtocolError):
    """A header is longer than the reader takes from a peer that may be anybody."""

    def __init__(self, length: int, most: int) -> None:
        super().__init__(f"a header of {length:,} bytes is longer than {most:,}")


class RefusedError(FtpkitError):
    """The server said no: raised by an operation there, and again by the client here."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


class WrongWorkerError(FtpkitError):
    """Another process of this server is to do it: the one with the number ``holder``."""

    code = Code.BUSY

    def __init__(self, holder: int) -> None:
        super().__init__(f"process {holder} of this server does that")
        self.holder = holder


class CorruptDataError(FtpkitError):
    """Bytes arrived that do not match their digest; they were thrown away."""

    code = Code.DIGEST_MISMATCH


class SourceChangedError(FtpkitError):
    """A file changed while it was being sent; nothing of it was published."""

    code = "source-changed"


class LocalFileError(FtpkitError):
    """A file on this side cannot be read or written."""

    code = "local-file"


class ConnectionLostError(FtpkitError):
    """The connection failed; what was not acknowledged may or may not have happened."""

    code = "connection-lost"


class CannotConnectError(ConnectionLostError):
    """Nobody that speaks the ftpkit protocol answers there.

    ``permanent`` says that trying again is of no use: there is no such host,
    or it is somebody else's server.
    """

    code = "cannot-connect"

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


class UdpBlockedError(CannotConnectError):
    """No datagram gets through, though the server answers over TCP."""

    code = "udp-blocked"

    def __init__(self, message: str) -> None:
        super().__init__(message, permanent=True)


class UntrustedError(CannotConnectError):
    """The server is another one than is meant, or nobody knows; nothing was sent to it."""

    code = "untrusted"

    def __init__(self, message: str) -> None:
        super().__init__(message, permanent=True)


class HandshakeError(ConnectionLostError):
    """The peer speaks no TLS, or none that we do; ``reason`` is OpenSSL's word for ``fault``."""

    code = "tls-failed"

    def __init__(self, reason: str, fault: str) -> None:
        super().__init__(f"no TLS 1.3: {fault}")
        self.reason, self.fault = reason, fault


class StallTimeoutError(ConnectionLostError):
    """The peer moved no byte for too long."""

    code = Code.TIMEOUT


class EndOfStreamError(ConnectionLostError, EOFError):
    """The peer ended the conversation at a frame border."""

    def __init__(self) -> None:
        super().__init__("the peer ended the conversation")


class TruncatedError(ConnectionLostError):
    """The peer vanished in the middle of a frame.

    ``got`` and ``expected`` count bytes of the part that was being read: prefix, header or body.
    """

    def __init__(self, got: int, expected: int) -> None:
        super().__init__(f"connection lost after {got:,} of {expected:,} bytes")
        self.got, self.expected = got, expected
