"""The account that a server started by root changes to after opening its port."""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ftpkit.private_files import OTHERS_WRITE

try:
    import pwd
except ImportError:  # not a Unix
    pwd = None  # type: ignore[assignment]  # see _HAS_ACCOUNTS

_HAS_ACCOUNTS: Final = pwd is not None


@dataclass(frozen=True, slots=True)
class SystemUser:
    name: str
    uid: int
    groups: tuple[int, ...]
    """All groups; the primary group is the first."""
    home: str

    @classmethod
    def find(cls, name: str) -> "SystemUser":
        """Look up a user; ValueError if this process cannot change to it."""
        if not _HAS_ACCOUNTS or os.geteuid() != 0:
            raise ValueError("only root can change to another user")
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            raise ValueError(f"no such user: {name!r}") from None
        if found.pw_uid == 0:
            raise ValueError(f"{name!r} has user ID 0; choose an unprivileged user")
        others = set(os.getgrouplist(name, found.pw_gid)) - {found.pw_gid}
        return cls(name, found.pw_uid, (found.pw_gid, *sorted(others)), found.pw_dir)

    def make_directory(self, path: str, mode: int) -> None:
        """Create the topmost missing directory of ``path``, owned by this account.

        The account creates the directories below it. Nothing is created where another user could
        replace it or its parents.
        """
        path = os.path.abspath(path)
        while not os.path.lexists(parent := os.path.dirname(path)):
            path = parent
        if not os.path.lexists(path) and all(map(_only_root_writes, [parent, *_parents(parent)])):
            os.mkdir(path, mode)
            os.chown(path, self.uid, self.groups[0], follow_symlinks=False)

    def own(self, fds: Iterable[int]) -> None:
        """Change the owner of sockets to this account, so that it can bind their ports again."""
        for fd in fds:
            os.fchown(fd, self.uid, self.groups[0])

    def become(self) -> None:
        """Drop root privileges for good; PermissionError if they could be regained.

        Also sets the environment of the account, and leaves a working directory that the account
        cannot use.
        """
        os.setgroups(self.groups)
        os.setgid(self.groups[0])
        os.setuid(self.uid)
        ids = {os.getuid(), os.geteuid()}, {os.getgid(), os.getegid()}, {*os.getgroups()}
        if ids != ({self.uid}, {self.groups[0]}, {*self.groups}) or _can_regain_root():
            raise PermissionError(f"cannot drop root privileges and become {self.name}")
        for name in [name for name in os.environ if name.startswith("XDG_")]:
            del os.environ[name]
        os.environ.update(HOME=self.home, USER=self.name, LOGNAME=self.name)
        if not os.access(os.curdir, os.X_OK):
            os.chdir("/")


def _parents(path: str) -> Iterator[str]:
    while (parent := os.path.dirname(path)) != path:
        yield parent
        path = parent


def _only_root_writes(path: str) -> bool:
    """Whether only root can create and rename entries of other users in ``path``."""
    status = os.lstat(path)
    mode = status.st_mode
    only = stat.S_ISLNK(mode) or mode & stat.S_ISVTX or not mode & OTHERS_WRITE
    return status.st_uid == 0 and bool(only)


def _can_regain_root() -> bool:
    try:
        os.setuid(0)
    except PermissionError:
        return False
    return True
