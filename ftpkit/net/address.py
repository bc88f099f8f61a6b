"""Addresses of servers, ``ftpk://HOST:PORT``, and login URLs, which also hold pin and token."""

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

DEFAULT_PORT: Final = 9021
SCHEME: Final = "ftpk"
PLAIN_SCHEME: Final = "ftpk+plain"

_HOST_PORT: Final = (
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?)\]|(?P<host>(?:[A-Za-z0-9_.-]|[^\x00-\x7f\s])+))"
    r"(?::(?P<port>[0-9]+))?/?"
)
_TOKEN: Final = "[A-Za-z0-9_.-]{1,128}"  # noqa: S105  its pattern
PIN_LENGTH: Final = 43
_PIN: Final = f"[A-Za-z0-9_-]{{{PIN_LENGTH}}}"
_URL: Final = re.compile(
    rf"(?:{SCHEME}(?P<plain>\+plain)?://)?"
    rf"(?:(?!@)(?P<token>{_TOKEN})?(?::(?P<pin>{_PIN}))?@)?{_HOST_PORT}"
)

# An IPv6 address as a host name, as Windows reads it: shells interpret brackets and colons.
_LITERAL: Final = re.compile(
    r"([0-9A-Fa-f.]*-[0-9A-Fa-f.-]*)(?:s([A-Za-z0-9_.-]+))?\.ipv6-literal\.net", re.IGNORECASE
)


class Address(NamedTuple):
    """A host name or IP address, and a TCP port."""

    host: str
    port: int = DEFAULT_PORT

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Parse ``ftpk://host``, ``ftpk://host:port`` or ``ftpk://[v6]:port``, scheme optional.

        Raises ValueError with a message for the user.
        """
        match = _URL.fullmatch(text)
        if match is None or match["plain"] or match["token"] or match["pin"]:
            # The text is not quoted: it could be a login URL with a token.
            raise ValueError(f"invalid address: expected {SCHEME}://HOST:PORT")
        return _address(match)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{SCHEME}://{host}:{self.port}"


@dataclass(frozen=True, slots=True, repr=False)
class Url:
    """The address of a server, the pin of its key, and a token.

    ``pin`` is the SHA-256 digest of the public key in base64url, 43 characters. ``plain``
    connects without TLS. ``str()`` and ``repr()`` show neither pin nor token.
    """

    address: Address
    pin: str | None = None
    token: str | None = None
    plain: bool = False

    @classmethod
    def parse(cls, text: str) -> "Url":
        """Parse an address or a login URL.

        Raises ValueError with a message for the user that does not quote ``text``.
        """
        match = _URL.fullmatch(text)
        if match is None or (match["plain"] and match["pin"]):
            raise ValueError(
                f"invalid URL: expected {SCHEME}://HOST:PORT or {SCHEME}://TOKEN:PIN@HOST:PORT"
            )
        return cls(_address(match), match["pin"], match["token"], bool(match["plain"]))

    def login_url(self) -> str:
        """Return the URL with its secrets, in characters that no shell interprets."""
        secrets = (self.token or "") + (f":{self.pin}" if self.pin else "")
        at = f"{secrets}@" if secrets else ""
        return f"{self._scheme}://{at}{_plain_host(self.address.host)}:{self.address.port}"

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
        raise ValueError("invalid port: expected 1 to 65535")
    return Address(match["v6"] or _host(match["host"]), port)


def _plain_host(host: str) -> str:
    if ":" in host:
        return host.replace(":", "-").replace("%", "s") + ".ipv6-literal.net"
    return host if host.isascii() else host.encode("idna").decode()


def _host(host: str) -> str:
    """Undo ``_plain_host`` for an IPv6 address."""
    literal = _LITERAL.fullmatch(host)
    if literal is None:
        return host
    v6, zone = literal[1].replace("-", ":"), literal[2]
    return f"{v6}%{zone}" if zone else v6
