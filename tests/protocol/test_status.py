import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftpkit.errors import ProtocolError
from ftpkit.protocol.status import (
    MAX_STATUS,
    ServerStatus,
    TransferStatus,
    WorkerStatus,
    decode_status,
    encode_status,
)
from tests.support.status import STATUS, TRANSFER, status, transfer

# No number, text, list or object of a status is one of these.
NEVER: tuple[Any, ...] = (True, -1, -0.5, 2**63, 1e300, {}, {"a": 1})


def test_a_status_makes_the_round_trip() -> None:
    full = status(transfer(name="名/é", total=None, left_s=None), transfer(level=2, position=7))
    assert decode_status(encode_status(full)) == full


def test_integers_are_valid_floats() -> None:
    assert decode_status(encode_status(status(uptime_s=12)))["uptime_s"] == 12


def test_unknown_keys_are_kept() -> None:
    body = json.dumps({**status(), "mood": [1, {"a": None}]}).encode()
    assert decode_status(body)["mood"] == [1, {"a": None}]  # type: ignore[typeddict-item]


@pytest.mark.parametrize("key", ServerStatus.__annotations__)
def test_a_key_that_is_missing_or_bad(key: str) -> None:
    for value in (..., "text" if key not in ("version", "policy") else 7, *NEVER):
        bad: dict[str, Any] = {**STATUS, key: value}
        if value is ...:
            del bad[key]
        with pytest.raises(ProtocolError, match=f"'{key}'"):
            decode_status(json.dumps(bad).encode())


@pytest.mark.parametrize(
    ("where", "kind", "good"),
    [
        ("workers", WorkerStatus, STATUS["workers"][0]),
        ("transfers", TransferStatus, TRANSFER),
    ],
)
def test_a_bad_list_element(where: str, kind: type, good: dict[str, Any]) -> None:
    elements: list[Any] = [None, [], 7, "x", {}]
    for key in kind.__annotations__:
        elements += [{**good, key: value} for value in NEVER]
        elements.append({name: value for name, value in good.items() if name != key})
    for element in elements:
        with pytest.raises(ProtocolError, match=f"'{where}'"):
            decode_status(encode_status(status(**{where: [good, element]})))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_status_or_a_protocol_error(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_status(body)


VALUE = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
    | st.lists(st.none(), max_size=1) | st.dictionaries(st.text(max_size=1), st.none(), max_size=1)
)  # fmt: skip


@given(st.sampled_from([*ServerStatus.__annotations__]), VALUE)
def test_any_value_is_part_of_a_status_or_a_protocol_error(key: str, value: object) -> None:
    body = json.dumps({**STATUS, key: value}).encode()
    try:
        decoded = decode_status(body)
    except ProtocolError:
        return
    assert decode_status(encode_status(decoded)) == decoded


def test_too_many_transfers_are_cut() -> None:
    many = [transfer(name="n" * 4000, position=number) for number in range(10_000)]
    body = encode_status(status(*many))
    assert len(body) <= MAX_STATUS
    told = decode_status(body)["transfers"]
    assert 1000 < len(told) < len(many)
    assert told == many[: len(told)]
