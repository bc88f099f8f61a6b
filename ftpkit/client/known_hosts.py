"""The login URLs that a client has saved, and those of the servers on this computer."""

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from ftpkit import private_files
from ftpkit.errors import LocalFileError
from ftpkit.net.address import Address, Url
from ftpkit.osapi import files as os_files
from ftpkit.osapi import process as os_process


@dataclass(frozen=True, slots=True)
class SavedUrls:
    """Login URLs, one for each host and port, and the address of the default server."""

    urls: tuple[Url, ...] = ()
    default: Address | None = None

    def find(self, address: Address | None) -> Url | None:
        return next((url for url in self.urls if url.address == address), None)

    def without(self, address: Address) -> "SavedUrls":
        urls = tuple(url for url in self.urls if url.address != address)
        return SavedUrls(urls, None if self.default == address else self.default)


class KnownHosts:
    """Stores login URLs in the file ``path``, which only this account can read.

    Methods raise LocalFileError if the file is damaged, or if others can read it.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def load(self) -> SavedUrls:
        data = private_files.read(self._path)
        if data is None:
            return SavedUrls()
        try:
            return _parse(json.loads(data))
        except (ValueError, KeyError, TypeError, RecursionError):
            # The content is not quoted: it may contain tokens.
            raise LocalFileError(
                f"{self._path} is damaged: remove it, and log in to each server again"
            ) from None

    def save(self, url: Url, *, default: bool) -> None:
        """Save ``url``; it replaces the URL with the same host and port."""
        private_files.make_directory(os.path.dirname(self._path))
        with private_files.locked(self._path):
            saved = self.load()
            urls = (*saved.without(url.address).urls, url)
            self._write(SavedUrls(urls, url.address if default else saved.default))

    def forget(self, address: Address) -> bool:
        """Remove the URL for a host and port; return False if there was none."""
        if self.load().find(address) is None:
            return False
        with private_files.locked(self._path):
            self._write(self.load().without(address))
        return True

    def _write(self, saved: SavedUrls) -> None:
        values = {
            "default": None if saved.default is None else str(saved.default),
            "links": [url.login_url() for url in saved.urls],
        }
        private_files.replace(self._path, json.dumps(values, indent=1).encode())


def _parse(values: Any) -> SavedUrls:
    saved = SavedUrls(
        tuple(map(Url.parse, values["links"])),
        None if values["default"] is None else Address.parse(values["default"]),
    )
    if saved.default is not None and saved.find(saved.default) is None:
        raise ValueError("the default is not among the URLs")
    return saved


# Where to connect to on this computer when a server listens on every interface.
_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  nothing listens


@dataclass(frozen=True, slots=True)
class LocalServer:
    """A server on this computer: its login URL, the directory it serves, its state directory."""

    url: Url
    root: str
    state: str | None


class LocalServers:
    """The servers that run under this account; each announces itself by a file in ``directory``."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    @contextlib.contextmanager
    def announce(self, url: Url, *, root: str, state: str | None = None) -> Iterator[None]:
        """Let clients find the server at ``url`` until the block or the process ends."""
        private_files.make_directory(self._directory)
        host = _LOOPBACK.get(url.address.host, url.address.host)
        url = replace(url, address=url.address._replace(host=host))
        # A random name: removing the file of a dead process must not remove a new one.
        name = f"{url.address.port}-{os.getpid()}-{secrets.token_hex(8)}.json"
        path = os.path.join(self._directory, name)
        values = {"link": url.login_url(), "root": root, "state": state}
        with private_files.locked(path):
            try:
                private_files.replace(path, json.dumps(values, indent=1).encode())
                yield
            finally:
                _remove(path)

    def servers(self) -> list[LocalServer]:
        """Return the running servers, the newest first; files of dead processes are removed."""
        found: list[tuple[int, LocalServer]] = []
        try:
            names = os.listdir(self._directory)
        except OSError:  # no server has ever run
            return []
        for name in names:
            if match := _FILE_NAME.fullmatch(name):
                path = os.path.join(self._directory, name)
                # Files that others can read or change, or that have just gone, are ignored.
                with contextlib.suppress(LocalFileError, OSError, ValueError, KeyError, TypeError):
                    if not _is_alive(path, int(match["pid"])):
                        _remove(path)
                    elif (data := private_files.read(path)) is not None:
                        values = json.loads(data)
                        url = Url.parse(values["link"])
                        server = LocalServer(url, values["root"], values["state"])
                        found.append((os.stat(path).st_mtime_ns, server))
        found.sort(key=lambda each: each[0], reverse=True)
        return [server for _, server in found]


_FILE_NAME: Final = re.compile(r"[0-9]{1,5}-(?P<pid>[0-9]{1,10})-[0-9a-f]{16}\.json")


def _is_alive(path: str, pid: int) -> bool:
    """Whether the process ``pid`` that wrote the file ``path`` still holds its lock."""
    if not os_files.HAS_LOCKS:
        return os_process.is_running(pid)
    try:
        fd = os.open(f"{path}.lock", os.O_RDONLY | os_files.O_NOFOLLOW | os_files.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return os_files.is_locked(fd)
    finally:
        os.close(fd)


def _remove(path: str) -> None:
    for each in (path, f"{path}.lock"):
        with contextlib.suppress(OSError):  # another process removed it first
            os.unlink(each)
