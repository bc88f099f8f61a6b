"""Every exception of ftpkit, and the codes of refusals on the wire."""

from enum import StrEnum


class Code(StrEnum):
    """Why the server refused a request (WIRE.md section 8); codes are added, never renamed."""

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
    """The base of all exceptions that ftpkit raises on purpose.

    ``code`` is a stable word for programs; ``str(error)`` is a sentence for people.
    """

    code: str = "failed"


class ProtocolError(FtpkitError):
    """The peer violated the protocol (WIRE.md): a malformed frame, or an invalid reply.

    The connection is out of step and must be closed; check the peer's version.
    """

    code = Code.BAD_FRAME


class HeaderTooLongError(ProtocolError):
    """A peer that has not authenticated announced a longer header than such a peer may send."""

    def __init__(self, length: int, most: int) -> None:
        super().__init__(f"a header of {length:,} bytes exceeds the limit of {most:,}")


class RefusedError(FtpkitError):
    """The server refused a request: raised by its operations, and by the client that asked.

    ``code`` says why (WIRE.md section 8); the connection remains usable.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


class WrongWorkerError(FtpkitError):
    """Worker ``holder`` of this server holds the upload or file: hand the connection to it."""

    code = Code.BUSY

    def __init__(self, holder: int) -> None:
        super().__init__(f"worker {holder} holds it")
        self.holder = holder


class CorruptDataError(FtpkitError):
    """Received bytes do not match their digest, also after repeated attempts.

    They were discarded; transfer the file again, and check the hardware if it persists.
    """

    code = Code.DIGEST_MISMATCH


class SourceChangedError(FtpkitError):
    """A local file changed during its upload; nothing was published. Upload it again."""

    code = "source-changed"


class LocalFileError(FtpkitError):
    """A local file cannot be read or written; the message names it and the reason."""

    code = "local-file"


class ConnectionLostError(FtpkitError):
    """The connection failed: requests without a reply may or may not have taken effect.

    Connect and try again; unfinished transfers resume.
    """

    code = "connection-lost"


class CannotConnectError(ConnectionLostError):
    """No ftpkit server answers at the address.

    ``permanent``: retrying is useless, as the host does not exist or is another kind of server.
    """

    code = "cannot-connect"
    permanent = False

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent |= permanent


class UdpBlockedError(CannotConnectError):
    """The server answers over TCP, but no datagram passes: transfer without UDP."""

    code = "udp-blocked"
    permanent = True


class UntrustedError(CannotConnectError):
    """The server's identity does not match, or cannot be verified; nothing was sent to it.

    Log in with a login URL from the server's administrator.
    """

    code = "untrusted"
    permanent = True


class HandshakeError(ConnectionLostError):
    """The TLS 1.3 handshake failed; ``reason`` is OpenSSL's name for ``fault``."""

    code = "tls-failed"

    def __init__(self, reason: str, fault: str) -> None:
        super().__init__(f"TLS 1.3 handshake failed: {fault}")
        self.reason, self.fault = reason, fault


class StallTimeoutError(ConnectionLostError):
    """The peer sent or accepted no byte within the timeout: connect and try again."""

    code = Code.TIMEOUT


class EndOfStreamError(ConnectionLostError, EOFError):
    """The peer closed the connection between two frames."""

    def __init__(self) -> None:
        super().__init__("the peer closed the connection")


class TruncatedError(ConnectionLostError):
    """The connection was lost after ``got`` of ``expected`` bytes of a prefix, header or body."""

    def __init__(self, got: int, expected: int) -> None:
        super().__init__(f"connection lost after {got:,} of {expected:,} bytes")
        self.got, self.expected = got, expected
