"""Stores: where a server keeps its files."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ftpkit.storage.api import BlockRecord, FileInfo, Reader, Staged, Store, Upload

if TYPE_CHECKING:
    from ftpkit.storage.directory.store import DirectoryStore
    from ftpkit.storage.memory import MemoryStore

__all__ = [
    "BlockRecord",
    "DirectoryStore",
    "FileInfo",
    "MemoryStore",
    "Reader",
    "Staged",
    "Store",
    "Upload",
]

_STORES = {
    "DirectoryStore": "ftpkit.storage.directory.store",
    "MemoryStore": "ftpkit.storage.memory",
}


def __getattr__(name: str) -> Any:
    """Import a store when it is first used."""
    if name not in _STORES:
        raise AttributeError(f"module 'ftpkit.storage' has no attribute {name!r}")
    return getattr(import_module(_STORES[name]), name)
