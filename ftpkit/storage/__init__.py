"""Where files are kept: the ``Store`` that the server speaks to, and the directory store."""

from ftpkit.storage.api import BlockRecord, FileInfo, Reader, Staged, Store, Upload
from ftpkit.storage.directory.store import DirectoryStore

__all__ = ["BlockRecord", "DirectoryStore", "FileInfo", "Reader", "Staged", "Store", "Upload"]
