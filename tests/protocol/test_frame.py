"""Frames: boundaries, splits, and arbitrary bytes."""

import contextlib
import json
from struct import pack
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftpkit.protocol import (
    MAX_HEADER,
    Decoder,
    EndOfStreamError,
    ProtocolError,
    TruncatedError,
    encode_header,
)
from ftpkit.protocol.frame import MAX_SIZE, decode_header
from tests.protocol.reading import Frame, cuts, framed, read
from tests.protocol.samples import headers

BLAKE3 = "blake3:" + "ab" * 32


def nested(depth: int, opening: str = "[", closing: str = "]") -> bytes:
    """Return a header whose deepest level is ``depth``, its own being the first."""
    return f'{{"a":{opening * (depth - 1)}{closing * (depth - 1)}}}'.encode()


def padded(length: int) -> bytes:
    """Return a header of exactly ``length`` bytes."""
    return b'{"a":"' + b"x" * (length - 8) + b'"}'


GOOD: list[tuple[bytes, dict[str, Any]]] = [
    (b"{}", {}),
    (b' {"a" : 1}\r\n\t ', {"a": 1}),
    ('{"ключ":"值 😀"}'.encode(), {"ключ": "值 😀"}),
    (rb'{"a":"\ud83d\ude00\u0000\/\n"}', {"a": "😀\0/\n"}),
    (b'{"a":9223372036854775807}', {"a": 2**63 - 1}),
    (b'{"a":9223372036854775808}', {"a": 2**63}),
    (b'{"a":-9223372036854775808}', {"a": -(2**63)}),
    (b'{"a":18446744073709551615}', {"a": 2**64 - 1}),
    (b'{"a":[-0, 0.5, 1E3, 1e-400, 1.7976931348623157e308]}', {"a": [0, 0.5, 1000.0, 0.0, 1.7976931348623157e308]}),  # noqa: E501
    (b'{"a":{"a":1},"b":[{"a":1},{"a":2}]}', {"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}),
    (nested(16), json.loads(nested(16))),
    (b'{"a":' * 16 + b"0" + b"}" * 16, json.loads(b'{"a":' * 16 + b"0" + b"}" * 16)),
    (b'{"a":"' + b"[{" * 100 + b'"}', {"a": "[{" * 100}),
    (b'{"size":0}', {"size": 0}),
    (b'{"size":-0}', {"size": 0}),
    (b'{"digest":null}', {"digest": None}),
    (b'{"digest":"blake3"}', {"digest": "blake3"}),
    (b'{"digest":"not-known-here"}', {"digest": "not-known-here"}),
    (f'{{"digest":"{BLAKE3}"}}'.encode(), {"digest": BLAKE3}),
    (f'{{"size":0,"digest":"{BLAKE3}"}}'.encode(), {"size": 0, "digest": BLAKE3}),
    (b'{"size":0,"digest":"other:00"}', {"size": 0, "digest": "other:00"}),
    (b'{"a":{"size":-1,"digest":5}}', {"a": {"size": -1, "digest": 5}}),
]  # fmt: skip

BAD: list[tuple[bytes, str]] = [
    (b"[]", "not a JSON object"),
    (b"12", "not a JSON object"),
    (b'"a"', "not a JSON object"),
    (b"null", "not a JSON object"),
    (b"  ", "not JSON"),
    (b"\0\0", "not JSON"),
    (b"{}x", "not JSON"),
    (b"{}{}", "not JSON"),
    (b"{'a':1}", "not JSON"),
    (b'{"a":1,}', "not JSON"),
    (b'{"a":01}', "not JSON"),
    (b'{"a":+1}', "not JSON"),
    (b'{"a":.5}', "not JSON"),
    (b'{"a":0x1}', "not JSON"),
    (b'{"a":"\n"}', "not JSON"),
    (rb'{"a":"\x41"}', "not JSON"),
    (b'{"a":tru}', "not JSON"),
    (b"\xef\xbb\xbf{}", "not JSON"),
    ("{}".encode("utf-16"), "not UTF-8"),
    (b'{"a":"\xff"}', "not UTF-8"),
    (b'{"a":"\xc0\x80"}', "not UTF-8"),
    (b'{"a":"\xed\xa0\x80"}', "not UTF-8"),
    (b'{"a":1,"a":1}', "duplicate key"),
    (rb'{"a":1,"\u0061":2}', "duplicate key"),
    (b'{"b":[{"c":{"a":1,"a":2}}]}', "duplicate key"),
    (b'{"a":NaN}', "NaN"),
    (b'{"a":[Infinity]}', "Infinity"),
    (b'{"a":{"b":-Infinity}}', "-Infinity"),
    (b'{"a":18446744073709551616}', "64 bits"),
    (b'{"a":-9223372036854775809}', "64 bits"),
    (b'{"a":99999999999999999999}', "64 bits"),
    (b'{"a":[[100000000000000000000]]}', "64 bits"),
    (b'{"a":' + b"9" * 5_000 + b"}", "64 bits"),
    (b'{"a":-' + b"9" * 5_000 + b"}", "64 bits"),
    (b'{"a":1e400}', "64 bits"),
    (b'{"a":-1e400}', "64 bits"),
    (b'{"a":1.8e308}', "64 bits"),
    (rb'{"a":"\ud800"}', "surrogate"),
    (rb'{"a":"\udfff"}', "surrogate"),
    (rb'{"a":"\ude00\ud83d"}', "surrogate"),
    (rb'{"a":[{"\ud800":1}]}', "surrogate"),
    (nested(17), "deeper than 16"),
    (nested(900), "deeper than 16"),
    (b'{"a":' * 17 + b"0" + b"}" * 17, "deeper than 16"),
    (b'{"size":-1}', "size"),
    (b'{"size":9223372036854775808}', "size"),
    (b'{"size":true}', "size"),
    (b'{"size":false}', "size"),
    (b'{"size":1.0}', "size"),
    (b'{"size":1e2}', "size"),
    (b'{"size":"1"}', "size"),
    (b'{"size":null}', "size"),
    (b'{"size":[1]}', "size"),
    (b'{"size":0,"digest":null}', "digest"),
    (b'{"size":0,"digest":"blake3"}', "digest"),
    (b'{"size":0,"digest":"other:"}', "digest"),
    (b'{"digest":""}', "digest"),
    (b'{"digest":5}', "digest"),
    (b'{"digest":true}', "digest"),
    (b'{"digest":["blake3"]}', "digest"),
    (b'{"digest":"BLAKE3"}', "digest"),
    (f'{{"digest":"{BLAKE3.upper()}"}}'.encode(), "digest"),
    (f'{{"digest":"{BLAKE3}ab"}}'.encode(), "digest"),
    (f'{{"digest":"{BLAKE3[:-1]}"}}'.encode(), "digest"),
    (f'{{"digest":" {BLAKE3}"}}'.encode(), "digest"),
    (f'{{"digest":"{BLAKE3}\\n"}}'.encode(), "digest"),
]  # fmt: skip

NEXT = framed(b'{"op":"ping"}')


@pytest.mark.parametrize(("raw", "header"), GOOD)
def test_a_header_survives_every_split(raw: bytes, header: dict[str, Any]) -> None:
    body = b"x" * header.get("size", 0)
    expected = [Frame(header, body), Frame({"op": "ping"})]
    for pieces in cuts(framed(raw, body) + NEXT):
        assert read(pieces) == expected


@pytest.mark.parametrize(("raw", "header"), GOOD)
def test_a_valid_header_is_encoded_and_decoded(raw: bytes, header: dict[str, Any]) -> None:
    assert read([encode_header(header)])[0].header == header


def test_the_largest_body_can_be_declared() -> None:
    raw = b'{"size":%d}' % MAX_SIZE
    assert read([framed(raw, b"abc")]) == [Frame({"size": 2**63 - 1}, b"abc")]


@pytest.mark.parametrize(("raw", "why"), BAD)
def test_a_bad_header_is_refused_in_every_split(raw: bytes, why: str) -> None:
    stream = framed(raw) + NEXT
    for pieces in cuts(stream) if len(raw) < 200 else [[stream]]:
        with pytest.raises(ProtocolError, match=why) as caught:
            read(pieces)
        assert caught.value.code == "bad-frame"


@pytest.mark.parametrize(
    "raw",
    [b"[" * 60_000, b'{"a":' * 12_000, nested(20_000), nested(10_000, '{"a":', "}")[:-10]],
)
def test_deep_nesting_is_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError, match="deeper than 16"):
        read([framed(raw)])


@pytest.mark.parametrize("raw", [b"9" * 65_000, b"-" + b"9" * 65_000, b"9" * 65_000 + b".0"])
def test_a_number_of_thousands_of_digits_is_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError, match="64 bits"):
        read([framed(b'{"a":%b}' % raw)])


def test_the_longest_header_is_read_and_a_longer_one_is_not() -> None:
    stream = framed(padded(65_536)) + NEXT
    expected = [Frame({"a": "x" * 65_528}), Frame({"op": "ping"})]
    assert read([stream]) == expected
    assert read(stream[at : at + 1] for at in range(len(stream))) == expected
    for pieces in cuts(pack("!I", 65_537)):
        with pytest.raises(ProtocolError, match="65,537 bytes exceeds the limit of 65,536"):
            read(pieces)
    with pytest.raises(ProtocolError, match="exceeds the limit"):
        read([pack("!I", 2**32 - 1)])


def test_the_shortest_header_is_two_bytes() -> None:
    assert read([framed(b"{}")]) == [Frame({})]
    for length in (0, 1):
        for pieces in cuts(pack("!I", length)):
            with pytest.raises(ProtocolError, match=f"{length} bytes is below the minimum of 2"):
                read(pieces)


@pytest.mark.parametrize("word", [b"GET ", b"SSH-", b"USER", b"220 ", b"HTTP"])
def test_other_protocols_get_an_explanation(word: bytes) -> None:
    for pieces in cuts(word):
        with pytest.raises(ProtocolError, match="ftpkit") as caught:
            read(pieces)
        assert word.decode() in str(caught.value)


@pytest.mark.parametrize("word", [b"\x16\x03\x01\x02", b"\r\n\r\n", b"GET\xff"])
def test_other_bytes_are_a_header_over_the_limit(word: bytes) -> None:
    with pytest.raises(ProtocolError, match="exceeds the limit"):
        read([word])


def test_a_decoder_with_a_smaller_limit() -> None:
    assert Decoder(max_header=10).feed(pack("!I", 10)) is None
    with pytest.raises(ProtocolError, match="exceeds the limit of 10"):
        Decoder(max_header=10).feed(pack("!I", 11))


def test_the_decoder_never_wants_a_byte_of_the_body() -> None:
    decoder = Decoder()
    assert (decoder.wanted, decoder.at_border) == (4, True)
    assert decoder.feed(b"\0") is None
    assert (decoder.wanted, decoder.at_border) == (3, False)
    assert decoder.feed(bytearray(b"\0\0\x0a")) is None
    assert (decoder.wanted, decoder.at_border) == (10, False)
    assert decoder.feed(memoryview(b'{"size"')) is None
    assert (decoder.wanted, decoder.at_border) == (3, False)
    assert decoder.feed(b":7}") == {"size": 7}
    assert (decoder.wanted, decoder.at_border) == (4, True)


def test_a_declared_length_allocates_nothing() -> None:
    decoder = Decoder(max_header=2**32 - 1)
    assert decoder.feed(pack("!I", 2**32 - 1)) is None
    assert decoder.wanted == 2**32 - 1


def test_more_bytes_than_wanted_are_a_value_error() -> None:
    decoder = Decoder()
    with pytest.raises(ValueError, match="at most 4 bytes now, not 5"):
        decoder.feed(b"\0\0\0\2{")
    assert decoder.feed(b"\0\0\0\2") is None
    assert decoder.feed(b"{}") == {}


def test_a_failed_decoder_stays_failed() -> None:
    decoder = Decoder()
    decoder.feed(b"\0\0\0\2")
    with pytest.raises(ProtocolError, match="not a JSON object") as first:
        decoder.feed(b"[]")
    for later in (b"\0\0\0\2", b"{}", b""):
        with pytest.raises(ProtocolError) as again:
            decoder.feed(later)
        assert again.value is first.value


def test_the_end_between_two_frames() -> None:
    decoder = Decoder()
    with pytest.raises(EndOfStreamError, match="closed the connection"):
        decoder.feed(b"")
    decoder.feed(b"\0\0\0\2")
    decoder.feed(b"{}")
    with pytest.raises(EOFError):
        decoder.feed(b"")


@pytest.mark.parametrize(
    ("fed", "got", "expected"),
    [([b"\0"], 1, 4), ([b"\0\0\0"], 3, 4), ([b"\0\0\x10\0"], 0, 4096), ([b"\0\0\0\2", b"{"], 1, 2)],
)
def test_the_end_within_a_frame(fed: list[bytes], got: int, expected: int) -> None:
    decoder = Decoder()
    for piece in fed:
        assert decoder.feed(piece) is None
    with pytest.raises(TruncatedError) as caught:
        decoder.feed(b"")
    assert (caught.value.got, caught.value.expected) == (got, expected)
    assert f"{got:,} of {expected:,} bytes" in str(caught.value)


def test_a_header_is_compact_and_keeps_its_order() -> None:
    assert encode_header({"z": 1, "a": "é"}) == b"\0\0\0\x10" + '{"z":1,"a":"é"}'.encode()
    assert encode_header(MappingProxyType({"op": "ping"})) == NEXT


def test_the_longest_header_is_written_and_a_longer_one_is_not() -> None:
    text = "x" * (MAX_HEADER - 8)
    assert encode_header({"a": text})[4:] == padded(MAX_HEADER)
    with pytest.raises(ValueError, match="65,537 bytes exceeds"):
        encode_header({"a": text + "x"})
    with pytest.raises(ValueError, match="exceeds the limit"):
        encode_header({"a": "é" * (MAX_HEADER // 2)})


def deep(depth: int) -> dict[str, Any]:
    header: dict[str, Any] = {}
    for _ in range(depth - 1):
        header = {"a": header}
    return header


def tupled(depth: int) -> tuple[Any, ...]:
    return (tupled(depth - 1),) if depth > 1 else ()


def circle() -> dict[str, Any]:
    header: dict[str, Any] = {}
    header["a"] = header
    return header


@pytest.mark.parametrize(
    "header",
    [
        {"a": float("nan")},
        {"a": [float("inf")]},
        {"a": 2**64},
        {"a": [{"b": -(2**63) - 1}]},
        {"a": "\ud800"},
        {"\udfff": 1},
        {1: "one", "1": "one again"},
        {"size": -1},
        {"size": 2**63},
        {"size": True},
        {"size": 1.0},
        {"size": None},
        {"size": 0, "digest": None},
        {"size": 0, "digest": "blake3"},
        {"digest": "BLAKE3"},
        {"a": tupled(16)},
        deep(17),
        deep(900),
        deep(100_000),
        circle(),
    ],
    ids=lambda header: repr(header)[:40] if len(header) > 1 else str(list(header)),
)
def test_a_header_that_a_peer_would_refuse_is_a_value_error(header: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        encode_header(header)


def test_the_deepest_header_is_written() -> None:
    assert read([encode_header(deep(16))]) == [Frame(deep(16))]
    assert encode_header({"a": tupled(15)}) == framed(nested(16))


@pytest.mark.parametrize("header", [[], "a", 5, None, {"a": b""}, {"a": {1, 2}}, {(1, 2): 3}])
def test_a_value_that_json_lacks_is_a_type_error(header: Any) -> None:
    with pytest.raises(TypeError):
        encode_header(header)


@given(st.data())
def test_any_bytes_give_a_header_or_a_protocol_error(data: st.DataObject) -> None:
    decoder = Decoder()
    with contextlib.suppress(ProtocolError):
        while chunk := data.draw(st.binary(max_size=min(decoder.wanted, 100))):
            header = decoder.feed(chunk)
            assert header is None or type(header) is dict


fragments = st.lists(
    st.sampled_from(
        [b"{", b"}", b"[", b"]", b'"', b":", b",", b'"a":', b'"size":', b'"digest":', b"1", b"-",
         b".", b"e9", b"99999999999", b"NaN", b"true", b"null", b"\\u", b"d800", b"\xff", b"\0",
         b"\xc3\xa9", b"[" * 2_000, b'{"a":' * 2_000]
    ),
    max_size=12,
).map(b"".join)  # fmt: skip


@given(st.binary(min_size=2, max_size=200) | fragments.filter(lambda raw: len(raw) >= 2))
def test_any_bytes_of_the_declared_length_give_a_header_or_a_protocol_error(raw: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        (frame,) = read([framed(raw)])
        assert type(frame.header) is dict
        assert read([encode_header(frame.header)]) == [frame]


@given(headers)
def test_every_header_makes_the_round_trip(header: dict[str, Any]) -> None:
    wire = encode_header(header)
    assert decode_header(wire[4:]) == header
    assert read([wire])[0].header == header


@given(st.lists(headers, max_size=3), st.data())
def test_any_split_gives_the_same_headers(sent: list[dict[str, Any]], data: st.DataObject) -> None:
    stream = b""
    for header in sent:
        if "size" in header:
            header["size"] %= 50
        stream += encode_header(header) + b"\xff" * header.get("size", 0)
    at = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[a:b] for a, b in zip([0, *at], [*at, len(stream)], strict=True)]
    assert read(pieces) == read([stream])
    assert [frame.header for frame in read(pieces)] == sent
