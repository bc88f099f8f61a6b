"""Where a server is: ``ftpk://host:port``."""

import re
from typing import Final, NamedTuple

DEFAULT_PORT: Final = 9021
SCHEME: Final = "ftpk"

_FORM: Final = re.compile(
    rf"(?:{SCHEME}://)?(?:\[(?P<v6>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^\[\]:/@?#\s]+))(?::(?P<port>\d+))?/?"
)


class Address(NamedTuple):
    """A host name or IP address, and a TCP port; ``str()`` is the link that clients take."""

    host: str
    port: int = DEFAULT_PORT

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read ``ftpk://host``, ``ftpk://host:port`` or ``ftpk://[v6]:port``; the scheme may miss.

        Raises ValueError with a sentence for a person.
        """
        match = _FORM.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no address: expected {SCHEME}://HOST:PORT")
        digits = match["port"] or str(DEFAULT_PORT)
        port = int(digits) if len(digits) <= 9 else 0
        if not 0 < port < 65536:
            raise ValueError(f"{text!r} has no such port: expected 1 to 65535")
        return cls(match["v6"] or match["host"], port)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{SCHEME}://{host}:{self.port}"
