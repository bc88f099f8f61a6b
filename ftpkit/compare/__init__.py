"""Comparisons: the same work done in several ways on this machine, and what came of each."""
