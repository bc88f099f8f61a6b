"""The first line that ``serve`` prints, and its warnings about insecure options."""

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
    """Return the directory, the address, and the command for clients; ``url`` may hold a token.

    ``state`` is the value of --state, which 'ftpkit token' then needs, too.
    """
    if open_to_all:
        what = f"to upload a file, run: ftpkit put FILE --to {url.login_url()}"
    elif url.token is not None:
        what = f"on a client, run: ftpkit login {url.login_url()}"
    else:
        where = "" if state is None else f" --state {escaped(os.path.abspath(state))}"
        what = f"to create a login URL, run: ftpkit token add NAME{where}"
    return f"ftpkit {__version__} serves {escaped(os.path.abspath(root))} at {url}; {what}"


def warn_of_exposure(addresses: Sequence[Address], *, plain: bool, open_to_all: bool) -> None:
    """Log what anyone on the network can do because of --open and --plain."""
    if all(is_loopback(address.host) for address in addresses):
        return
    if open_to_all:
        _logger.warning(
            "--open: anyone who can reach the port can read, change and delete all files"
        )
    if plain:
        tokens = "" if open_to_all else ", and steal tokens"
        _logger.warning("--plain: anyone on the network path can read and change data%s", tokens)


def is_loopback(host: str) -> bool:
    """Whether ``host`` is a loopback address; host names are not."""
    try:
        return _ip(host).is_loopback
    except ValueError:
        return False


def reachable(address: Address) -> Address:
    """Replace an unspecified address (0.0.0.0, ::) by one that clients can connect to."""
    if not _ip(address.host).is_unspecified:
        return address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Connecting a datagram socket sends nothing, but selects the local address.
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return address._replace(host=socket.gethostname())
        return address._replace(host=str(probe.getsockname()[0]))


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(text.partition("%")[0])
