"""Where a server is, ``ftpk://HOST:PORT``, and the link that says all that a client needs."""

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

DEFAULT_PORT: Final = 9021
SCHEME: Final = "ftpk"
PLAIN_SCHEME: Final = "ftpk+plain"

_PLACE: Final = (
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?)\]|(?P<host>(?:[A-Za-z0-9_.-]|[^\x00-\x7f\s])+))"
    r"(?::(?P<port>[0-9]+))?/?"
)
_TOKEN: Final = "[A-Za-z0-9_.-]{1,128}"  # noqa: S105  the form of one
_PIN: Final = "[A-Za-z0-9_-]{43}"
_ADDRESS: Final = re.compile(rf"(?:{SCHEME}://)?{_PLACE}")
_URL: Final = re.compile(
    rf"(?:{SCHEME}(?P<plain>\+plain)?://)?"
    rf"(?:(?!@)(?P<token>{_TOKEN})?(?::(?P<pin>{_PIN}))?@)?{_PLACE}"
)

# Brackets and colons mean something to shells, and so does what is beyond ASCII to terminals.
# Windows reads an IPv6 address that is written as a name under this one, and so do we.
_LITERAL: Final = re.compile(
    r"([0-9A-Fa-f.]*-[0-9A-Fa-f.-]*)(?:s([A-Za-z0-9_.-]+))?\.ipv6-literal\.net", re.IGNORECASE
)


class Address(NamedTuple):
    """A host name or IP address, and a TCP port."""

    host: str
    port: int = DEFAULT_PORT

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read ``ftpk://host``, ``ftpk://host:port`` or ``ftpk://[v6]:port``; the scheme may miss.

        Raises ValueError with a sentence for a person.
        """
        match = _ADDRESS.fullmatch(text)
        if match is None:
            # Nothing of it is said again: it could be a link, with a token.
            raise ValueError(f"that is no address: expected {SCHEME}://HOST:PORT")
        return _address(match)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{SCHEME}://{host}:{self.port}"


@dataclass(frozen=True, slots=True, repr=False)
class Url:
    """Where a server is, by which key it is known, and with which token it is entered.

    ``pin`` is the SHA-256 of the public key, in base64url, 43 characters. ``plain`` says that
    the server is spoken to without TLS. ``str()`` and ``repr()`` show neither pin nor token.
    """

    address: Address
    pin: str | None = None
    token: str | None = None
    plain: bool = False

    @classmethod
    def parse(cls, text: str) -> "Url":
        """Read an address, or a link as ``link`` writes it.

        Raises ValueError with a sentence for a person, in which nothing of ``text`` is said.
        """
        match = _URL.fullmatch(text)
        if match is None or (match["plain"] and match["pin"]):
            raise ValueError(
                f"that is no link: expected {SCHEME}://HOST:PORT or {SCHEME}://TOKEN:PIN@HOST:PORT"
            )
        return cls(_address(match), match["pin"], match["token"], bool(match["plain"]))

    def login_url(self) -> str:
        """Return all of it in one word that no shell touches: to be shown to its owner alone."""
        secrets = (self.token or "") + (f":{self.pin}" if self.pin else "")
        at = f"{secrets}@" if secrets else ""
        return f"{self._scheme}://{at}{_spelled(self.address.host)}:{self.address.port}"

    @property
    def _scheme(self) -> str:
        return PLAIN_SCHEME if self.plain else SCHEME

    def __str__(self) -> str:
        return str(self.address).replace(SCHEME, self._scheme, 1)

    __repr__ = __str__


def _address(match: re.Match[str]) -> Address:
    digits = match["port"] or str(DEFAULT_PORT)
    port = int(digits) if len(digits) <= 9 else 0
    if not 0 < port < 65536:
        raise ValueError("there is no such port: expected 1 to 65535")
    return Address(match["v6"] or _unspelled(match["host"]), port)


def _spelled(host: str) -> str:
    """Return ``host`` without a character that a shell or a terminal could touch."""
    if ":" in host:
        return host.replace(":", "-").replace("%", "s") + ".ipv6-literal.net"
    return host if host.isascii() else host.encode("idna").decode()


def _unspelled(host: str) -> str:
    literal = _LITERAL.fullmatch(host)
    if literal is None:
        return host
    v6, zone = literal[1].replace("-", ":"), literal[2]
    return f"{v6}%{zone}" if zone else v6
