"""Where an account keeps what is its own: settings, links, keys, and what can be made again."""

import os

import click
import platformdirs

from ftpkit.errors import LocalFileError


def settings_file() -> str:
    """Return where the settings of a client are."""
    return os.path.join(click.get_app_dir("ftpkit"), "client.toml")


def hosts_file() -> str:
    """Return where the links are that ``login`` keeps."""
    return os.path.join(click.get_app_dir("ftpkit"), "hosts.json")


def digest_cache_directory() -> str:
    """Return where digests of sent blocks are kept: the place for what can be made again."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "ftpkit", "blocks")


def default_state() -> str:
    """Return where this account keeps a server's state, unless it says something else."""
    try:
        path = platformdirs.user_state_dir("ftpkit", appauthor=False)
    except RuntimeError:  # older versions return what is no absolute path
        path = ""
    if not os.path.isabs(path):
        raise LocalFileError("this account has no home directory to keep keys and tokens in")
    return path


def running_directory() -> str:
    """Return where this account's running servers are told, wherever they keep their state."""
    return os.path.join(default_state(), "running")
