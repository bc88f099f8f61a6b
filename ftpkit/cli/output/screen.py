"""A terminal that is drawn anew again and again, as ``top`` does, and its keys."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, Final, NoReturn

import click

from ftpkit.osapi import terminal as os_terminal

# The other screen, without a cursor and without wrapping; and back again.
_ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l"
_LEAVE: Final = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_ERASE: Final = "\x1b[H\x1b[J"
# Where a terminal does not know its size.
_COLUMNS: Final = 80
_ROWS: Final = 24

Handler = Callable[[int, FrameType | None], Any]


def is_screen() -> bool:
    """Whether there is a terminal that can be drawn on, and typed at."""
    return (
        os_terminal.HAS_TERMINALS
        and sys.stdin.isatty()
        and sys.stdout.isatty()
        and os.environ.get("TERM") != "dumb"
    )


def columns() -> int | None:
    """Return how many columns stdout has; None if it is no terminal."""
    return _size()[0] if sys.stdout.isatty() else None


class Screen:
    """The whole terminal, from the start of a ``with`` block to its end.

    However the block ends, by an exception or a signal, the terminal is as it was before; so it
    is while the process is stopped.
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
        """Columns and rows, as they are now."""
        return _size()

    def draw(self, lines: Sequence[str]) -> None:
        """Show ``lines``, which fit."""
        drawn = _ERASE + "\n".join(lines)
        if drawn != self._drawn:
            self._drawn = drawn
            _write(drawn)

    def keys(self, seconds: float) -> str:
        """Return what was typed within ``seconds``, as soon as it is; EOFError at the end."""
        typed = os_terminal.read_keys(sys.stdin.fileno(), seconds)
        # An arrow, say, is no row of letters.
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
    return size.columns or _COLUMNS, size.lines or _ROWS


def _write(text: str) -> None:
    # A terminal that is gone needs no order.
    with contextlib.suppress(OSError):
        sys.stdout.write(text)
        sys.stdout.flush()
