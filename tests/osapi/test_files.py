"""Files and descriptors, with the calls of this system and, in a run of its own, with fallbacks."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftpkit.osapi import files as os_files


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A file that is open to read and write."""
    number = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT | os_files.O_BINARY)
    yield number
    os.close(number)


def test_bytes_are_written_and_read_at_any_offset(fd: int) -> None:
    os_files.write_at(fd, memoryview(b"world"), 6)
    os_files.write_at(fd, memoryview(b"hello"), 0)
    buffer = memoryview(bytearray(20))
    assert os_files.read_at(fd, buffer, 0) == 11
    assert bytes(buffer[:11]) == b"hello\0world"
    assert os_files.read_at(fd, buffer, 11) == 0


def test_append_writes_at_the_end_wherever_the_position_is(fd: int) -> None:
    os_files.append(fd, b"one")
    os.lseek(fd, 0, os.SEEK_SET)
    os_files.append(fd, b"two")
    assert os.pread(fd, 10, 0) == b"onetwo" if hasattr(os, "pread") else os.fstat(fd).st_size == 6


def test_memory_is_zero_until_it_is_written() -> None:
    memory = os_files.lazy_memory(100_000)
    assert len(memory) == 100_000
    assert not any(memory)
    memory[-1] = 1
    assert memory[-1] == 1


def test_the_calls_that_give_advice_or_flush_change_nothing(fd: int, tmp_path: Path) -> None:
    os_files.write_at(fd, memoryview(b"abc"), 0)
    os_files.start_writeback(fd, 0, 3)
    os_files.start_readahead(fd, 0, 3)
    os_files.sync_data(fd)
    os_files.sync_directory(str(tmp_path))
    assert (tmp_path / "f").read_bytes() == b"abc"


def test_metadata_is_set_by_descriptor_or_path(fd: int, tmp_path: Path) -> None:
    path = str(tmp_path / "f")
    os_files.set_mtime(fd, path, 1_234_567_890_000_000_000)
    os_files.set_mode(fd, path, 0o640)
    status = os.fstat(fd)
    assert (status.st_mtime_ns, status.st_mode & 0o777) == (1_234_567_890_000_000_000, 0o640)


def test_an_attribute_is_kept_or_nothing_is_returned(fd: int) -> None:
    os_files.set_xattr(fd, "ftpkit-test", b"value")
    assert os_files.get_xattr(fd, "ftpkit-test") in (b"value", None)
    assert os_files.get_xattr(fd, "ftpkit-other") is None


def test_a_rename_replaces_nothing(tmp_path: Path) -> None:
    if not os_files.O_DIRECTORY:
        pytest.skip("directories cannot be opened here")
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    directory = os.open(tmp_path, os.O_RDONLY | os_files.O_DIRECTORY)
    try:
        with pytest.raises((FileExistsError, NotImplementedError)):
            os_files.rename_noreplace(directory, "a", directory, "b")
        assert (tmp_path / "b").read_text() == "b"
        try:
            os_files.rename_noreplace(directory, "a", directory, "c")
        except NotImplementedError:
            pytest.skip("this system or file system has no such rename")
        assert (tmp_path / "c").read_text() == "a"
    finally:
        os.close(directory)


def test_a_secret_file_exists_for_its_block_only() -> None:
    with os_files.secret_file(b"secret") as path:
        assert Path(path).read_bytes() == b"secret"
    assert not os.path.exists(path)


def test_a_lock_excludes_another_open_file(fd: int, tmp_path: Path) -> None:
    if not os_files.HAS_LOCKS:
        with os_files.lock(fd) as held:
            assert held is None
        return
    other = os.open(tmp_path / "f", os.O_RDWR)
    try:
        with os_files.lock(fd) as held, os_files.lock(other) as too:
            assert (held, too) == (True, False)
            assert os_files.is_locked(other)
        assert not os_files.is_locked(other)
    finally:
        os.close(other)
