"""Coverage-guided fuzzing of the decoder: any bytes are headers, or a ProtocolError.

Run it for a minute: ``pip install -e '.[fuzz]'`` and
``python -m tests.fuzz.decoder -max_total_time=60``
"""

import contextlib
import sys

import atheris

with atheris.instrument_imports(include=["ftpkit", "json"]):
    from ftpkit.errors import EndOfStreamError, ProtocolError, RefusedError, TruncatedError
    from ftpkit.protocol.frame import Decoder, Header, encode_header
    from ftpkit.protocol.messages import Ping
    from ftpkit.protocol.state import ClientProtocol, ServerProtocol


def headers_in(data: bytes) -> list[Header]:
    """Return the headers at the start of ``data``, read as far as they go."""
    decoder, headers, rest = Decoder(), [], memoryview(data)
    with contextlib.suppress(ProtocolError, TruncatedError, EndOfStreamError):
        while True:
            piece = rest[: decoder.wanted]
            rest = rest[len(piece) :]
            header = decoder.feed(piece)
            if header is not None:
                headers.append(header)
                rest = rest[min(header.get("size", 0), len(rest)) :]
    return headers


def one(data: bytes) -> None:
    """Decode, encode again, and pass the headers to both sides of a session."""
    server = ServerProtocol()
    for header in headers_in(data):
        assert headers_in(encode_header(header)) == [header]
        with contextlib.suppress(RefusedError):
            server.receive(header)
        client = ClientProtocol()
        client.send_request(Ping())
        with contextlib.suppress(ProtocolError):
            client.receive(header)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
