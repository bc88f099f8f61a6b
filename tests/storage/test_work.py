"""The work for a request is at most proportional to what it names or lists."""

import cProfile
import pstats
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from ftpkit.errors import Code
from ftpkit.osapi import files as os_files
from ftpkit.protocol.names import MAX_NAME
from ftpkit.storage import Store
from tests.storage.stores import Place, ignore, list_files, listed, refused, stage

SHALLOW: Final = 48


def calls(work: Callable[[], object]) -> int:
    """Return how many functions are called: unlike seconds, the same each time."""
    profile = cProfile.Profile()
    profile.runcall(work)
    return int(vars(pstats.Stats(profile))["total_calls"])


def deep(store: Store, depth: int) -> str:
    """Make a tree with a file before and after each of its directories."""
    name = "/".join(["d"] * depth)
    store.mkdir(name)
    for level in range(depth):
        above = "d/" * level
        stage(store, f"{above}e/f", b"")
        stage(store, f"{above}z", b"")
    return name


WORK: Final[dict[str, Callable[[Store, str], object]]] = {
    "list": lambda store, name: listed(store),
    "list the last page": lambda store, name: listed(store, after=f"{name}/y"),
    "stat": lambda store, name: store.stat(name),
    "mkdir": lambda store, name: store.mkdir(f"{name}/new"),
    "put": lambda store, name: stage(store, f"{name}/new/f", b""),
    "put under a link": lambda store, name: missing(store, f"{name}/l/f"),
    "delete": lambda store, name: store.delete("d", recursive=True, progress=ignore),
}


def missing(store: Store, name: str) -> None:
    with refused(Code.NOT_FOUND):
        stage(store, name, b"")


@pytest.mark.skipif(
    not os_files.HAS_DIR_FD, reason="without held directories each name is looked up from the root"
)
@pytest.mark.parametrize("work", WORK)
def test_work_grows_no_faster_than_the_depth_of_a_tree(tmp_path: Path, work: str) -> None:
    counts = []
    for depth in (SHALLOW, 2 * SHALLOW):
        with Place(tmp_path / str(depth)) as place:
            store = place.open()
            name = deep(store, depth)
            (place.root / name / "l").symlink_to(tmp_path)
            counts.append(calls(lambda store=store, name=name: WORK[work](store, name)))  # type: ignore[misc]
    assert counts[1] < 2.5 * counts[0]


def test_names_too_long_for_a_request_are_listed_with_an_error(place: Place) -> None:
    """A tree that is renamed below another repeatedly would make endless lists."""
    store = place.open()
    half = "/".join(["d" * 180] * 12)
    store.mkdir(half)
    stage(store, f"{half}/f", b"")
    store.rename("d" * 180, f"e/{half}", overwrite=False)
    infos = list_files(store)
    assert len(infos) > 12
    assert [info.name for info in infos if info.error] == [infos[-1].name]
    assert len(infos[-2].name) <= MAX_NAME < len(infos[-1].name)
    assert not any(info.name.endswith("/f") for info in infos)
    store.delete("e", recursive=True, progress=ignore)
    assert listed(store) == place.private() == []
