"""WIRE.md: its frames, client and tables match the code."""

import dataclasses
import json
import re
import socket
import threading
from pathlib import Path

import pytest

from ftpkit import protocol
from ftpkit.errors import Code
from ftpkit.net.cipher import DatagramCipher
from ftpkit.protocol import Decoder, ServerProtocol, encode_header
from ftpkit.protocol.codec import reply_from_header, request_from_header
from ftpkit.protocol.digest import ALGORITHMS, digest_of
from ftpkit.protocol.frame import Header
from ftpkit.protocol.messages import (
    REQUESTS,
    BeginReply,
    Commit,
    DigestRequest,
    FileReply,
    HelloReply,
    Put,
    Write,
)
from ftpkit.protocol.names import MAX_NAME, MAX_PART
from ftpkit.protocol.state import MAX_ID
from ftpkit.protocol.status import (
    MAX_STATUS,
    ServerStatus,
    Totals,
    TransferStatus,
    WorkerStatus,
)
from ftpkit.protocol.udp.packet import (
    FROM_SERVER,
    MIN_PIECE,
    OVERHEAD,
    REMEMBERED,
    Ack,
    Kind,
    Probe,
    max_open_blocks,
    pack_probe,
    read_ack,
)
from ftpkit.protocol.udp.packet import Header as DatagramHeader
from tests.protocol.reading import Frame, read

PAGE = (Path(protocol.__file__).parent / "WIRE.md").read_text("utf-8")

# A line of a hex block: bytes, then optionally two spaces and their meaning.
LINE = re.compile(r"((?:[0-9a-f]{2} )*[0-9a-f]{2})(?:  .*)?")
EXAMPLE = re.compile(r"```hex\n(.*?)```\n\n```json\n(.*?)```", re.DOTALL)


def frame_in(block: str) -> Frame:
    """Return the one frame that a hex block shows."""
    raw = b""
    for line in filter(None, block.splitlines()):
        match = LINE.fullmatch(line)
        assert match, line
        raw += bytes.fromhex(match[1])
    (frame,) = read([raw])
    assert raw == encode_header(frame.header) + frame.body, "the shortest way to write it"
    return frame


EXAMPLES = [(frame_in(block), json.loads(text)) for block, text in EXAMPLE.findall(PAGE)]


def test_every_block_of_hex_is_an_example() -> None:
    assert len(EXAMPLES) == PAGE.count("```hex") == PAGE.count("```json") > 10


@pytest.mark.parametrize(("frame", "header"), EXAMPLES)
def test_the_hex_matches_the_json(frame: Frame, header: Header) -> None:
    assert list(frame.header.items()) == list(header.items())
    if isinstance(request_or_none(header), Write):
        return  # its body is too long to be shown
    assert len(frame.body) == header.get("size", 0)
    if "size" in header and "digest" in header:
        assert digest_of(frame.body, header["digest"].split(":")[0]) == header["digest"]


@pytest.mark.parametrize(("frame", "header"), EXAMPLES)
def test_the_text_matches_the_hex(frame: Frame, header: Header) -> None:
    (block,) = (text for text, _ in EXAMPLE.findall(PAGE) if frame_in(text) == frame)
    prefix, *lines = block.splitlines()
    assert prefix.endswith(f"n = {len(encode_header(header)) - 4}")
    for line in filter(None, lines):
        raw = bytes.fromhex(line[:47])
        assert line[49:] == "".join(chr(c) if 32 <= c < 127 else "." for c in raw)


def request_or_none(header: Header) -> object:
    return request_from_header(header) if "op" in header else None


def test_every_example_is_a_request_or_a_reply() -> None:
    asked = None
    for _, header in EXAMPLES:
        if "op" in header:
            asked = request_from_header(header)
        elif asked is not None and not header.get("pending") and header["ok"] and len(header) > 1:
            kinds = [asked.reply, *(kind.reply for kind in REQUESTS.values())]
            assert any(fits(kind, header) for kind in kinds)


def fits(kind: type, header: Header) -> bool:
    keys = {field.name for field in dataclasses.fields(kind)} | {"ok", "id"}
    return header.keys() <= keys and not isinstance(reply_from_header(kind, header), Exception)


def test_the_upload_in_the_page_is_one_upload() -> None:
    requests = [request_or_none(header) for _, header in EXAMPLES]
    (write,) = (request for request in requests if isinstance(request, Write))
    (commit,) = (request for request in requests if isinstance(request, Commit))
    ((frame, reply),) = (
        (frame, header) for frame, header in EXAMPLES if fits_begin(header) and frame.body
    )
    record = frame.body
    assert int.from_bytes(record[:8]) == 0
    assert int.from_bytes(record[8:12]) == reply["block"] == write.offset
    assert write.offset + write.size == commit.total
    first, second = bytes(65_536), b"\1" * 34_464
    assert digest_of(first) == f"blake3:{record[12:].hex()}"
    assert digest_of(second) == write.digest
    assert digest_of(first + second) == commit.content_digest
    joined = record[12:] + bytes.fromhex(write.digest.removeprefix("blake3:"))
    assert digest_of(joined) == commit.blocks_digest


def fits_begin(header: Header) -> bool:
    return header.get("ok") is True and header.keys() >= {
        field.name for field in dataclasses.fields(BeginReply)
    }


def section(op: str) -> str:
    """Return the section of an operation."""
    match = re.search(rf"^### `{op}`\n(.*?)^##", PAGE, re.DOTALL | re.MULTILINE)
    assert match, op
    return match[1]


@pytest.mark.parametrize("op", REQUESTS)
def test_every_key_of_every_operation_is_named(op: str) -> None:
    kind = REQUESTS[op]
    text = section(op)
    request, _, reply = text.partition("Reply: ")
    for field in dataclasses.fields(kind):
        found = re.search(rf"`{field.name}`(?:=(\w+|\"\"))?", request)
        assert found, field.name
        if field.default is dataclasses.MISSING:
            assert found[1] is None, field.name
        elif kind is Put and field.name == "digest":
            assert found[1] == "none"  # null is no digest of a body
        else:
            assert found[1] == json.dumps(field.default), field.name
    for field in dataclasses.fields(kind.reply):
        # The reply to digest is what it was asked for, with nothing left out.
        optional = field.default is not dataclasses.MISSING and kind is not DigestRequest
        assert re.search(rf"`{field.name}`" + (r"\?" if optional else r"(?!\?)"), reply), field.name


def test_every_key_of_a_status_is_named() -> None:
    text = section("status")
    assert f"{MAX_STATUS:,} bytes at most" in text
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", text, re.MULTILINE)
    of_server, of_transfers = rows[:9], rows[9:]
    assert named(of_server) == list(ServerStatus.__annotations__)
    assert named(of_transfers) == list(TransferStatus.__annotations__)
    told = dict(of_server)
    for key, kind in (("`workers`", WorkerStatus), ("`totals`", Totals)):
        assert re.findall(r"`(\w+)`", told[key]) == list(kind.__annotations__)


def named(rows: list[tuple[str, str]]) -> list[str]:
    return [key for cell, _ in rows for key in re.findall(r"`(\w+)`", cell)]


DATAGRAMS = [
    bytes.fromhex(block) for block in re.findall(r"```datagram\n(.*?)```", PAGE, re.DOTALL)
]


def test_the_datagrams_match_their_descriptions() -> None:
    assert "`000102030405060708090a0b0c0d0e0f`" in PAGE
    opened = [DatagramCipher(bytes(range(16))).decrypt(memoryview(raw)) for raw in DATAGRAMS]
    (probe, echo, data, ack) = [(found[0], bytes(found[1])) for found in opened if found]
    assert probe == (DatagramHeader(42, 1, 0, 0, Kind.PROBE), pack_probe(Probe(0, 0, 0), 60))
    proof = Probe(0x0123456789ABCDEF, 0, 0)
    assert echo == (DatagramHeader(42, 1, 0, 0, Kind.ECHO | FROM_SERVER), pack_probe(proof, 60))
    assert data == (DatagramHeader(42, 7, 1, 1024, Kind.DATA), b"hello")
    assert ack[0] == DatagramHeader(42, 3, 0, 0, Kind.ACK | FROM_SERVER)
    assert read_ack(ack[1]) == Ack(7, 3077, 0b1101)
    assert [len(raw) for raw in DATAGRAMS[:2]] == [60, 60]


def test_the_numbers_of_datagrams_match_the_code() -> None:
    text = PAGE.split("## 11. ")[1]
    assert f"less {OVERHEAD}" in text
    assert f"{MIN_PIECE} bytes" in text
    assert f"{REMEMBERED:,} numbers at most" in text
    assert "16 blocks" in text
    assert max_open_blocks(2**16) == 16
    assert f"{2**26:,} bytes of blocks" in text
    assert max_open_blocks(2**26) == 1
    kinds = re.findall(r"^\| (\d) \|", text.split("### Kinds")[1], re.MULTILINE)
    assert [*map(int, kinds)] == list(Kind)


def test_every_code_is_in_its_table() -> None:
    assert re.findall(r"^\| `([a-z-]+)` \| [a-z]", PAGE.split("## 8. ")[1], re.MULTILINE) == [*Code]


def test_the_numbers_match_the_code() -> None:
    for number in (MAX_NAME, MAX_ID, protocol.MAX_HEADER, 65_536, 67_108_864):
        assert f"{number:,}" in PAGE
    assert f"over {MAX_PART} bytes" in PAGE
    assert f"from {2**16:,} to {2**26:,}" in PAGE
    assert re.findall(r"^\| `(\w+)` \| 32 \|", PAGE, re.MULTILINE) == list(ALGORITHMS)
    (hello,) = (header for _, header in EXAMPLES if "features" in header)
    assert isinstance(reply_from_header(HelloReply, hello), HelloReply)
    assert hello["limits"] == {"header": protocol.MAX_HEADER, "block": 2**26}


def test_the_client_in_the_page_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (source,) = re.findall(r"## 9\. .*?```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(source.splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    body = bytes(range(256)) * 16
    (tmp_path / "bigfile.iso").write_bytes(body + b"and more")
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve_one_put, args=(listener, received))
        thread.start()
        code = source.replace("9021", str(listener.getsockname()[1]))
        names: dict[str, object] = {}
        exec(compile(code, "WIRE.md", "exec"), names)
        names["body"].close()  # type: ignore[attr-defined]
        thread.join(10)
    assert received == [body]
    reply = {"ok": True, "name": "bigfile.iso", "total": 4096, "version": "v"}
    assert capsys.readouterr().out == f"{reply}\n"


def serve_one_put(listener: socket.socket, received: list[bytes]) -> None:
    """Serve one ``put``."""
    sock, _ = listener.accept()
    with sock:
        decoder, server = Decoder(), ServerProtocol()
        while (header := decoder.feed(sock.recv(decoder.wanted))) is None:
            pass
        request = server.receive(header)
        assert isinstance(request, Put)
        received.append(sock.recv(request.size, socket.MSG_WAITALL))
        sock.sendall(server.accept(FileReply(name=request.name, total=request.size, version="v")))
