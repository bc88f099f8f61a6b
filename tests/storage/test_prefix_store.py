"""A directory of a store as a store: nothing outside can be seen or reached."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftpkit.errors import Code, RefusedError
from ftpkit.storage import DirectoryStore, Store
from ftpkit.storage.api import UploadSpec
from ftpkit.storage.prefix_store import PrefixStore
from tests.storage.stores import (
    BLOCK,
    JAIL,
    OWNER,
    QuickFiles,
    begin,
    commit,
    fetch,
    ignore,
    listed,
    refused,
    send,
    stage,
)


@pytest.fixture
def whole(tmp_path: Path) -> Iterator[DirectoryStore]:
    with DirectoryStore(tmp_path / "root", QuickFiles()) as whole:
        stage(whole, "unheard/secret", b"secret")
        stage(whole, f"{JAIL}-besides/secret", b"secret")
        yield whole


@pytest.fixture
def jail(whole: DirectoryStore) -> Store:
    return PrefixStore(whole, JAIL)


@contextlib.contextmanager
def says(message: str) -> Iterator[None]:
    with pytest.raises(RefusedError) as caught:
        yield
    assert str(caught.value) == message


def test_an_upload_makes_the_directory(whole: Store, jail: Store) -> None:
    with refused(Code.NOT_FOUND):
        jail.stat("")
    assert stage(jail, "a/f", b"one").name == "a/f"
    assert fetch(whole, f"{JAIL}/a/f") == fetch(jail, "a/f") == b"one"
    assert jail.stat("").kind == "dir"


def test_mkdir_makes_the_directory(whole: Store, jail: Store) -> None:
    jail.mkdir("")
    assert whole.stat(JAIL).kind == "dir"
    assert listed(jail) == []
    assert jail.stat("").name == ""


@pytest.mark.parametrize("recursive", [True, False])
def test_a_list_shows_nothing_outside(jail: Store, recursive: bool) -> None:
    stage(jail, "a", b"")
    stage(jail, "b/c", b"")
    everything = ["a", "b", *(["b/c"] if recursive else [])]
    assert listed(jail, recursive=recursive) == everything
    assert listed(jail, recursive=recursive, after="") == everything
    assert listed(jail, recursive=recursive, after="a") == everything[1:]
    assert listed(jail, recursive=recursive, after="b/c") == []


@pytest.mark.parametrize("name", ["../secret", "..", ".", "/", "a/../../secret", ""])
def test_a_name_that_leads_outside_is_refused(whole: Store, jail: Store, name: str) -> None:
    stage(jail, "f", b"one")
    with refused(Code.BAD_NAME):
        jail.delete(name, recursive=True, progress=ignore)
    with refused(Code.BAD_NAME):
        jail.rename(name, "g", overwrite=True)
    with refused(Code.BAD_NAME):
        jail.rename("f", name, overwrite=True)
    with refused(Code.BAD_NAME):
        stage(jail, name, b"two")
    with refused(Code.BAD_NAME):
        begin(jail, name, 0)
    with refused(Code.BAD_NAME):
        jail.read(name)
    assert fetch(whole, "unheard/secret") == b"secret"
    assert listed(jail) == ["f"]


def test_messages_of_refusals_have_relative_names(jail: Store) -> None:
    stage(jail, "d/f", b"one")
    with says("no such file or directory: 'g'"):
        jail.stat("g")
    with says("no such file or directory: 'g'"):
        jail.read("g")
    with says("no such file or directory: 'g'"):
        listed(jail, "g")
    with says("no such file or directory: 'g'"):
        jail.delete("g", recursive=True, progress=ignore)
    with says("the directory 'd' is not empty"):
        jail.delete("d", recursive=False, progress=ignore)
    with says("'d/f' already exists"):
        jail.rename("d/f", "d/f", overwrite=False)
    with says("'d/f/g' is not a directory, or is below a file"):
        jail.mkdir("d/f/g")
    with says("'d/f' already exists"):
        stage(jail, "d/f", b"two", overwrite=False)
    with says("'d' is a directory"):
        begin(jail, "d", 1)


def test_refusals_at_commit_have_relative_names(jail: Store) -> None:
    staged = jail.stage(UploadSpec(name="f", total=3, overwrite=False), None)
    upload = begin(jail, "f", 3, overwrite=False)
    staged.write(memoryview(b"two"))
    send(upload, 0, b"two")
    stage(jail, "f", b"one")
    with says("'f' already exists"):
        staged.commit()
    with says("'f' already exists"):
        commit(upload, 3)
    staged.discard()
    upload.release()


def test_the_spec_of_an_upload_has_the_relative_name(whole: Store, jail: Store) -> None:
    upload = begin(jail, "d/f", 3)
    send(upload, 0, b"two")
    inner = whole.upload(upload.id, owner=OWNER)
    assert (upload.spec.name, inner.spec.name) == ("d/f", f"{JAIL}/d/f")
    inner.release()
    info = commit(upload, 3)
    upload.release()
    assert info.name == "d/f"
    assert jail.published(upload.id, owner=OWNER) == info


def test_an_upload_opened_twice_is_equal(jail: Store) -> None:
    one, other = begin(jail, "f", 3), begin(jail, "f", 3)
    different = begin(jail, "g", 3)
    assert one == other != different
    assert len({one, other, different}) == 2
    for each in (one, other, different):
        each.release()


def test_an_upload_of_the_same_user_outside_is_not_found(whole: Store, jail: Store) -> None:
    for store in (whole, PrefixStore(whole, "elsewhere"), PrefixStore(whole, f"{JAIL}-besides")):
        upload = begin(store, "f", BLOCK)
        with refused(Code.NOT_FOUND):
            jail.upload(upload.id, owner=OWNER)
        with refused(Code.NOT_FOUND):
            jail.abort(upload.id, owner=OWNER)
        send(upload, 0, bytes(BLOCK))
        commit(upload, BLOCK)
        upload.release()
        assert store.published(upload.id, owner=OWNER)
        assert jail.published(upload.id, owner=OWNER) is None


def test_an_upload_outside_is_released(whole: DirectoryStore, jail: Store) -> None:
    upload = begin(whole, "f", BLOCK)
    with refused(Code.NOT_FOUND):
        jail.upload(upload.id, owner=OWNER)
    upload.release()
    whole.sweep(uploads_s=-1.0, publications_s=0.0)  # of what nobody holds any more
    with refused(Code.NOT_FOUND):
        whole.upload(upload.id, owner=OWNER)
