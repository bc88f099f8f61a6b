"""Swapping files while requests run: nothing outside is read or changed."""

import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from ftpkit.errors import Code, RefusedError
from ftpkit.osapi import files as os_files
from ftpkit.protocol.digest import digest_of
from ftpkit.storage import DirectoryStore
from ftpkit.storage.api import offer_basis
from tests.storage.stores import (
    OWNER,
    Place,
    begin,
    commit,
    fetch,
    ignore,
    list_files,
    send,
    stage,
)
from tests.storage.test_jail import seen
from tests.support.attacker import ATTACKS, attacker

pytestmark = pytest.mark.skipif(
    not os_files.HAS_DIR_FD or not hasattr(os, "mkfifo"),
    reason="without held directory descriptors a race can be lost",
)

SECRET: Final = b"secret" * 1000
MINE: Final = (b"inside", b"new")
PRIVATE: Final = ("staging", "uploads", "published", "journal", "data", "secret")
LIMIT_S: Final = 60.0


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory that must neither be read nor changed, with the same names as the root."""
    path = tmp_path / "outside"
    for name in ("f", "d/f", "d/e/f", "secret", "d/secret", "d/e/secret"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(SECRET)
    for name in (".ftpkit/staging", ".ftpkit/uploads", ".ftpkit/published"):
        (path / name).mkdir(parents=True)
    return path


class Visitor:
    """Makes all kinds of requests, and checks that each result is from inside the root."""

    def __init__(self, store: DirectoryStore) -> None:
        self.store = store
        self.outcomes: Counter[str] = Counter()
        self.fault: BaseException | None = None

    def visit(self, rounds: int, seed: str) -> None:
        """Make each request once, in another order each round."""
        order = random.Random(seed)
        try:
            for _ in range(rounds):
                work = self._work()
                order.shuffle(work)
                for each in work:
                    self._attempt(each)
        except BaseException as error:  # noqa: BLE001  the test raises it
            self.fault = error

    def _attempt(self, work: Callable[[], object]) -> None:
        try:
            work()
        except RefusedError as refusal:
            self.outcomes[refusal.code] += 1
        else:
            self.outcomes["done"] += 1

    def _work(self) -> list[Callable[[], object]]:
        store = self.store
        work: list[Callable[[], object]] = [
            self._list,
            partial(self._list, "d"),
            partial(self._list, "d/spare"),
            partial(store.mkdir, "d/e/n"),
            partial(store.delete, "d/e", recursive=True, progress=ignore),
            partial(store.delete, "d", recursive=True, progress=ignore),
            partial(store.rename, "d/e", "g", overwrite=True),
            partial(store.rename, "g", "d/e", overwrite=False),
        ]
        for name in ("f", "d/f", "d/e/f"):
            work += [
                partial(self._read, name),
                partial(self._stat, name),
                partial(stage, store, name, MINE[0]),
                partial(stage, store, name, MINE[1], overwrite=False),
                partial(self._upload, name),
                partial(self._resume, name),
                partial(store.rename, name, "d/h", overwrite=True),
                partial(store.rename, "d/h", name, overwrite=False),
                partial(store.delete, name, recursive=False, progress=ignore),
            ]
        return work

    def _list(self, name: str = "") -> None:
        for info in list_files(self.store, name):
            assert not set(info.name.split("/")) & set(PRIVATE)
            assert info.total != len(SECRET)

    def _read(self, name: str) -> None:
        assert fetch(self.store, name) in MINE

    def _stat(self, name: str) -> None:
        info = self.store.stat(name)
        assert info.kind == "dir" or info.total in map(len, MINE)

    def _upload(self, name: str) -> None:
        upload = begin(self.store, name, len(MINE[1]))
        try:
            offer_basis(self.store, upload, "blake3", ignore)
            assert digest_of(SECRET) not in [each.digest for each in upload.records("blake3")]
            send(upload, 0, MINE[1])
            commit(upload, len(MINE[1]))
        finally:
            upload.release()
        self.store.published(upload.id, owner=OWNER)

    def _resume(self, name: str) -> None:
        """Begin, release, and continue with what is in .ftpkit then."""
        upload = begin(self.store, name, len(MINE[0]))
        upload.release()
        again = self.store.upload(upload.id, owner=OWNER)
        try:
            send(again, 0, MINE[0])
        finally:
            again.release()
        self.store.abort(upload.id, owner=OWNER)


def race(root: Path, outside: Path, attack: str, rounds: int) -> Counter[str]:
    """Run a visitor and an attacker on a root; return how requests ended."""
    if "device" in attack and os.geteuid() != 0:
        pytest.skip("only root makes devices")
    before = seen(outside)
    with Place(root) as place:
        store = place.open()
        for name in ("f", "d/f", "d/e/f"):
            stage(store, name, MINE[0])
        visitor = Visitor(store)
        # In a thread of its own: whoever opens a FIFO and waits must not hold up the test.
        thread = threading.Thread(target=visitor.visit, args=(rounds, attack), daemon=True)
        with attacker(root, outside, attack):
            thread.start()
            thread.join(LIMIT_S)
        assert not thread.is_alive(), "a request waits for ever"
        if visitor.fault is not None:
            raise visitor.fault
        assert seen(outside) == before
    return visitor.outcomes


@pytest.mark.parametrize("attack", ATTACKS)
def test_files_swapped_in_lead_nowhere_outside(tmp_path: Path, outside: Path, attack: str) -> None:
    outcomes = race(tmp_path / "root", outside, attack, rounds=40)
    assert outcomes["done"]
    assert outcomes[Code.NOT_FOUND]


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
def test_files_swapped_in_for_long_lead_nowhere_outside(
    tmp_path: Path, outside: Path, attack: str
) -> None:
    outcomes = race(tmp_path / "root", outside, attack, rounds=300)
    assert outcomes["done"]
    assert outcomes[Code.NOT_FOUND]
