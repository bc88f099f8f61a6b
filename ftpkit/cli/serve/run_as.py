"""The account that a server of root's goes on under, once the port is open."""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

try:
    import pwd
except ImportError:  # not a Unix
    pwd = None  # type: ignore[assignment]  # asked below

_HAS_ACCOUNTS: Final = pwd is not None
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this system, and the groups it is in."""

    name: str
    uid: int
    groups: tuple[int, ...]
    """Its own first."""
    home: str

    @classmethod
    def find(cls, name: str) -> "Account":
        """Return the account that root may become; ValueError says why that is impossible."""
        if not _HAS_ACCOUNTS or os.geteuid() != 0:
            raise ValueError("only root can become another user")
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            raise ValueError(f"there is no user {name!r}") from None
        if found.pw_uid == 0:
            raise ValueError(f"{name!r} is root, who has all rights")
        others = set(os.getgrouplist(name, found.pw_gid)) - {found.pw_gid}
        return cls(name, found.pw_uid, (found.pw_gid, *sorted(others)), found.pw_dir)

    def make_directory(self, path: str, mode: int) -> None:
        """Make the topmost directory of ``path`` that is missing; it belongs to this account.

        What is below, the account can make by itself. Where others could change what root
        makes, or where, root makes nothing.
        """
        path = os.path.abspath(path)
        while not os.path.lexists(parent := os.path.dirname(path)):
            path = parent
        if not os.path.lexists(path) and all(map(_is_roots, [parent, *_parents(parent)])):
            os.mkdir(path, mode)
            os.chown(path, self.uid, self.groups[0], follow_symlinks=False)

    def own(self, fds: Iterable[int]) -> None:
        """Let sockets belong to this account, which may then share their ports."""
        for fd in fds:
            os.fchown(fd, self.uid, self.groups[0])

    def become(self) -> None:
        """Have the rights of this account alone, for good; PermissionError says that it is not so.

        The environment is then the account's, too, and so is the working directory, where that
        cannot be the old one.
        """
        os.setgroups(self.groups)
        os.setgid(self.groups[0])
        os.setuid(self.uid)
        ids = {os.getuid(), os.geteuid()}, {os.getgid(), os.getegid()}, {*os.getgroups()}
        if ids != ({self.uid}, {self.groups[0]}, {*self.groups}) or _is_root_again():
            raise PermissionError(f"root's rights cannot be given up for those of {self.name}")
        for name in [name for name in os.environ if name.startswith("XDG_")]:
            del os.environ[name]
        os.environ.update(HOME=self.home, USER=self.name, LOGNAME=self.name)
        if not os.access(os.curdir, os.X_OK):
            os.chdir("/")


def _parents(path: str) -> Iterator[str]:
    while (parent := os.path.dirname(path)) != path:
        yield parent
        path = parent


def _is_roots(path: str) -> bool:
    """Whether nobody else decides what is under ``path``."""
    status = os.lstat(path)
    mode = status.st_mode
    only = stat.S_ISLNK(mode) or mode & stat.S_ISVTX or not mode & _OTHERS_WRITE
    return status.st_uid == 0 and bool(only)


def _is_root_again() -> bool:
    try:
        os.setuid(0)
    except PermissionError:
        return False
    return True
