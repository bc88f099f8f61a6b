"""Fixtures that make an emulated network for one test."""

from tests.support.network import make_network, network_unavailable, run, stack

__all__ = ["make_network", "network_unavailable", "run", "stack"]
