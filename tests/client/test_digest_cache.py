"""Digests of a file's blocks, stored until the file changes."""

import contextlib
import os
import time
from pathlib import Path

import pytest

from ftpkit.client.digest_cache import DigestCache
from ftpkit.protocol.digest import digest_of

BLOCK = 65_536
DIGEST = digest_of(b"a block")
OLD_NS = 1_700_000_000 * 10**9


@pytest.fixture
def source(tmp_path: Path, cache_at_once: None) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"content")
    os.utime(path, ns=(OLD_NS, OLD_NS))
    return path


def open_cache(directory: Path | None, source: Path, algorithm: str = "blake3") -> DigestCache:
    path = None if directory is None else str(directory)
    return DigestCache(path, source.stat(), block=BLOCK, algorithm=algorithm)


def store(directory: Path, source: Path, *offsets: int) -> None:
    with contextlib.closing(open_cache(directory, source)) as cache:
        for offset in offsets:
            cache.add(offset, DIGEST)


def load(directory: Path, source: Path, offset: int, algorithm: str = "blake3") -> str | None:
    with contextlib.closing(open_cache(directory, source, algorithm)) as cache:
        return cache.get(offset)


def test_a_stored_digest_is_found_by_the_next_object(tmp_path: Path, source: Path) -> None:
    store(tmp_path / "cache", source, 0, BLOCK)
    assert load(tmp_path / "cache", source, BLOCK) == DIGEST


def test_without_a_directory_digests_are_held_in_memory(source: Path) -> None:
    cache = open_cache(None, source)
    cache.add(0, DIGEST)
    assert cache.get(0) == DIGEST
    assert open_cache(None, source).get(0) is None


@pytest.mark.parametrize(
    "change", ["content", "time", "replaced", "content, and the time set back"]
)
def test_a_changed_file_has_no_stored_digests(tmp_path: Path, source: Path, change: str) -> None:
    store(tmp_path / "cache", source, 0)
    if change == "content":
        source.write_bytes(b"more content")
    elif change == "time":
        os.utime(source, ns=(OLD_NS + 1, OLD_NS + 1))
    elif change == "content, and the time set back":
        source.write_bytes(b"CONTENT")
        os.utime(source, ns=(OLD_NS, OLD_NS))
    else:
        other = tmp_path / "other"
        other.write_bytes(b"content")
        os.utime(other, ns=(OLD_NS, OLD_NS))
        other.replace(source)
    assert load(tmp_path / "cache", source, 0) is None


def test_each_algorithm_has_its_own_digests(tmp_path: Path, source: Path) -> None:
    store(tmp_path / "cache", source, 0)
    assert load(tmp_path / "cache", source, 0, "sha256") is None


@pytest.mark.parametrize("age_ns", [OLD_NS, 0])
def test_digests_of_a_file_just_written_are_not_stored(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, age_ns: int
) -> None:
    monkeypatch.undo()
    source.write_bytes(b"content")
    os.utime(source, ns=(time.time_ns() - age_ns,) * 2)
    store(tmp_path / "cache", source, 0)
    assert load(tmp_path / "cache", source, 0) is None


def test_clear_removes_the_digests_and_their_file(tmp_path: Path, source: Path) -> None:
    with contextlib.closing(open_cache(tmp_path / "cache", source)) as cache:
        cache.add(0, DIGEST)
        cache.clear()
        assert cache.get(0) is None
    assert os.listdir(tmp_path / "cache") == []


def test_damaged_records_are_ignored(tmp_path: Path, source: Path) -> None:
    store(tmp_path / "cache", source, 0, BLOCK)
    (path,) = (tmp_path / "cache").iterdir()
    data = path.read_bytes()
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        damaged, good = (0, BLOCK) if position < len(data) // 2 else (BLOCK, 0)
        assert load(tmp_path / "cache", source, damaged) is None
        assert load(tmp_path / "cache", source, good) == DIGEST


def test_a_truncated_record_is_removed_and_the_next_one_replaces_it(
    tmp_path: Path, source: Path
) -> None:
    store(tmp_path / "cache", source, 0, BLOCK)
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    store(tmp_path / "cache", source, 2 * BLOCK)
    assert load(tmp_path / "cache", source, BLOCK) is None
    assert load(tmp_path / "cache", source, 2 * BLOCK) == DIGEST


def test_digests_unused_for_30_days_are_removed(tmp_path: Path, source: Path) -> None:
    store(tmp_path / "cache", source, 0)
    (path,) = (tmp_path / "cache").iterdir()
    os.utime(path, (0, 0))
    other = tmp_path / "other"
    other.write_bytes(b"other")
    os.utime(other, ns=(OLD_NS, OLD_NS))
    store(tmp_path / "cache", other, 0)
    assert load(tmp_path / "cache", source, 0) is None


def test_an_unusable_directory_is_no_error(tmp_path: Path, source: Path) -> None:
    (tmp_path / "cache").write_bytes(b"a file")
    store(tmp_path / "cache", source, 0)
