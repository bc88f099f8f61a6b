"""System calls on processes, with portable fallbacks."""

import contextlib
import os
import signal
import sys
from typing import Final

try:
    import resource
except ImportError:  # not a Unix
    resource = None  # type: ignore[assignment]  # probed below

# Signals that a terminal or a service manager sends to a whole process group.
GROUP_SIGNALS: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
_DEFAULT_DESCRIPTORS: Final = 1024
_PR_SET_PDEATHSIG: Final = 1


def is_running(pid: int) -> bool:
    """Whether a process exists: kill(2) with signal 0; True on systems other than POSIX."""
    if os.name != "posix":  # there os.kill terminates the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # a process of another user
    return True


def descriptor_limit() -> int:
    """Return how many descriptors this process may have open: getrlimit(2), or 1,024."""
    if resource is None:
        return _DEFAULT_DESCRIPTORS
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def cores() -> int:
    """Return how many cores this process may use: sched_getaffinity(2), or all cores."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def die_with_parent(parent: int) -> None:
    """Have SIGKILL end this process when the thread that started it ends: prctl(2), Linux only.

    ``parent`` is that thread's process; if it has ended already, exit at once.
    """
    if sys.platform == "linux":
        import ctypes  # os does not offer the call

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
