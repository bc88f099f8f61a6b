"""The stores that the contract is for."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ftpkit import system
from ftpkit.storage import DirectoryStore
from tests.storage.stores import Place, take_powers

HELD = "held-descriptors"
JOINED = "joined-paths"


@pytest.fixture(params=[HELD, JOINED])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """A place for each kind of store; one kind more is one parameter more."""
    if request.param == HELD and not system.HAS_DIR_FD:
        pytest.skip("there are no held directory descriptors here")
    if request.param == JOINED:
        take_powers(monkeypatch)
    with Place(tmp_path / "root") as place:
        yield place


@pytest.fixture
def store(place: Place) -> DirectoryStore:
    return place.open()
