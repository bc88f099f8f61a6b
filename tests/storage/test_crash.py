"""After a crash at any point, the store keeps what WIRE.md section 7 promises."""

import ast
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

import ftpkit.storage
from ftpkit.osapi import files as os_files
from tests.storage import crash_mutations as mutations
from tests.storage.crash_disk import (
    SECTOR,
    STALE,
    TOP,
    Describe,
    Disk,
    Event,
    HardLink,
    Image,
    Make,
    Remove,
    Rename,
    Resize,
    Sync,
    SyncDirectory,
    Write,
)
from tests.storage.crash_explore import Explorer, Scenario
from tests.storage.crash_promise import BrokenPromiseError
from tests.storage.crash_record import LinkingFiles, RecordingFiles
from tests.storage.crash_scenarios import SCENARIOS

pytestmark = pytest.mark.skipif(not os_files.HAS_DIR_FD, reason="directories cannot be synced here")

BY_NAME: Final = {scenario.name: scenario for scenario in SCENARIOS}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_a_crash_breaks_no_promise(scenario: Scenario, tmp_path: Path) -> None:
    Explorer(tmp_path, limit=16, deeper=2, seed=1).explore(scenario)


@pytest.mark.parametrize(
    "scenario",
    [
        "put without overwrite",
        "upload without overwrite",
        "rename to a free name",
        "rename beside",
    ],
)
def test_a_crash_between_the_two_steps_of_a_move_breaks_no_promise(
    scenario: str, tmp_path: Path
) -> None:
    explorer = Explorer(tmp_path, limit=16, deeper=8, seed=1, files=LinkingFiles)
    explorer.explore(BY_NAME[scenario])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_many_crashes_break_no_promise(scenario: Scenario, seed: int, tmp_path: Path) -> None:
    Explorer(tmp_path, limit=120, deeper=14, seed=seed).explore(scenario)


@pytest.mark.parametrize(
    ("files", "scenario"),
    [
        (mutations.NoFileSync, "put"),
        (mutations.NoFileSync, "upload over a file"),
        (mutations.NoDirectorySync, "delete"),
        (mutations.SyncAfterRename, "put over a file"),
        (mutations.RenameInTwoSteps, "rename over a file"),
        (mutations.RenameInTwoSteps, "put over a file"),
        (mutations.NoNameSyncAfterRename, "put"),
        (mutations.NoNameSyncAfterRename, "delete of all"),
        (mutations.NoNameSyncAfterMkdir, "mkdir"),
        (mutations.NoNameSyncAfterMkdir, "put without overwrite"),
        (mutations.NameSyncAfterUnlink, "rename to a free name"),
        (mutations.NoUploadNameSync, "upload in parts"),
        (mutations.NoUploadNameSync, "upload"),
        (mutations.NoStagingSync, "delete of all"),
        (mutations.NoDataSyncBeforeCheckpoint, "upload in parts"),
        (mutations.DataSyncAfterCheckpoint, "upload of many blocks"),
        (mutations.NoCheckpointSync, "upload in parts"),
        (mutations.NoForgetSync, "upload of a file that changes"),
        (mutations.NoPreparedSync, "upload"),
        (mutations.NoRecoverySync, "upload of a file that changes"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else value,
)
def test_explorer_catches_a_faulty_store(
    files: type[RecordingFiles], scenario: str, tmp_path: Path
) -> None:
    explorer = Explorer(tmp_path, limit=24, deeper=30, seed=3, files=files)
    with pytest.raises(BrokenPromiseError):
        explorer.explore(BY_NAME[scenario])


# The model: what its rules allow after a few events, and what they do not.

A, B, FILE, OTHER = 1, 2, 3, 4
DIRECTORIES: Final = [Make(TOP, "a", A, True, 0o777), Make(TOP, "b", B, True, 0o777)]
MADE: Final = Make(A, "file", FILE, False, 0o600)


def found(stable: Sequence[Event], *events: Event) -> set[tuple[str, ...]]:
    """Return all sets of names that a crash may leave, after ``stable`` has become so."""
    return {
        tuple(path for path, label in image.walk() if label in image.files)
        for image in images(stable, *events)
    }


def contents(stable: Sequence[Event], *events: Event) -> set[bytes]:
    """Return all contents of FILE that a crash may leave."""
    return {image.files[FILE].content for image in images(stable, *events) if FILE in image.files}


def images(stable: Sequence[Event], *events: Event) -> list[Image]:
    disk = Disk()
    for event in [*DIRECTORIES, *stable]:
        disk.apply(event)
    disk.settle()
    for event in events:
        disk.apply(event)
    return list(disk.crashes(random.Random(0), 10_000))


def test_a_name_may_be_lost_until_its_directory_is_synced() -> None:
    assert found([], MADE) == {(), ("a/file",)}
    assert found([], MADE, Sync(FILE, data=False)) == {(), ("a/file",)}
    assert found([], MADE, SyncDirectory(B)) == {(), ("a/file",)}
    assert found([], MADE, SyncDirectory(A)) == {("a/file",)}


def test_a_sync_of_a_directory_does_not_keep_its_own_name() -> None:
    inner = Make(A, "inner", OTHER, True, 0o777)
    file = Make(OTHER, "file", FILE, False, 0o600)
    assert found([], inner, file, SyncDirectory(OTHER)) == {(), ("a/inner/file",)}


def test_names_may_be_lost_in_any_order() -> None:
    other = Make(B, "other", OTHER, False, 0o600)
    every = {(), ("a/file",), ("b/other",), ("a/file", "b/other")}
    assert found([], MADE, other) == every
    assert found([], MADE, Make(A, "other", OTHER, False, 0o600)) == {
        (), ("a/file",), ("a/other",), ("a/file", "a/other")
    }  # fmt: skip


def test_a_rename_replaces_in_one_step_and_leaves_a_name() -> None:
    stable = [MADE, Make(A, "to", OTHER, False, 0o600)]
    assert found(stable, Rename(A, "file", A, "to")) == {("a/file", "a/to"), ("a/to",)}
    there = Rename(A, "file", B, "to")
    assert found([MADE], there) == {("a/file",), ("a/file", "b/to"), ("b/to",)}
    assert found([MADE], there, SyncDirectory(B)) == {("a/file", "b/to"), ("b/to",)}
    assert found([MADE], there, SyncDirectory(A)) == {("b/to",)}


def test_a_directory_moves_in_one_step() -> None:
    stable = [Make(A, "inner", OTHER, True, 0o777), Make(OTHER, "file", FILE, False, 0o600)]
    moved = found(stable, Rename(A, "inner", B, "to"))
    assert moved == {("a/inner/file",), ("b/to/file",)}


def test_a_link_may_be_lost_though_the_first_name_is_gone() -> None:
    events = HardLink(A, "file", B, "to"), Remove(A, "file")
    assert found([MADE], *events) == {("a/file",), ("a/file", "b/to"), ("b/to",), ()}


def test_a_directory_goes_after_what_was_in_it() -> None:
    gone = found([MADE], Rename(A, "file", B, "to"), Remove(TOP, "a"))
    assert gone == {("a/file",), ("a/file", "b/to"), ("b/to",)}


def test_bytes_and_length_may_be_lost_apart_until_they_are_synced() -> None:
    write = Write(FILE, 0, b"x" * SECTOR + b"y")
    lost = contents([MADE], write)
    first, last = {bytes(SECTOR), STALE, b"x" * SECTOR}, {b"\0", STALE[:1], b"y"}
    assert lost == {b""} | {one + two for one in first for two in last}
    for data in (True, False):
        assert contents([MADE], write, Sync(FILE, data=data)) == {write.data}
    over = Write(FILE, 0, b"z")
    assert contents([MADE, write], over) == {write.data, b"z" + write.data[1:]}
    cut = contents([MADE, write], Resize(FILE, 1))
    assert cut == {write.data, b"x", write.data[:SECTOR] + b"\0", b"x" + bytes(SECTOR)} | {
        b"x" + bytes(SECTOR - 1) + b"y"
    }


def test_attributes_need_more_than_a_sync_of_the_data() -> None:
    note = Describe(FILE, 0o644, 7, b"note")
    every = {(0o600, None), (0o600, b"note"), (0o644, None), (0o644, b"note")}
    for events, allowed in (
        ([note], every),
        ([note, Sync(FILE, data=True)], every),
        ([note, Sync(FILE, data=False)], {(0o644, b"note")}),
    ):
        files = [image.files[FILE] for image in images([MADE], *events)]
        assert {(file.mode, file.note) for file in files} == allowed


# The seam: what the explorer does not see does not happen.

CHANGES_NOTHING: Final = {
    "os": {
        "PathLike", "close", "curdir", "devnull", "error", "fsencode", "fspath", "fstat", "geteuid",
        "open", "pardir", "path", "scandir", "stat", "stat_result", "statvfs", "strerror",
    },
    "os_files": {
        "get_xattr", "lock", "may_change", "mount_id", "read_at", "start_readahead",
        "start_writeback",
    },
}  # fmt: skip
HIDING: Final = {"os", "ftpkit.osapi.files"}
OPENS_TO_CHANGE: Final = {"O_CREAT", "O_TRUNC", "O_APPEND"}
FOREIGN: Final = {"fcntl", "io", "mmap", "pathlib", "shutil", "subprocess", "tempfile"}


def unseen_changes(tree: ast.AST) -> Iterator[str]:
    """Yield what a module outside of Files does that could change a disk."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FOREIGN)
        elif isinstance(node, ast.ImportFrom) and node.module in HIDING | FOREIGN:
            yield f"from {node.module}"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            allowed = CHANGES_NOTHING.get(node.value.id, {node.attr})
            constant = node.attr.isupper() and node.attr not in OPENS_TO_CHANGE
            if node.attr not in allowed and not constant:
                yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            modes = [arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant)]
            if node.func.id == "open" and modes != ["rb"]:
                yield "open to write"


def storage_modules() -> Iterator[Path]:
    yield from sorted(Path(ftpkit.storage.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", list(storage_modules()), ids=lambda path: path.name)
def test_every_change_goes_through_files(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    # Files itself, and the flags that its create() opens with.
    own = {"FileSystem", "_CREATE"} if path.name == "filesystem.py" else set()
    tree.body = [node for node in tree.body if not own & names_of(node)]
    assert list(unseen_changes(tree)) == []


def names_of(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.unlink('x')",
        "import os\nos.open('x', os.O_RDWR | os.O_CREAT)",
        "import os\nos.makedirs('x')",
        "from os import unlink",
        "from ftpkit.osapi import files as os_files\nos_files.write_at(1, b'', 0)",
        "from ftpkit.osapi.files import append",
        "import shutil",
        "open('x', 'wb')",
        "open('x')",
    ],
)
def test_a_planted_change_is_seen(source: str) -> None:
    assert len(list(unseen_changes(ast.parse(source)))) == 1
