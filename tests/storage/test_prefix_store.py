"""A directory of a store as a store: what lies around it is out of reach, and out of sight."""

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


def test_what_is_put_makes_the_directory(whole: Store, jail: Store) -> None:
    with refused(Code.NOT_FOUND):
        jail.stat("")
    assert stage(jail, "a/f", b"one").name == "a/f"
    assert fetch(whole, f"{JAIL}/a/f") == fetch(jail, "a/f") == b"one"
    assert jail.stat("").kind == "dir"


def test_it_is_made_on_demand_alone(whole: Store, jail: Store) -> None:
    jail.mkdir("")
    assert whole.stat(JAIL).kind == "dir"
    assert listed(jail) == []
    assert jail.stat("").name == ""


@pytest.mark.parametrize("recursive", [True, False])
def test_a_list_shows_nothing_around_it(jail: Store, recursive: bool) -> None:
    stage(jail, "a", b"")
    stage(jail, "b/c", b"")
    everything = ["a", "b", *(["b/c"] if recursive else [])]
    assert listed(jail, recursive=recursive) == everything
    assert listed(jail, recursive=recursive, after="") == everything
    assert listed(jail, recursive=recursive, after="a") == everything[1:]
    assert listed(jail, recursive=recursive, after="b/c") == []


@pytest.mark.parametrize("name", ["../secret", "..", ".", "/", "a/../../secret", ""])
def test_the_way_up_is_shut_whoever_has_checked_the_name(
    whole: Store, jail: Store, name: str
) -> None:
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


def test_refusals_speak_of_names_in_here(jail: Store) -> None:
    stage(jail, "d/f", b"one")
    with says("there is no 'g'"):
        jail.stat("g")
    with says("there is no 'g'"):
        jail.read("g")
    with says("there is no 'g'"):
        listed(jail, "g")
    with says("there is no 'g'"):
        jail.delete("g", recursive=True, progress=ignore)
    with says("the directory 'd' is not empty"):
        jail.delete("d", recursive=False, progress=ignore)
    with says("'d/f' exists already"):
        jail.rename("d/f", "d/f", overwrite=False)
    with says("a part of 'd/f/g' is not a directory"):
        jail.mkdir("d/f/g")
    with says("'d/f' exists already"):
        stage(jail, "d/f", b"two", overwrite=False)
    with says("'d' is a directory"):
        begin(jail, "d", 1)


def test_what_comes_to_stand_there_late_is_told_by_its_name_in_here(jail: Store) -> None:
    staged = jail.stage(UploadSpec(name="f", total=3, overwrite=False), None)
    upload = begin(jail, "f", 3, overwrite=False)
    staged.write(memoryview(b"two"))
    send(upload, 0, b"two")
    stage(jail, "f", b"one")
    with says("'f' exists already"):
        staged.commit()
    with says("'f' exists already"):
        commit(upload, 3)
    staged.discard()
    upload.release()


def test_an_upload_tells_its_name_in_here_and_keeps_the_whole_one(
    whole: Store, jail: Store
) -> None:
    upload = begin(jail, "d/f", 3)
    send(upload, 0, b"two")
    inner = whole.upload(upload.id, owner=OWNER)
    assert (upload.spec.name, inner.spec.name) == ("d/f", f"{JAIL}/d/f")
    inner.release()
    info = commit(upload, 3)
    upload.release()
    assert info.name == "d/f"
    assert jail.published(upload.id, owner=OWNER) == info


def test_two_holds_on_one_upload_are_the_same(jail: Store) -> None:
    one, other = begin(jail, "f", 3), begin(jail, "f", 3)
    different = begin(jail, "g", 3)
    assert one == other != different
    assert len({one, other, different}) == 2
    for each in (one, other, different):
        each.release()


def test_an_upload_of_the_same_user_from_elsewhere_is_not_found(whole: Store, jail: Store) -> None:
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


def test_a_hold_that_was_not_found_is_given_back(whole: DirectoryStore, jail: Store) -> None:
    upload = begin(whole, "f", BLOCK)
    with refused(Code.NOT_FOUND):
        jail.upload(upload.id, owner=OWNER)
    upload.release()
    whole.sweep(uploads_s=-1.0, publications_s=0.0)  # of what nobody holds any more
    with refused(Code.NOT_FOUND):
        whole.upload(upload.id, owner=OWNER)
