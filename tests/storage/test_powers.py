"""Optional powers: each store offers what it has, and a wrapper offers no more."""

from pathlib import Path

from ftpkit.storage import DirectoryStore, MemoryStore, Store
from ftpkit.storage.api import DescriptorReader, QuotaAwareStore, ShareableStore, SweepingStore
from ftpkit.storage.prefix_store import PrefixStore
from ftpkit.storage.quota import UNLIMITED
from tests.storage.stores import QuickFiles, stage

POWERS = (QuotaAwareStore, ShareableStore, SweepingStore)


def powers(store: Store) -> list[bool]:
    """Which optional powers a store has; the last is that of its readers."""
    stage(store, "d/f", b"x")
    with store.read("d/f") as reader:
        return [
            *(isinstance(store, power) for power in POWERS),
            isinstance(reader, DescriptorReader),
        ]


def test_a_directory_store_has_all_powers_also_with_a_quota(tmp_path: Path) -> None:
    with DirectoryStore(tmp_path, QuickFiles()) as store:
        assert powers(store) == powers(store.with_quota(UNLIMITED)) == [True] * 4


def test_a_memory_store_has_no_power() -> None:
    assert powers(MemoryStore()) == [False] * 4


def test_a_prefix_store_has_the_descriptors_of_its_store_alone(tmp_path: Path) -> None:
    with DirectoryStore(tmp_path, QuickFiles()) as store:
        assert powers(PrefixStore(store, "d")) == [False, False, False, True]
    assert powers(PrefixStore(MemoryStore(), "d")) == [False] * 4
