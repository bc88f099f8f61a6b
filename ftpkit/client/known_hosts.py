"""The links that a client keeps, and those of the servers that run on this machine."""

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
    """What is kept: ``urls``, one a host and port, and which of them is used unasked."""

    urls: tuple[Url, ...] = ()
    default: Address | None = None

    def find(self, address: Address | None) -> Url | None:
        """Return what is kept for a host and port."""
        return next((url for url in self.urls if url.address == address), None)

    def without(self, address: Address) -> "SavedUrls":
        """Return all but what is kept for a host and port."""
        urls = tuple(url for url in self.urls if url.address != address)
        return SavedUrls(urls, None if self.default == address else self.default)


class KnownHosts:
    """Keeps links in the file ``path``, which is of this account alone.

    Raises LocalFileError where that is damaged, or open to others.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def load(self) -> SavedUrls:
        """Return all that is kept."""
        data = private_files.read(self._path)
        if data is None:
            return SavedUrls()
        try:
            return _kept(json.loads(data))
        except (ValueError, KeyError, TypeError, RecursionError):
            # What it holds instead is not said: there may be tokens in it.
            raise LocalFileError(
                f"{self._path} is damaged: remove it, and log in to each host anew"
            ) from None

    def save(self, url: Url, *, default: bool) -> None:
        """Keep ``url`` in place of what was kept for its host and port."""
        private_files.make_directory(os.path.dirname(self._path))
        with private_files.locked(self._path):
            kept = self.load()
            others = kept.without(url.address)
            chosen = url.address if default else kept.default
            self._write(SavedUrls((*others.urls, url), chosen))

    def forget(self, address: Address) -> bool:
        """Keep nothing for a host and port; False says that nothing was kept."""
        if self.load().find(address) is None:
            return False
        with private_files.locked(self._path):
            self._write(self.load().without(address))
        return True

    def _write(self, kept: SavedUrls) -> None:
        values = {
            "default": None if kept.default is None else str(kept.default),
            "links": [url.login_url() for url in kept.urls],
        }
        private_files.replace(self._path, json.dumps(values, indent=1).encode())


def _kept(values: Any) -> SavedUrls:
    """Return what the file says; it raises whatever it likes where that is something else."""
    kept = SavedUrls(
        tuple(Url.parse(connection) for connection in values["links"]),
        None if values["default"] is None else Address.parse(values["default"]),
    )
    if kept.default is not None and kept.find(kept.default) is None:
        raise ValueError("the default is not among them")
    return kept


# A server that listens everywhere is reached from here at these addresses.
_HERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  nobody listens


@dataclass(frozen=True, slots=True)
class LocalServer:
    """A server on this machine: its whole link, the directory it serves, and where its state is."""

    url: Url
    root: str
    state: str | None


class LocalServers:
    """The servers that run under this account; each tells of itself by a file in ``directory``."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    @contextlib.contextmanager
    def announce(self, url: Url, *, root: str, state: str | None = None) -> Iterator[None]:
        """Let clients find the server at ``url`` until the block ends, or the process does."""
        private_files.make_directory(self._directory)
        host = _HERE.get(url.address.host, url.address.host)
        url = replace(url, address=url.address._replace(host=host))
        # Never a name twice: one who removes what a dead process left removes nothing else.
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
        """Return those that live, the newest first; what dead ones left is removed."""
        found: list[tuple[int, LocalServer]] = []
        try:
            names = os.listdir(self._directory)
        except OSError:  # none has ever run
            return []
        for name in names:
            if match := _TOLD.fullmatch(name):
                path = os.path.join(self._directory, name)
                # What others can read or change, or is just being removed, tells of nobody.
                with contextlib.suppress(LocalFileError, OSError, ValueError, KeyError, TypeError):
                    if not _lives(path, int(match["pid"])):
                        _remove(path)
                    elif (data := private_files.read(path)) is not None:
                        found.append((os.stat(path).st_mtime_ns, _server(json.loads(data))))
        found.sort(key=lambda each: each[0], reverse=True)
        return [server for _, server in found]


_TOLD: Final = re.compile(r"[0-9]{1,5}-(?P<pid>[0-9]{1,10})-[0-9a-f]{16}\.json")


def _server(values: Any) -> LocalServer:
    return LocalServer(Url.parse(values["link"]), values["root"], values["state"])


def _lives(path: str, pid: int) -> bool:
    """Whether the process lives that tells of itself by the file ``path``."""
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
        with contextlib.suppress(OSError):  # somebody else did, or it is no longer ours
            os.unlink(each)
