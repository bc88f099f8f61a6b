"""The ftpkit protocol without a socket: bytes in, headers out, and what they may say."""

from ftpkit.errors import EndOfStreamError, ProtocolError, RefusedError, TruncatedError
from ftpkit.protocol.conversation import Answer, ClientConversation, ServerConversation
from ftpkit.protocol.frame import MAX_HEADER, Decoder, encode_header
from ftpkit.protocol.names import check_name

__all__ = [
    "MAX_HEADER",
    "Answer",
    "ClientConversation",
    "Decoder",
    "EndOfStreamError",
    "ProtocolError",
    "RefusedError",
    "ServerConversation",
    "TruncatedError",
    "check_name",
    "encode_header",
]
