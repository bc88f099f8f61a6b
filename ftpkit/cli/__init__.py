"""The command ``ftpkit``: the only place that prints, and that reads settings."""

from ftpkit.cli.commands import main

__all__ = ["main"]
