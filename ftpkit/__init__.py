"""ftpkit: push big files to a host, whole, verified and resumable."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ftpkit.client import Client, ListEntry, TransferResult, UdpMode
    from ftpkit.errors import (
        CannotConnectError,
        Code,
        ConnectionLostError,
        CorruptDataError,
        FtpkitError,
        LocalFileError,
        ProtocolError,
        RefusedError,
        SourceChangedError,
        TruncatedError,
        UdpBlockedError,
        UntrustedError,
    )
    from ftpkit.net.address import Address, Url
    from ftpkit.net.tls_identity import Identity
    from ftpkit.server import Server
    from ftpkit.server.limits import Limits
    from ftpkit.storage import DirectoryStore, MemoryStore, Store
    from ftpkit.tokens import Grant, Permission, Tokens

__all__ = [
    "Address",
    "CannotConnectError",
    "Client",
    "Code",
    "ConnectionLostError",
    "CorruptDataError",
    "DirectoryStore",
    "FtpkitError",
    "Grant",
    "Identity",
    "Limits",
    "ListEntry",
    "LocalFileError",
    "MemoryStore",
    "Permission",
    "ProtocolError",
    "RefusedError",
    "Server",
    "SourceChangedError",
    "Store",
    "Tokens",
    "TransferResult",
    "TruncatedError",
    "UdpBlockedError",
    "UdpMode",
    "UntrustedError",
    "Url",
    "__version__",
]

_HOME = {
    "Address": "ftpkit.net.address",
    "Client": "ftpkit.client",
    "DirectoryStore": "ftpkit.storage",
    "Grant": "ftpkit.tokens",
    "Identity": "ftpkit.net.tls_identity",
    "Limits": "ftpkit.server.limits",
    "ListEntry": "ftpkit.client",
    "MemoryStore": "ftpkit.storage",
    "Permission": "ftpkit.tokens",
    "Server": "ftpkit.server",
    "Store": "ftpkit.storage",
    "Tokens": "ftpkit.tokens",
    "TransferResult": "ftpkit.client",
    "UdpMode": "ftpkit.client",
    "Url": "ftpkit.net.address",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``ftpkit.protocol`` comes alone."""
    if name not in __all__:
        raise AttributeError(f"module 'ftpkit' has no attribute {name!r}")
    value = getattr(import_module(_HOME.get(name, "ftpkit.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not, for completion."""
    return __all__
