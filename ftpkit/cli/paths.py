"""The paths of a user's settings, known hosts, caches and server state."""

import os

import click
import platformdirs

from ftpkit.errors import LocalFileError


def settings_file() -> str:
    """Return the path of the client's settings file."""
    return os.path.join(click.get_app_dir("ftpkit"), "client.toml")


def hosts_file() -> str:
    """Return the path of the file of known hosts, which ``login`` writes."""
    return os.path.join(click.get_app_dir("ftpkit"), "hosts.json")


def digest_cache_directory() -> str:
    """Return the directory of the cache of digests of sent blocks."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "ftpkit", "blocks")


def default_state() -> str:
    """Return the default state directory of a server; LocalFileError without a home directory."""
    try:
        path = platformdirs.user_state_dir("ftpkit", appauthor=False)
    except RuntimeError:  # without a home directory; older versions return a relative path
        path = ""
    if not os.path.isabs(path):
        raise LocalFileError("this user has no home directory for the server's key and tokens")
    return path


def local_servers_directory() -> str:
    """Return the directory in which this user's running servers register."""
    return os.path.join(default_state(), "running")
