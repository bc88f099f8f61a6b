"""The directory store: files under a root, unfinished uploads under ``.ftpkit`` in it."""
