"""The errors of sockets and of TLS as ftpkit's own: translated here and nowhere else."""

import contextlib
import errno
import ssl
from collections.abc import Iterator

from ftpkit.errors import ConnectionLostError, StallTimeoutError

# Faults of this machine, not of the connection.
_LOCAL = {errno.EIO, errno.ENOMEM, errno.EMFILE}


@contextlib.contextmanager
def receive_errors() -> Iterator[None]:
    """Raise StallTimeoutError for a timeout, ConnectionLostError for any other socket error."""
    try:
        yield
    except (BlockingIOError, TimeoutError):
        raise StallTimeoutError("the peer moved no byte for too long") from None
    except ssl.SSLError as error:
        raise ConnectionLostError(f"connection lost: {tls_reason(error)}") from None
    except OSError as error:
        if error.errno in _LOCAL:
            raise
        raise connection_lost(error) from None


@contextlib.contextmanager
def send_errors() -> Iterator[None]:
    """As ``receive_errors``, but a stall is ConnectionLostError too: the frame is unfinished."""
    try:
        with receive_errors():
            yield
    except StallTimeoutError:
        raise ConnectionLostError("connection lost: the peer took no byte for too long") from None


def connection_lost(error: OSError) -> ConnectionLostError:
    """Return the error for a socket that failed with ``error``."""
    return ConnectionLostError(f"connection lost: {error.strerror or error}")


def tls_reason(error: ssl.SSLError) -> str:
    """Return OpenSSL's reason in lower case, without its source position."""
    reason = getattr(error, "verify_message", "") or error.reason or "it failed"
    return reason.replace("_", " ").lower()
