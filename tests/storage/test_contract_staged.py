"""The contract of every store, part two: files that arrive in one piece."""

import os
import threading

import pytest

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.digest import digest_of
from ftpkit.storage import Staged, Store
from ftpkit.storage.api import UploadSpec
from tests.storage.stores import BLOCK, Place, blocks_of, fetch, ignore, refused, send, stage

SIZES = [0, 1, 999_999]


@pytest.mark.parametrize("algorithm", ["blake3", "sha256"])
@pytest.mark.parametrize("size", SIZES)
def test_a_file_with_the_right_digest_is_published(
    store: Store, place: Place, size: int, algorithm: str
) -> None:
    data = bytes(i % 251 for i in range(size))
    publication = stage(store, "a/b/f", data, digest=digest_of(data, algorithm))
    assert fetch(store, "a/b/f") == data
    assert publication == store.stat("a/b/f")
    assert publication.content_digest == digest_of(data, algorithm)
    assert place.private() == []


@pytest.mark.parametrize("size", SIZES)
def test_commit_returns_the_digest_that_was_not_given(store: Store, size: int) -> None:
    data = bytes(size)
    assert stage(store, "f", data).content_digest == digest_of(data)


@pytest.mark.parametrize("size", SIZES)
def test_a_wrong_digest_leaves_the_old_file_and_nothing_else(
    store: Store, place: Place, size: int
) -> None:
    stage(store, "f", b"old")
    before = store.stat("f")
    with refused(Code.DIGEST_MISMATCH):
        stage(store, "f", bytes(size), digest=digest_of(b"other"))
    with refused(Code.DIGEST_MISMATCH):
        stage(store, "new/g", bytes(size), digest=digest_of(b"other"))
    assert store.stat("f") == before
    assert fetch(store, "f") == b"old"
    assert place.visible() == ["f"]
    assert place.private() == []


def test_an_unknown_algorithm_is_refused_before_anything_is_made(
    store: Store, place: Place
) -> None:
    with refused(Code.UNSUPPORTED):
        store.stage(UploadSpec(name="f", total=0), "md99:00")
    assert place.visible() == place.private() == []


def test_discard_leaves_nothing_and_can_be_repeated(store: Store, place: Place) -> None:
    stage(store, "f", b"old")
    staged = store.stage(UploadSpec(name="f", total=3), None)
    staged.write(memoryview(b"new"))
    assert place.visible() == ["f"]
    staged.discard()
    staged.discard()
    assert place.private() == []
    assert fetch(store, "f") == b"old"


def test_discard_after_commit_keeps_the_file(store: Store) -> None:
    staged = store.stage(UploadSpec(name="f", total=3), None)
    staged.write(memoryview(b"new"))
    staged.commit()
    staged.discard()
    assert fetch(store, "f") == b"new"


def test_the_name_does_not_exist_before_commit(store: Store) -> None:
    staged = store.stage(UploadSpec(name="d/f", total=3), None)
    staged.write(memoryview(b"new"))
    with refused(Code.NOT_FOUND):
        store.stat("d/f")
    staged.discard()


# What stands under the name already


def test_an_existing_name_is_refused_early_without_overwrite(store: Store) -> None:
    stage(store, "f", b"one")
    with refused(Code.EXISTS):
        store.stage(UploadSpec(name="f", total=0, overwrite=False), None)
    with refused(Code.EXISTS):
        store.begin(UploadSpec(name="f", total=0, overwrite=False), owner="", block=BLOCK)


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_file_never_replaces_a_directory(store: Store, overwrite: bool) -> None:
    store.mkdir("d")
    with refused(Code.IS_A_DIRECTORY if overwrite else Code.EXISTS):
        stage(store, "d", b"", overwrite=overwrite)


def race(barrier: threading.Barrier, file: Staged, outcomes: list[str], which: int) -> None:
    barrier.wait()
    try:
        file.commit()
        outcomes[which] = "won"
    except RefusedError as refusal:
        outcomes[which] = refusal.code


def test_of_two_commits_without_overwrite_exactly_one_wins(store: Store, place: Place) -> None:
    for number in range(10):
        staged = [
            store.stage(UploadSpec(name=f"f{number}", total=1, overwrite=False), None) for _ in "ab"
        ]
        for file, content in zip(staged, (b"a", b"b"), strict=True):
            file.write(memoryview(content))
        barrier = threading.Barrier(2)
        outcomes = ["", ""]
        threads = [
            threading.Thread(target=race, args=(barrier, staged[which], outcomes, which))
            for which in (0, 1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for file in staged:
            file.discard()
        assert sorted(outcomes) == [Code.EXISTS, "won"]
        assert fetch(store, f"f{number}") == (b"a", b"b")[outcomes.index("won")]
    assert place.private() == []


def test_commit_makes_parents_that_were_deleted_meanwhile(store: Store) -> None:
    store.mkdir("d")
    staged = store.stage(UploadSpec(name="d/f", total=0), None)
    store.delete("d", recursive=True, progress=ignore)
    staged.commit()
    assert fetch(store, "d/f") == b""


# What travels with a file


@pytest.mark.parametrize("mode", [0o600, 0o755, 0o777, 0o400])
@pytest.mark.parametrize("method", ["stage", "begin"])
def test_mode_and_mtime_travel_with_the_file(store: Store, mode: int, method: str) -> None:
    mtime = 1_234_567_890_123_456_789
    spec = UploadSpec(name="f", total=3, mode=mode, mtime=mtime)
    if method == "stage":
        staged = store.stage(spec, None)
        staged.write(memoryview(b"one"))
        info = staged.commit()
    else:
        upload = store.begin(spec, owner="", block=BLOCK)
        send(upload, 0, b"one")
        info = upload.commit(3, None, None, ignore)
        upload.release()
    assert info == store.stat("f")
    assert info.mtime == mtime
    if hasattr(os, "fchmod"):
        assert info.mode == mode


@pytest.mark.parametrize("method", ["stage", "begin"])
def test_the_version_changes_with_every_replacement(store: Store, method: str) -> None:
    versions = set()
    for number in range(10):
        data = bytes([number])
        if method == "stage":
            stage(store, "f", data, mtime=1)
        else:
            upload = store.begin(UploadSpec(name="f", total=1, mtime=1), owner="", block=BLOCK)
            for offset, block in blocks_of(data).items():
                send(upload, offset, block)
            upload.commit(1, None, None, ignore)
            upload.release()
        versions.add(store.stat("f").version)
        assert store.stat("f").version in versions
    assert len(versions) == 10
