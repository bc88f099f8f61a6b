"""Fixtures: the kinds of store that the contract holds for."""

import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftpkit.osapi import files as os_files
from ftpkit.storage import Store
from tests.storage.stores import JAIL, MemoryPlace, Place, take_powers

HELD = "held-descriptors"
JOINED = "joined-paths"
UNDER = "under-a-directory"
MEMORY = "memory"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the contract with every kind of store, and the other tests with directory stores."""
    if "place" in metafunc.fixturenames:
        name = metafunc.module.__name__
        kinds = [JOINED]
        if os_files.HAS_DIR_FD:
            kinds += [HELD, UNDER] if "contract" in name or name.endswith("test_jail") else [HELD]
        if "contract" in name:
            kinds.append(MEMORY)
        metafunc.parametrize("place", kinds, indirect=True)


@pytest.fixture
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """A place with one kind of store."""
    if request.param == JOINED:
        take_powers(monkeypatch)
    top = tmp_path / "root"
    if request.param == MEMORY:
        yield MemoryPlace(top)
        return
    with Place(top, JAIL if request.param == UNDER else "") as place:
        yield place


@pytest.fixture
def store(place: Place) -> Store:
    return place.store()


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A root that a user without privileges serves."""
    if not hasattr(os, "seteuid") or os.geteuid() != 0:
        pytest.skip("changing the user takes root")
    importlib.import_module("ctypes")  # later its files may be unreadable
    top = Path(tempfile.mkdtemp())
    os.chown(top, 65534, 65534)
    os.seteuid(65534)
    try:
        yield top
    finally:
        os.seteuid(0)
        shutil.rmtree(top)
