"""The command ``ftpkit``: the only place that prints, and that reads settings."""

from ftpkit.cli.main import main

__all__ = ["main"]
