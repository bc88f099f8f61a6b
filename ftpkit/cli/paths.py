"""The paths of a user's settings, known hosts, caches and server state."""

import os

import click
import platformdirs

from ftpkit.errors import LocalFileError


def settings_file() -> str | None:
    """Return the path of the client's settings file; None without a home directory."""
    return _absolute(os.path.join(click.get_app_dir("ftpkit"), "client.toml"))


def hosts_file() -> str:
    """Return the path of the file of known hosts; LocalFileError without a home directory."""
    path = _absolute(os.path.join(click.get_app_dir("ftpkit"), "hosts.json"))
    if path is None:
        raise LocalFileError("this user has no home directory to save login URLs in: set HOME")
    return path


def digest_cache_directory() -> str | None:
    """Return the directory of the cache of digests of sent blocks; None without a home."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return _absolute(os.path.join(cache, "ftpkit", "blocks"))


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


def _absolute(path: str) -> str | None:
    """Return ``path``; None if it is relative: a user without a home directory, ``~`` itself."""
    return path if os.path.isabs(path) else None
