"""The keyboard of a terminal, on systems with termios."""

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
HAS_TERMINALS: Final = termios is not None


@contextlib.contextmanager
def unbuffered_keys(fd: int) -> Iterator[None]:
    """Read keys one by one without echo until the block ends: tcsetattr(3); if HAS_TERMINALS."""
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(fd, termios.TCSAFLUSH, before)


def read_keys(fd: int, seconds: float) -> bytes:
    """Return the keys typed within ``seconds``, b"" for none; EOFError at the end: select, read."""
    if not select.select([fd], [], [], seconds)[0]:
        return b""
    if not (typed := os.read(fd, 64)):
        raise EOFError
    return typed
