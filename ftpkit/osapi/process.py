"""Processes and cores: what the operating system offers beyond plain Python, with fallbacks."""

import contextlib
import os
import signal
import sys
from typing import Final

# What a terminal, a session or a service manager sends to all processes of a group.
GROUP_SIGNALS: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
_PR_SET_PDEATHSIG: Final = 1


def is_running(pid: int) -> bool:
    """Whether there is such a process; True where that cannot be asked."""
    if os.name != "posix":  # os.kill would do something to it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is somebody else's
    return True


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def die_with_parent(parent: int) -> None:
    """End this process, by SIGKILL, when the thread that started it ends, if the system can.

    ``parent`` is the process of that thread: it may be gone already.
    """
    if sys.platform == "linux":
        import ctypes  # nobody else has a use for it

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
