"""The keyboard of a terminal, where the operating system has terminals."""

import contextlib
import os
import select
from collections.abc import Iterator
from typing import Final

try:
    import termios
    import tty
except ImportError:  # not a Unix
    termios = None  # type: ignore[assignment]  # probed below
# Terminals whose keys are heard one by one.
HAS_TERMINALS: Final = termios is not None


@contextlib.contextmanager
def unbuffered_keys(fd: int) -> Iterator[None]:
    """Hear the keys of a terminal one by one, and do not show them, until the block ends."""
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # nobody is there any more
            termios.tcsetattr(fd, termios.TCSAFLUSH, before)


def read_keys(fd: int, seconds: float) -> bytes:
    """Return what is typed within ``seconds``, perhaps nothing; EOFError where that has ended."""
    if not select.select([fd], [], [], seconds)[0]:
        return b""
    if not (typed := os.read(fd, 64)):
        raise EOFError
    return typed
