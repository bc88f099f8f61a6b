"""An emulated network and child processes, for comparisons and tests."""
