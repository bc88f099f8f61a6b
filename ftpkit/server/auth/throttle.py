"""Delays for failed logins, which grow exponentially per client address."""

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

_FIRST_DELAY_S: Final = 0.1
_MAX_DELAY_S: Final = 4.0
_FORGET_AFTER_S: Final = 600.0
# Bounds the memory: an attacker with more addresses than this is not delayed.
_MAX_CLIENTS: Final = 4096
# Providers commonly assign a whole /64 to one customer.
_IPV6_PREFIX: Final = 64


class LoginThrottle:
    """Counts failed logins for each IPv4 address and each IPv6 /64 network."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def failed(self, host: str) -> float:
        """Note a failed login from ``host``; return the seconds by which to delay the reply."""
        client, now = _client_of(host), self._clock()
        with self._lock:
            failures, last = self._failures.pop(client, (0, now))
            if now - last >= _FORGET_AFTER_S:
                failures = 0
            self._failures[client] = failures + 1, now
            if len(self._failures) > _MAX_CLIENTS:
                self._failures.popitem(last=False)
        return _MAX_DELAY_S if failures > 10 else min(_MAX_DELAY_S, _FIRST_DELAY_S * 2**failures)


def _client_of(host: str) -> str:
    """Return the address or network that stands for one client."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 4:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), _IPV6_PREFIX), strict=False))
