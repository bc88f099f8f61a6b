"""Where files are kept: the ``Store`` that the server speaks to, and the directory store."""

from ftpkit.storage.directory import DirectoryStore
from ftpkit.storage.store import Entry, Reader, Record, Staged, Store, Upload

__all__ = ["DirectoryStore", "Entry", "Reader", "Record", "Staged", "Store", "Upload"]
