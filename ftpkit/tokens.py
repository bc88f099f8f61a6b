"""Tokens: the permissions and limits of each user, kept in a file of token hashes."""

import hmac
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final

from ftpkit import private_files
from ftpkit.errors import LocalFileError, RefusedError
from ftpkit.protocol.names import check_name

log = logging.getLogger("ftpkit.tokens")

_USER: Final = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY: Final = re.compile("[0-9a-f]{64}")
_VERSION: Final = 1
# 192 random bits cannot be guessed, so a fast hash is enough to store.
_TOKEN_BYTES: Final = 24


class Permission(StrEnum):
    """An operation class that a token can allow."""

    READ = "read"
    WRITE = "write"
    DELETE = "delete"
    ADMIN = "admin"


# Inode, size, mtime and ctime: any change of the file changes one of them.
_Stamp = tuple[int, int, int, int]

EVERYTHING: Final = frozenset(Permission)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What ``user``, the holder of a token, may do.

    ``under`` is the directory that the user sees as the root, and ``quota`` the bytes that it
    may hold. ``bytes_per_s`` limits each direction over all connections of the user, of which
    there may be ``connections``; ``weight`` is the user's share of a busy server. The token
    expires at ``expires_at``, in seconds since 1970. ``key`` is the SHA-256 of the token, in hex.
    """

    user: str
    can: frozenset[Permission] = EVERYTHING
    under: str = ""
    quota: int | None = None
    bytes_per_s: float | None = None
    weight: float = 1.0
    connections: int | None = None
    expires_at: float | None = None
    key: str = field(default="", repr=False)


# The keys in the file and in JSON that differ from the fields of a grant.
_KEYS: Final = {"bytes_per_s": "rate_bps"}


def is_user_name(name: str) -> bool:
    """Whether ``name`` is 1 to 64 of a-z, A-Z, 0-9, ".", "_" and "-", a letter or digit first."""
    return _USER.fullmatch(name) is not None


def encode_grant(grant: Grant) -> dict[str, Any]:
    values = {_KEYS.get(name, name): value for name, value in asdict(grant).items()}
    return {**values, "can": [can for can in Permission if can in grant.can]}


def decode_grant(values: Any) -> Grant:
    """Return the grant of an object of tokens.json; ValueError says what is wrong with it.

    A missing or unknown key is an error, because it could be a restriction.
    """
    names = {_KEYS.get(each.name, each.name): each.name for each in fields(Grant)}
    if not isinstance(values, dict) or values.keys() != names.keys():
        raise ValueError(f"a token must have exactly the keys {', '.join(names)}")
    can = values["can"]
    if not isinstance(can, list) or any(each not in tuple(Permission) for each in can):
        raise ValueError(f'"can" must be a list of {", ".join(Permission)}')
    values = {names[key]: value for key, value in values.items()}
    grant = Grant(**values | {"can": frozenset(map(Permission, can))})
    _check(grant)
    return grant


class Tokens:
    """The tokens of a server, in a file that any process may change at any time.

    The file holds the hash of each token, not the token. Every call sees the latest change.
    While the file is damaged or its permissions are unsafe, no token is valid, and the file
    is not replaced.
    """

    def __init__(
        self, path: str | os.PathLike[str], clock: Callable[[], float] = time.time
    ) -> None:
        self.path = os.fspath(path)
        self._clock = clock
        # One tuple, so that no thread sees the grants of one file with the stamp of another.
        self._cached: tuple[_Stamp | None, dict[str, Grant]] = None, {}
        self._error = ""

    def add(self, grant: Grant, token: str | None = None) -> str:
        """Add ``token``, or a new random one, with ``grant``; return the token.

        ValueError if a value of the grant is invalid, or its user or the token exists.
        LocalFileError if the file cannot be read or written.
        """
        token = token or new_token()
        grant = replace(grant, key=_key_of(token))
        _check(grant)
        with private_files.locked(self.path):
            grants = self._read() or []
            for other in grants:
                if other.user == grant.user:
                    raise ValueError(
                        f"{other.user} already has a token; "
                        f"remove it with: ftpkit token rm {other.user}"
                    )
                if other.key == grant.key:
                    raise ValueError(f"this token is already that of {other.user}")
            self._write([*grants, grant])
        return token

    def remove(self, user: str) -> bool:
        """Remove the token of ``user``; return False if there is none."""
        with private_files.locked(self.path):
            grants = self._read() or []
            rest = [grant for grant in grants if grant.user != user]
            if rest == grants:
                return False
            self._write(rest)
            return True

    def grants(self) -> list[Grant]:
        """Return the grants of all tokens, also of expired ones, the oldest first.

        LocalFileError if the file is missing or damaged, or its permissions are unsafe.
        """
        grants = self._read()
        if grants is None:
            raise LocalFileError(
                f"{self.path} does not exist; add a token with: ftpkit token add NAME"
            )
        return grants

    @property
    def has_quotas(self) -> bool:
        """Whether any grant has a quota; true if the file cannot be read."""
        grants = self._current().values()
        return not grants or any(grant.quota is not None for grant in grants)

    def roots(self) -> dict[str, str]:
        """Return the directory that each user sees as the root; none while the file is unusable."""
        return {grant.user: grant.under for grant in self._current().values()}

    def find(self, token: str) -> Grant | None:
        """Return the grant of ``token``, or None if it is unknown or has expired.

        The hash is compared with every other, so that the time taken tells nothing of them.
        """
        key, found = _key_of(token), None
        for grant in self._current().values():
            if hmac.compare_digest(grant.key, key):
                found = grant
        return found if found is not None and not self._expired(found) else None

    def is_valid(self, grant: Grant) -> bool:
        """Whether the token of ``grant``, which ``find`` returned, still grants exactly that."""
        return self._current().get(grant.key) == grant and not self._expired(grant)

    def _expired(self, grant: Grant) -> bool:
        return grant.expires_at is not None and self._clock() >= grant.expires_at

    def _current(self) -> dict[str, Grant]:
        """Return the grants that the file has now by their keys; none while it is unusable."""
        try:
            # Taken before the file is read, so that the stamp is never newer than the grants.
            stamp = _stamp_of(self.path)
            cached, grants = self._cached
            if stamp is None or stamp != cached:
                grants = {grant.key: grant for grant in self.grants()}
                self._cached = stamp, grants
        except LocalFileError as error:
            if str(error) != self._error:
                self._error = str(error)
                log.error("all logins are refused: %s", error)
            return {}
        self._error = ""
        return grants

    def _read(self) -> list[Grant] | None:
        data = private_files.read(self.path)
        if data is None:
            return None
        try:
            return _parse(data)
        except ValueError as error:
            raise LocalFileError(
                f"{self.path} is damaged: {error}; restore it from a backup, "
                "or remove it and add tokens with: ftpkit token add NAME"
            ) from None

    def _write(self, grants: list[Grant]) -> None:
        content = {"version": _VERSION, "tokens": list(map(encode_grant, grants))}
        private_files.replace(self.path, json.dumps(content, indent=2).encode() + b"\n")


def new_token() -> str:
    return secrets.token_urlsafe(_TOKEN_BYTES)


def _stamp_of(path: str) -> _Stamp | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _key_of(token: str) -> str:
    return sha256(token.encode(errors="surrogatepass")).hexdigest()


def _parse(data: bytes) -> list[Grant]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("it is not valid JSON") from None
    match content:
        case {"version": version, "tokens": list(tokens)} if (
            version == _VERSION and len(content) == 2
        ):
            grants = list(map(decode_grant, tokens))
        case _:
            raise ValueError(f"it is not a token file of version {_VERSION}")
    for name in ("user", "key"):
        if len({getattr(grant, name) for grant in grants}) < len(grants):
            raise ValueError(f"two tokens have the same {name}")
    return grants


def _is_under(value: Any) -> bool:
    try:
        return isinstance(value, str) and check_name(value, root=True) == value
    except RefusedError:
        return False


def _is_count(value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value < 2**63)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 2**63


_RULES: Final[dict[str, Callable[[Any], bool]]] = {
    "user": lambda value: isinstance(value, str) and is_user_name(value),
    "under": _is_under,
    "quota": _is_count,
    "bytes_per_s": lambda value: value is None or _is_number(value),
    "weight": _is_number,
    "connections": lambda value: _is_count(value) and value != 0,
    "expires_at": lambda value: value is None or _is_number(value),
    "key": lambda value: isinstance(value, str) and _KEY.fullmatch(value) is not None,
}


def _check(grant: Grant) -> None:
    for name, is_valid in _RULES.items():
        if not is_valid(value := getattr(grant, name)):
            raise ValueError(f"{value!r} is not a valid value of {_KEYS.get(name, name)}")
