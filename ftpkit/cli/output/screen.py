"""A full-screen display like that of ``top``, and its keys."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, Final, NoReturn

import click

from ftpkit.osapi import terminal as os_terminal

# Switch to the alternate screen, hide the cursor, turn off wrapping; and the reverse.
_ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l"
_LEAVE: Final = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_ERASE: Final = "\x1b[H\x1b[J"
# For a terminal that reports no size.
COLUMNS: Final = 80
ROWS: Final = 24

Handler = Callable[[int, FrameType | None], Any]


def is_screen() -> bool:
    """Whether stdin and stdout are a terminal with cursor control."""
    return (
        os_terminal.HAS_TERMINALS
        and sys.stdin.isatty()
        and sys.stdout.isatty()
        and os.environ.get("TERM") != "dumb"
    )


def columns() -> int | None:
    """Return the width of stdout; None if it is not a terminal."""
    return _size()[0] if sys.stdout.isatty() else None


class Screen:
    """Occupies the whole terminal during a ``with`` block.

    The terminal is restored when the block ends, also by an exception or a signal, and while the
    process is stopped by Ctrl-Z.
    """

    def __init__(self) -> None:
        self._undo = contextlib.ExitStack()
        self._drawn = ""

    def __enter__(self) -> "Screen":
        with contextlib.ExitStack() as undo:
            undo.enter_context(_handled(_end, signal.SIGTERM, signal.SIGHUP))
            undo.enter_context(_handled(self._pause, signal.SIGTSTP))
            undo.enter_context(os_terminal.unbuffered_keys(sys.stdin.fileno()))
            undo.callback(_write, _LEAVE)
            _write(_ENTER)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo.close()

    @property
    def size(self) -> tuple[int, int]:
        """The current columns and rows."""
        return _size()

    def draw(self, lines: Sequence[str]) -> None:
        """Show ``lines``, which must fit on the screen."""
        drawn = _ERASE + "\n".join(lines)
        if drawn != self._drawn:
            self._drawn = drawn
            _write(drawn)

    def keys(self, seconds: float) -> str:
        """Wait up to ``seconds`` for keys, and return them; EOFError if the terminal is closed."""
        typed = os_terminal.read_keys(sys.stdin.fileno(), seconds)
        # An escape sequence, like that of an arrow key, stands for no letters.
        return "" if typed.startswith(b"\x1b") else typed.decode("ascii", "replace")

    def _pause(self, _number: int, _frame: FrameType | None) -> None:
        self._undo.close()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._drawn = ""
        self.__enter__()


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    raise click.exceptions.Exit(128 + number)


@contextlib.contextmanager
def _handled(handler: Handler, *signals: int) -> Iterator[None]:
    before: dict[int, Any] = {each: signal.signal(each, handler) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _size() -> tuple[int, int]:
    size = os.get_terminal_size(sys.stdout.fileno())
    return size.columns or COLUMNS, size.lines or ROWS


def _write(text: str) -> None:
    # The terminal may be closed.
    with contextlib.suppress(OSError):
        sys.stdout.write(text)
        sys.stdout.flush()
