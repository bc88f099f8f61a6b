"""Digests: their names, their form, their values."""

import hashlib

import pytest

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.digest import (
    ALGORITHMS,
    DEFAULT,
    DIGEST_BYTES,
    RunningDigest,
    digest_of,
    format_digest,
    keyed_number,
    looks_like_algorithm,
    looks_like_digest,
    new_hasher,
    pick_algorithm,
    split_digest,
)

# The digests of nothing, from the BLAKE3 paper's test vectors and from FIPS 180-4.
EMPTY = {
    "blake3": "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_digest_is_formatted_and_split(algorithm: str) -> None:
    text = digest_of(b"", algorithm)
    assert text == f"{algorithm}:{EMPTY[algorithm]}"
    assert looks_like_digest(text)
    assert split_digest(text) == (algorithm, bytes.fromhex(EMPTY[algorithm]))
    assert format_digest(*split_digest(text)) == text
    assert len(split_digest(text)[1]) == DIGEST_BYTES


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_hasher_takes_all_kinds_of_bytes_in_pieces(algorithm: str) -> None:
    hasher = new_hasher(algorithm)
    for piece in (b"a", bytearray(b"b"), memoryview(b"cc")[:1]):
        hasher.update(piece)
    assert format_digest(algorithm, hasher.digest()) == digest_of(b"abc", algorithm)


def test_the_default_is_blake3() -> None:
    assert DEFAULT == "blake3"
    assert digest_of(b"").startswith("blake3:")
    assert digest_of(b"a", "sha256") == "sha256:" + hashlib.sha256(b"a").hexdigest()


@pytest.mark.parametrize("algorithm", ["md5", "", "BLAKE3", "sha-256"])
def test_an_unknown_algorithm_is_unsupported(algorithm: str) -> None:
    with pytest.raises(RefusedError, match="use blake3 or sha256") as caught:
        new_hasher(algorithm)
    assert caught.value.code is Code.UNSUPPORTED


@pytest.mark.parametrize(
    "value",
    ["blake3:" + "0f" * 32, "sha256:" + "a0" * 32, "md5:00", "a:" + "ff" * 64, "x-y-9:0123"],
)
def test_well_formed_digests(value: str) -> None:
    assert looks_like_digest(value)
    assert not looks_like_algorithm(value)


@pytest.mark.parametrize(
    "value",
    [
        None, 5, True, b"blake3:00", ["md5:00"], "", ":", "md5", "md5:", "md5:0", "md5:0g",
        "md5:0A", "md5: 00", "md5:00 ", "md5:00\n", "MD5:00", "-md5:00", "5md:00", "m_d:00",
        "md5:00:00",
        "blake3:" + "00" * 31, "blake3:" + "00" * 33, "sha256:" + "00" * 31, "sha256:" + "00" * 33,
        "a:" + "ff" * 65, "a" * 33 + ":00", "md5:\u0660\u0660", "\uff4dd5:00",
    ],
)  # fmt: skip
def test_malformed_digests(value: object) -> None:
    assert not looks_like_digest(value)


@pytest.mark.parametrize("value", ["blake3", "sha256", "a", "a" * 32, "sha3-512"])
def test_well_formed_algorithms(value: str) -> None:
    assert looks_like_algorithm(value)


@pytest.mark.parametrize(
    "value", [None, 5, b"a", "", "A", "a" * 33, "3a", "-a", "a b", "a\n", "a:b", "é"]
)
def test_malformed_algorithms(value: object) -> None:
    assert not looks_like_algorithm(value)


@pytest.mark.parametrize(
    ("preferred", "picked"),
    [
        ([], "blake3"),
        (["md5"], "blake3"),
        (["sha256"], "sha256"),
        (["md5", "sha256", "blake3"], "sha256"),
        (["blake3", "sha256"], "blake3"),
    ],
)
def test_the_first_known_algorithm_is_picked(preferred: list[str], picked: str) -> None:
    assert pick_algorithm(preferred) == picked


def grow(running: RunningDigest, offset: int, block: bytes) -> None:
    """Hash ``block`` as a writer does that has verified it."""
    hasher = running.fork(offset)
    if hasher is not None:
        hasher.update(block)
    running.join(hasher, offset, len(block))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_blocks_in_order_give_the_digest_of_the_whole(algorithm: str) -> None:
    running = RunningDigest(algorithm)
    assert running.of(0) == digest_of(b"", algorithm)
    grow(running, 0, b"ab")
    grow(running, 2, b"cd")
    assert running.length == 4
    assert running.of(4) == digest_of(b"abcd", algorithm)
    assert running.of(2) is None
    assert running.of(5) is None


def test_blocks_out_of_order_give_no_digest() -> None:
    running = RunningDigest()
    grow(running, 2, b"cd")
    assert running.of(2) is None
    grow(running, 0, b"ab")
    assert running.of(4) is None
    assert running.of(2) == digest_of(b"ab")


def test_a_corrupt_block_leaves_no_trace() -> None:
    running = RunningDigest()
    bad = running.fork(0)
    assert bad is not None
    bad.update(b"xx")
    grow(running, 0, b"ab")
    running.join(bad, 0, 2)
    assert running.of(2) == digest_of(b"ab")


def test_a_replaced_block_starts_again() -> None:
    running = RunningDigest()
    grow(running, 0, b"ab")
    grow(running, 2, b"cd")
    running.forget(4)
    assert running.of(4) == digest_of(b"abcd")
    running.forget(2)
    assert running.of(4) is None
    grow(running, 0, b"xy")
    assert running.of(2) == digest_of(b"xy")


def test_a_fork_above_a_replaced_block_is_not_joined() -> None:
    running = RunningDigest()
    grow(running, 0, b"ab")
    late = running.fork(2)
    assert late is not None
    late.update(b"cd")
    running.forget(0)
    grow(running, 0, b"xy")
    running.join(late, 2, 2)
    assert running.of(4) is None
    assert running.of(2) == digest_of(b"xy")


def test_of_two_forks_the_newer_counts() -> None:
    running = RunningDigest()
    older, newer = running.fork(0), running.fork(0)
    assert older is not None
    assert newer is not None
    older.update(b"ab")
    newer.update(b"cd")
    running.join(older, 0, 2)
    assert running.of(2) is None
    running.join(newer, 0, 2)
    assert running.of(2) == digest_of(b"cd")
    running.join(newer, 2, 2)
    assert running.of(4) is None


def test_a_keyed_number_depends_on_key_and_data() -> None:
    one, other = bytes(32), bytes(31) + b"1"
    assert keyed_number(one, b"data") == keyed_number(one, b"data")
    assert (
        len({keyed_number(one, b"data"), keyed_number(other, b"data"), keyed_number(one, b"")}) == 3
    )
    assert all(0 < keyed_number(one, bytes([n])) < 2**64 for n in range(50))
