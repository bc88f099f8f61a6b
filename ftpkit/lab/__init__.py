"""The emulated network and its processes, for comparisons and tests."""
