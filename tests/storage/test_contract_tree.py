"""The contract of every store, part one: names, and what stands under them."""

from dataclasses import replace

import pytest

from ftpkit.errors import Code
from ftpkit.osapi import files as os_files
from ftpkit.storage import Store
from tests.storage.stores import Place, fetch, ignore, list_files, listed, refused, stage

# A step along joined paths costs their whole length.
DEEP = {True: 1500, False: 300}
DEEP_LIST = 120


def test_the_root_is_a_directory(store: Store) -> None:
    info = store.stat("")
    assert (info.kind, info.total) == ("dir", 0)


def test_stat_returns_kind_and_length(store: Store) -> None:
    stage(store, "a/f", b"12345")
    assert (store.stat("a/f").kind, store.stat("a/f").total) == ("file", 5)
    assert (store.stat("a").kind, store.stat("a").total) == ("dir", 0)
    assert store.stat("a/f").name == "a/f"


@pytest.mark.parametrize("name", ["missing", "a/missing", "missing/f", "a/b/c/d"])
def test_a_missing_name_is_not_found(store: Store, name: str) -> None:
    store.mkdir("a")
    with refused(Code.NOT_FOUND):
        store.stat(name)
    with refused(Code.NOT_FOUND):
        store.read(name)
    with refused(Code.NOT_FOUND):
        store.rename(name, "to", overwrite=True)
    with refused(Code.NOT_FOUND):
        store.delete(name, recursive=True, progress=ignore)
    with refused(Code.NOT_FOUND):
        list(store.list_files(name, recursive=True, after=None))


def test_a_file_in_a_path_is_not_a_directory(store: Store) -> None:
    stage(store, "f", b"")
    with refused(Code.NOT_A_DIRECTORY):
        store.stat("f/g")
    with refused(Code.NOT_A_DIRECTORY):
        store.read("f/g")
    with refused(Code.NOT_A_DIRECTORY):
        store.mkdir("f/g")
    with refused(Code.NOT_A_DIRECTORY):
        store.mkdir("f")
    with refused(Code.NOT_A_DIRECTORY):
        stage(store, "f/g/h", b"")
    with refused(Code.NOT_A_DIRECTORY):
        list(store.list_files("f", recursive=False, after=None))
    assert listed(store) == ["f"]


def test_a_directory_cannot_be_read(store: Store) -> None:
    store.mkdir("d")
    with refused(Code.IS_A_DIRECTORY):
        store.read("d")


# entries

NAMES = [
    "a/b", "a/b.c/d", "a/b/c", "a-b", "a.txt", "a!", "a0", "aa", "a/z", "b", "Z", "é/x", "e",
    "z/y/x", "\uffff", "\U00010000", "a/é", "sp ace", "-", "~",
]  # fmt: skip


def full_list(store: Store) -> list[str]:
    for name in ("a/b", "a", "é", "z/y"):
        store.mkdir(name)
    for name in NAMES:
        if name != "a/b":
            stage(store, name, name.encode())
    return listed(store)


def test_a_list_is_in_the_byte_order_of_full_names(store: Store) -> None:
    names = full_list(store)
    assert set(names) == {*NAMES, "a", "é", "z", "z/y", "a/b.c"}
    assert names == sorted(names, key=str.encode)
    assert len(names) == len(set(names))


def test_a_list_of_one_level_has_only_that_level(store: Store) -> None:
    names = full_list(store)
    top = listed(store, recursive=False)
    assert top == [name for name in names if "/" not in name]
    assert listed(store, "a", recursive=False) == ["a/b", "a/b.c", "a/z", "a/é"]
    assert listed(store, "a") == [name for name in names if name.startswith("a/")]


def test_a_list_after_any_name_is_the_tail_of_the_full_list(store: Store) -> None:
    names = full_list(store)
    between = [
        f"{name}{more}" for name in names for more in ("", "\x01", "/", "/\x01", "0", "\U0010ffff")
    ]
    for after in ["", *between]:
        for recursive in (True, False):
            everything = names if recursive else [name for name in names if "/" not in name]
            tail = [name for name in everything if name.encode() > after.encode()]
            assert listed(store, recursive=recursive, after=after) == tail, after


def test_a_list_below_a_directory_goes_on_after_any_name(store: Store) -> None:
    names = [name for name in full_list(store) if name.startswith("a/")]
    for after in ["", "Z", "a", "a/", *names, "a/~", "b", "~"]:
        tail = [name for name in names if name.encode() > after.encode()]
        assert listed(store, "a", after=after) == tail, after


def test_a_list_describes_files_as_stat_does(store: Store) -> None:
    full_list(store)
    for info in list_files(store):
        # Only stat opens the file to see which digest it was stored with.
        assert info == replace(store.stat(info.name), content_digest=None)


def test_an_empty_directory_has_an_empty_list(store: Store) -> None:
    assert listed(store) == []
    store.mkdir("d")
    assert listed(store, "d") == []


def test_names_deleted_while_a_list_is_read_are_left_out(store: Store) -> None:
    for name in ("a/1", "b/1", "b/2", "c"):
        stage(store, name, b"")
    names = []
    for info in store.list_files("", recursive=True, after=None):
        names.append(info.name)
        if info.name == "a":
            store.delete("a", recursive=True, progress=ignore)
        if info.name == "b/1":
            store.delete("b", recursive=True, progress=ignore)
    assert names == ["a", "b", "b/1", "c"]


def test_a_list_that_is_not_read_to_its_end_leaves_nothing_open(store: Store) -> None:
    full_list(store)
    some = store.list_files("", recursive=True, after=None)
    next(some)
    next(some)
    del some


# mkdir


def test_mkdir_makes_parents_and_accepts_an_existing_directory(store: Store) -> None:
    store.mkdir("a/b/c")
    store.mkdir("a/b/c")
    store.mkdir("a")
    assert listed(store) == ["a", "a/b", "a/b/c"]


# rename


def test_rename_moves_a_file_and_makes_parents(store: Store, place: Place) -> None:
    stage(store, "f", b"one")
    store.rename("f", "x/y/g", overwrite=False)
    assert fetch(store, "x/y/g") == b"one"
    assert place.visible() == ["x", "x/y", "x/y/g"]


def test_rename_moves_a_directory_with_its_content(store: Store) -> None:
    stage(store, "a/b/f", b"one")
    for overwrite, source, to in [(False, "a", "x/y"), (True, "x/y", "z")]:
        store.rename(source, to, overwrite=overwrite)
    assert fetch(store, "z/b/f") == b"one"
    assert listed(store) == ["x", "z", "z/b", "z/b/f"]


def test_rename_replaces_a_file_only_if_asked_to(store: Store) -> None:
    stage(store, "f", b"one")
    stage(store, "g", b"two")
    with refused(Code.EXISTS):
        store.rename("f", "g", overwrite=False)
    assert (fetch(store, "f"), fetch(store, "g")) == (b"one", b"two")
    store.rename("f", "g", overwrite=True)
    assert listed(store) == ["g"]
    assert fetch(store, "g") == b"one"


@pytest.mark.parametrize("overwrite", [True, False])
def test_rename_never_replaces_a_directory_with_a_file(store: Store, overwrite: bool) -> None:
    stage(store, "f", b"one")
    store.mkdir("d")
    with refused(Code.IS_A_DIRECTORY if overwrite else Code.EXISTS):
        store.rename("f", "d", overwrite=overwrite)
    assert listed(store) == ["d", "f"]


@pytest.mark.parametrize("overwrite", [True, False])
def test_rename_never_replaces_a_file_with_a_directory(store: Store, overwrite: bool) -> None:
    stage(store, "f", b"one")
    stage(store, "d/g", b"two")
    with refused(Code.NOT_A_DIRECTORY if overwrite else Code.EXISTS):
        store.rename("d", "f", overwrite=overwrite)
    assert (fetch(store, "f"), fetch(store, "d/g")) == (b"one", b"two")


@pytest.mark.parametrize("overwrite", [True, False])
def test_rename_never_merges_directories(store: Store, overwrite: bool) -> None:
    stage(store, "d/f", b"one")
    stage(store, "e/g", b"two")
    with refused(Code.NOT_EMPTY if overwrite else Code.EXISTS):
        store.rename("d", "e", overwrite=overwrite)
    assert listed(store) == ["d", "d/f", "e", "e/g"]


@pytest.mark.parametrize("to", ["d/x", "d/e/x", "d/e"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_directory_cannot_be_moved_into_itself(store: Store, to: str, overwrite: bool) -> None:
    stage(store, "d/e/f", b"one")
    before = listed(store)
    with refused(Code.BAD_REQUEST):
        store.rename("d", to, overwrite=overwrite)
    assert listed(store) == before


def test_a_name_that_only_begins_alike_is_not_inside(store: Store) -> None:
    store.mkdir("d")
    store.rename("d", "d-x/y", overwrite=False)
    assert listed(store) == ["d-x", "d-x/y"]


@pytest.mark.parametrize("name", ["d", "f"])
def test_rename_to_itself_changes_nothing(store: Store, name: str) -> None:
    stage(store, "d/g", b"two")
    stage(store, "f", b"one")
    store.rename(name, name, overwrite=True)
    with refused(Code.EXISTS):
        store.rename(name, name, overwrite=False)
    assert listed(store) == ["d", "d/g", "f"]
    assert fetch(store, "f") == b"one"


# delete


def test_delete_removes_a_file(store: Store) -> None:
    stage(store, "a/f", b"one")
    store.delete("a/f", recursive=False, progress=ignore)
    assert listed(store) == ["a"]
    stage(store, "f", b"one")
    store.delete("f", recursive=True, progress=ignore)
    assert listed(store) == ["a"]


def test_delete_removes_a_full_directory_only_if_asked_to(store: Store, place: Place) -> None:
    stage(store, "d/e/f", b"one")
    with refused(Code.NOT_EMPTY):
        store.delete("d", recursive=False, progress=ignore)
    assert fetch(store, "d/e/f") == b"one"
    seen: list[tuple[int, int]] = []
    store.delete("d", recursive=True, progress=lambda done, total: seen.append((done, total)))
    assert listed(store) == []
    assert seen
    assert all(done <= total for done, total in seen)
    assert place.private() == []


def test_delete_removes_an_empty_directory(store: Store) -> None:
    store.mkdir("d/e")
    store.delete("d/e", recursive=False, progress=ignore)
    assert listed(store) == ["d"]


def test_a_very_deep_tree_is_made_moved_and_deleted(store: Store, place: Place) -> None:
    deepest = "/".join(["d"] * DEEP[os_files.HAS_DIR_FD])
    store.mkdir(deepest)
    stage(store, f"{deepest}/f", b"deep")
    assert fetch(store, f"{deepest}/f") == b"deep"
    store.rename("d/d", "e", overwrite=False)
    store.delete("d", recursive=False, progress=ignore)
    store.delete("e", recursive=True, progress=ignore)
    assert listed(store) == []
    assert place.private() == []


def test_a_deep_tree_is_listed_whole_and_from_its_end(store: Store) -> None:
    deepest = "/".join(["d"] * DEEP_LIST)
    stage(store, f"{deepest}/f", b"deep")
    names = listed(store)
    assert names == ["/".join(["d"] * depth) for depth in range(1, DEEP_LIST + 1)] + [
        f"{deepest}/f"
    ]
    assert listed(store, after=deepest) == [f"{deepest}/f"]
    store.delete("d", recursive=True, progress=ignore)


def test_a_wide_tree_is_deleted_whole(store: Store, place: Place) -> None:
    for i in range(60):
        stage(store, f"d/{i % 7}/{i}", b"")
    store.delete("d", recursive=True, progress=ignore)
    assert listed(store) == []
    assert place.private() == []


# read


@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_a_reader_reads_any_range(store: Store, size: int) -> None:
    data = bytes(i * 7 % 251 for i in range(size))
    stage(store, "f", data)
    with store.read("f") as reader:
        assert reader.info == store.stat("f")
        for offset in sorted({0, size // 3, max(size - 1, 0), size, size + 10}):
            buffer = bytearray(1000)
            count = reader.read_into(memoryview(buffer), offset)
            assert bytes(buffer[:count]) == data[offset : offset + 1000]
        assert reader.unchanged()


def test_a_reader_stays_with_the_file_it_opened(store: Store) -> None:
    stage(store, "f", b"old")
    with store.read("f") as reader:
        stage(store, "f", b"newer")
        store.delete("f", recursive=False, progress=ignore)
        buffer = bytearray(10)
        assert reader.read_into(memoryview(buffer), 0) == 3
        assert buffer[:3] == b"old"
        assert reader.unchanged()
        assert reader.info.total == 3
