"""What a test must give back: threads and file descriptors."""

import gc
import os
import threading
from dataclasses import dataclass
from typing import Final

_ENDING_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Held:
    """The threads and descriptors of this process at one moment."""

    threads: frozenset[threading.Thread]
    descriptors: frozenset[tuple[int, str]]

    @classmethod
    def now(cls) -> "Held":
        """Look at the process; where there is no /proc, at its threads alone."""
        return cls(frozenset(threading.enumerate()), frozenset(_descriptors()))

    def leaked_since(self, before: "Held") -> list[str]:
        """Say what has come since ``before`` and is still there."""
        threads = [
            f"thread {thread.name}"
            for thread in self.threads - before.threads
            if thread.is_alive() and (not thread.daemon or _is_ours(thread))
        ]
        numbers = {number for number, _ in before.descriptors}
        files = [
            f"descriptor {number}: {target}"
            for number, target in self.descriptors
            if number not in numbers
        ]
        return sorted(threads) + sorted(files)


def leaked_since(before: Held) -> list[str]:
    """Say what leaked since ``before``; only what no collection of garbage frees.

    The thread of a connection that has ended by itself has a few steps left
    when its server may already have stopped.
    """
    leaked = Held.now().leaked_since(before)
    if leaked:
        gc.collect()
        for thread in set(threading.enumerate()) - before.threads:
            if _is_ours(thread):
                thread.join(_ENDING_S)
        leaked = Held.now().leaked_since(before)
    return leaked


def _is_ours(thread: threading.Thread) -> bool:
    # socketserver names its threads after their target.
    return thread.name.startswith("ftpkit-") or "process_request_thread" in thread.name


def _descriptors() -> list[tuple[int, str]]:
    found = []
    try:
        numbers = os.listdir("/proc/self/fd")
    except OSError:
        return []
    for number in numbers:
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:  # the one that listed them
            continue
        if not target.startswith("/proc/"):
            found.append((int(number), target))
    return found
