"""Where files are kept: the ``Store`` that the server speaks to, and the directory store."""

from ftpkit.storage.directory import DirectoryStore
from ftpkit.storage.store import BlockRecord, FileInfo, Reader, Staged, Store, Upload

__all__ = ["BlockRecord", "DirectoryStore", "FileInfo", "Reader", "Staged", "Store", "Upload"]
