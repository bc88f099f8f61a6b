"""The ftpkit protocol without I/O: frames, messages and both sides of a session (WIRE.md)."""

from ftpkit.errors import EndOfStreamError, ProtocolError, RefusedError, TruncatedError
from ftpkit.protocol.frame import MAX_HEADER, Decoder, encode_header
from ftpkit.protocol.names import check_name
from ftpkit.protocol.state import ClientProtocol, Response, ServerProtocol

__all__ = [
    "MAX_HEADER",
    "ClientProtocol",
    "Decoder",
    "EndOfStreamError",
    "ProtocolError",
    "RefusedError",
    "Response",
    "ServerProtocol",
    "TruncatedError",
    "check_name",
    "encode_header",
]
