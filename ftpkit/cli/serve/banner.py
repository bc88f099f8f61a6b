"""What a server says of itself when it starts: where it is, how to get in, and who else could."""

import ipaddress
import logging
import os
import socket
from collections.abc import Sequence

from ftpkit import __version__
from ftpkit.cli.format import escaped
from ftpkit.net.address import Address, Url

_logger = logging.getLogger("ftpkit.cli")


def first_line(root: str, url: Url, *, open_to_all: bool, state: str | None = None) -> str:
    """Return what is served where, and what a client types first; it may have a token in it.

    ``state`` is the state directory, where it is not the one that commands look into.
    """
    if open_to_all:
        what = f"send a file with: ftpkit put FILE --to {url.login_url()}"
    elif url.token is not None:
        what = f"on a client: ftpkit login {url.login_url()}"
    else:
        where = "" if state is None else f" --state {escaped(os.path.abspath(state))}"
        what = f"make a link for a client with: ftpkit token add NAME{where}"
    return f"ftpkit {__version__} serves {escaped(os.path.abspath(root))} at {url} - {what}"


def warn_of_strangers(addresses: Sequence[Address], *, plain: bool, open_to_all: bool) -> None:
    """Say in the log what others on the network could do."""
    if all(is_loopback(address.host) for address in addresses):
        return
    if open_to_all:
        _logger.warning("--open: whoever reaches this port can read, change and delete all files")
    if plain:
        tokens = "" if open_to_all else ", and take the tokens"
        _logger.warning("--plain: whoever is on the way can read and change what is sent%s", tokens)


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach an IP address; names are for others."""
    try:
        return _ip(host).is_loopback
    except ValueError:
        return False


def reachable(address: Address) -> Address:
    """Return what others call this machine, where a host stands for all of its addresses."""
    if not _ip(address.host).is_unspecified:
        return address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Connecting a datagram socket sends nothing: it asks which address would be used.
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return address._replace(host=socket.gethostname())
        return address._replace(host=str(probe.getsockname()[0]))


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(text.partition("%")[0])
