"""What is remembered of a file's blocks, and for how long it is believed."""

import contextlib
import os
from pathlib import Path

import pytest

from ftpkit.client.digest_cache import DigestCache
from ftpkit.protocol.digest import digest_of

BLOCK = 65_536
DIGEST = digest_of(b"a block")
OLD_NS = 1_700_000_000 * 10**9


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"content")
    os.utime(path, ns=(OLD_NS, OLD_NS))
    return path


def memory(directory: Path | None, source: Path, algorithm: str = "blake3") -> DigestCache:
    where = None if directory is None else str(directory)
    return DigestCache(where, source.stat(), block=BLOCK, algorithm=algorithm)


def remember(directory: Path, source: Path, *offsets: int) -> None:
    with contextlib.closing(memory(directory, source)) as kept:
        for offset in offsets:
            kept.add(offset, DIGEST)


def recall(directory: Path, source: Path, offset: int, algorithm: str = "blake3") -> str | None:
    with contextlib.closing(memory(directory, source, algorithm)) as kept:
        return kept.get(offset)


def test_a_digest_is_found_again_by_the_next_process(tmp_path: Path, source: Path) -> None:
    remember(tmp_path / "memory", source, 0, BLOCK)
    assert recall(tmp_path / "memory", source, BLOCK) == DIGEST


def test_without_a_directory_it_lasts_as_long_as_the_object(source: Path) -> None:
    kept = memory(None, source)
    kept.add(0, DIGEST)
    assert kept.get(0) == DIGEST
    assert memory(None, source).get(0) is None


@pytest.mark.parametrize("change", ["content", "time", "replaced"])
def test_a_file_that_changed_is_another_file(tmp_path: Path, source: Path, change: str) -> None:
    remember(tmp_path / "memory", source, 0)
    if change == "content":
        source.write_bytes(b"more content")
    elif change == "time":
        os.utime(source, ns=(OLD_NS + 1, OLD_NS + 1))
    else:
        other = tmp_path / "other"
        other.write_bytes(b"content")
        os.utime(other, ns=(OLD_NS, OLD_NS))
        other.replace(source)
    assert recall(tmp_path / "memory", source, 0) is None


def test_other_digests_are_kept_apart(tmp_path: Path, source: Path) -> None:
    remember(tmp_path / "memory", source, 0)
    assert recall(tmp_path / "memory", source, 0, "sha256") is None


def test_a_file_written_to_just_now_is_not_remembered(tmp_path: Path, source: Path) -> None:
    source.write_bytes(b"content")
    remember(tmp_path / "memory", source, 0)
    assert recall(tmp_path / "memory", source, 0) is None


def test_what_is_forgotten_is_gone(tmp_path: Path, source: Path) -> None:
    with contextlib.closing(memory(tmp_path / "memory", source)) as kept:
        kept.add(0, DIGEST)
        kept.clear()
        assert kept.get(0) is None
    assert os.listdir(tmp_path / "memory") == []


def test_no_damaged_record_is_believed(tmp_path: Path, source: Path) -> None:
    remember(tmp_path / "memory", source, 0, BLOCK)
    (path,) = (tmp_path / "memory").iterdir()
    data = path.read_bytes()
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        damaged, good = (0, BLOCK) if position < len(data) // 2 else (BLOCK, 0)
        assert recall(tmp_path / "memory", source, damaged) is None
        assert recall(tmp_path / "memory", source, good) == DIGEST


def test_a_record_that_is_cut_is_dropped_and_the_next_one_written_in_its_place(
    tmp_path: Path, source: Path
) -> None:
    remember(tmp_path / "memory", source, 0, BLOCK)
    (path,) = (tmp_path / "memory").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    remember(tmp_path / "memory", source, 2 * BLOCK)
    assert recall(tmp_path / "memory", source, BLOCK) is None
    assert recall(tmp_path / "memory", source, 2 * BLOCK) == DIGEST


def test_what_nobody_came_back_for_is_removed(tmp_path: Path, source: Path) -> None:
    remember(tmp_path / "memory", source, 0)
    (path,) = (tmp_path / "memory").iterdir()
    os.utime(path, (0, 0))
    other = tmp_path / "other"
    other.write_bytes(b"other")
    os.utime(other, ns=(OLD_NS, OLD_NS))
    remember(tmp_path / "memory", other, 0)
    assert recall(tmp_path / "memory", source, 0) is None


def test_a_place_that_cannot_be_used_is_no_error(tmp_path: Path, source: Path) -> None:
    (tmp_path / "memory").write_bytes(b"a file")
    remember(tmp_path / "memory", source, 0)
