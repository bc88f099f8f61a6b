"""Bad tokens by where they came from: whoever goes on guessing waits longer each time."""

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

_FIRST_S: Final = 0.1
_LONGEST_S: Final = 4.0
_FORGOTTEN_AFTER_S: Final = 600.0
# An enemy with more addresses than this is not slowed, but fills no memory either.
_MOST_PLACES: Final = 4096
# One customer of a provider has this much of IPv6 to himself.
_IPV6_PREFIX: Final = 64


class LoginThrottle:
    """Counts failed tries; those of one IPv4 address, or IPv6 network, together."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failed: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def failed(self, host: str) -> float:
        """Note a failed try from ``host``; return after how many seconds it is refused."""
        place, now = _place(host), self._clock()
        with self._lock:
            times, last = self._failed.pop(place, (0, now))
            if now - last >= _FORGOTTEN_AFTER_S:
                times = 0
            self._failed[place] = times + 1, now
            if len(self._failed) > _MOST_PLACES:
                self._failed.popitem(last=False)
        return _LONGEST_S if times > 10 else min(_LONGEST_S, _FIRST_S * 2**times)


def _place(host: str) -> str:
    """Return what all addresses of one stranger have in common."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 4:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), _IPV6_PREFIX), strict=False))
