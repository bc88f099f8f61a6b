"""Tokens: who may do what, where, how much, how fast, and until when."""

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
# 192 random bits, of which a hash that took no time gives nothing away.
_TOKEN_BYTES: Final = 24


class Permission(StrEnum):
    """What a token may allow."""

    READ = "read"
    WRITE = "write"
    DELETE = "delete"
    ADMIN = "admin"


# What of a file's status changes with the file.
_Stamp = tuple[int, int, int, int]

EVERYTHING: Final = frozenset(Permission)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What the holder of a token, ``user``, may do.

    ``under`` is the directory that is the holder's root; ``quota`` bytes may be stored and
    reserved there. ``bytes_per_s`` limits each direction over all of its connections, of which
    there are ``connections`` at most, and ``weight`` is its share beside others. It ends at
    ``expires_at``, in seconds since 1970. ``key`` is the SHA-256 of the token.
    """

    user: str
    can: frozenset[Permission] = EVERYTHING
    under: str = ""
    quota: int | None = None
    rate_bps: float | None = None
    weight: float = 1.0
    connections: int | None = None
    expires_at: float | None = None
    key: str = field(default="", repr=False)


def is_user(name: str) -> bool:
    """Whether ``name`` can be a user: letters, digits, and . _ - behind the first."""
    return _USER.fullmatch(name) is not None


def encode_grant(grant: Grant) -> dict[str, Any]:
    """Return ``grant`` as values that JSON has."""
    return {**asdict(grant), "can": [can for can in Permission if can in grant.can]}


def decode_grant(values: Any) -> Grant:
    """Return the grant that ``values`` are; ValueError says what is wrong with them.

    One that is missing or unknown could be what keeps the holder from something: it is wrong, too.
    """
    if not isinstance(values, dict) or values.keys() != {each.name for each in fields(Grant)}:
        raise ValueError("it has not the values that a grant has")
    try:
        grant = Grant(**{**values, "can": frozenset(map(Permission, values["can"]))})
    except TypeError:
        raise ValueError("can is no list") from None
    _check(grant)
    return grant


class Tokens:
    """The tokens of a server: a file that any process may change at any time.

    Of a token the file has its hash alone. A change counts from the next call on. While
    something is wrong with the file it admits nobody, and nothing replaces it.
    """

    def __init__(
        self, path: str | os.PathLike[str], clock: Callable[[], float] = time.time
    ) -> None:
        self._path = os.fspath(path)
        self._clock = clock
        # One object, so that threads never see the grants of one file with the stamp of another.
        self._known: tuple[_Stamp | None, dict[str, Grant]] = None, {}
        self._fault = ""

    @property
    def path(self) -> str:
        """Where they are."""
        return self._path

    def add(self, grant: Grant, token: str | None = None) -> str:
        """Let a token, by default one made for it, stand for ``grant``; return the token.

        ValueError says what is wrong with the grant, or that its user has a token already.
        """
        token = token or new_token()
        grant = replace(grant, key=_key_of(token))
        _check(grant)
        with private_files.locked(self._path):
            grants = self._read() or []
            for other in grants:
                if other.user == grant.user:
                    raise ValueError(f"there is a token {other.user} already")
                if other.key == grant.key:
                    raise ValueError(f"that is the token of {other.user}")
            self._write([*grants, grant])
        return token

    def remove(self, user: str) -> bool:
        """Let the token of ``user`` stand for nothing any more; False says that there is none."""
        with private_files.locked(self._path):
            grants = self._read() or []
            rest = [grant for grant in grants if grant.user != user]
            if rest == grants:
                return False
            self._write(rest)
            return True

    def grants(self) -> list[Grant]:
        """Return what all tokens grant, also those that have expired, in the order of their age.

        Raises LocalFileError where the file is missing, damaged or not to be trusted.
        """
        grants = self._read()
        if grants is None:
            raise LocalFileError(f"there are no tokens: {self._path} is missing")
        return grants

    @property
    def has_quotas(self) -> bool:
        """Whether any of them has a quota; yes, where that cannot be known."""
        grants = self._now().values()
        return not grants or any(grant.quota is not None for grant in grants)

    def find(self, token: str) -> Grant | None:
        """Return what ``token`` grants now, if it grants something.

        How long this takes says nothing: it is compared with every token, by its hash.
        """
        key, found = _key_of(token), None
        for grant in self._now().values():
            if hmac.compare_digest(grant.key, key):
                found = grant
        return found if found is not None and self._lasts(found) else None

    def is_valid(self, grant: Grant) -> bool:
        """Whether ``grant``, which ``find`` returned, is still what its token grants."""
        return self._now().get(grant.key) == grant and self._lasts(grant)

    def _lasts(self, grant: Grant) -> bool:
        return grant.expires_at is None or self._clock() < grant.expires_at

    def _now(self) -> dict[str, Grant]:
        """Return what the file says now, by the keys; a file with a fault says nothing."""
        try:
            # It comes before the reading: what is read is never older than its stamp.
            stamp = _stamp_of(self._path)
            known, grants = self._known
            if stamp is None or stamp != known:
                grants = {grant.key: grant for grant in self.grants()}
                self._known = stamp, grants
        except LocalFileError as error:
            self._tell(str(error))
            return {}
        self._fault = ""
        return grants

    def _tell(self, fault: str) -> None:
        if fault != self._fault:
            self._fault = fault
            log.error("no token is admitted: %s", fault)

    def _read(self) -> list[Grant] | None:
        data = private_files.read(self._path)
        if data is None:
            return None
        try:
            return _parse(data)
        except (ValueError, RecursionError) as error:
            raise LocalFileError(f"{self._path} is damaged: {error}") from None

    def _write(self, grants: list[Grant]) -> None:
        content = {"version": _VERSION, "tokens": list(map(encode_grant, grants))}
        private_files.replace(self._path, json.dumps(content, indent=2).encode() + b"\n")


def new_token() -> str:
    """Return a token that nobody can guess."""
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
    content = json.loads(data)
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        raise ValueError(f"it is no list of tokens of version {_VERSION}")
    if content.keys() != {"version", "tokens"} or not isinstance(content["tokens"], list):
        raise ValueError("it has not the values that such a list has")
    grants = [decode_grant(values) for values in content["tokens"]]
    for name in ("user", "key"):
        if len({getattr(grant, name) for grant in grants}) < len(grants):
            raise ValueError(f"a {name} occurs twice")
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
    "user": lambda value: isinstance(value, str) and is_user(value),
    "under": _is_under,
    "quota": _is_count,
    "rate_bps": lambda value: value is None or _is_number(value),
    "weight": _is_number,
    "connections": lambda value: _is_count(value) and value != 0,
    "expires_at": lambda value: value is None or _is_number(value),
    "key": lambda value: isinstance(value, str) and _KEY.fullmatch(value) is not None,
}


def _check(grant: Grant) -> None:
    """Raise ValueError unless each value of ``grant`` is one that it can be."""
    for name, fits in _RULES.items():
        if not fits(value := getattr(grant, name)):
            raise ValueError(f"{name} cannot be {value!r}")
