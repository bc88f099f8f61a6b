"""What a failure is to a person, one line on stderr, and to a program, an exit code."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click
from click.core import ParameterSource

from ftpkit.cli.format import escaped
from ftpkit.cli.output.units import format_size
from ftpkit.errors import CannotConnectError, FtpkitError, RefusedError

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
REFUSED: Final = 3
UNREACHABLE: Final = 4
INTERRUPTED: Final = 130

EXIT_CODES: Final = """\b
Exit codes:
  0    all done
  1    a transfer failed
  2    usage: the command line or the settings are wrong
  3    refused by the server
  4    cannot connect
  130  interrupted"""


class InterruptedTransferError(FtpkitError):
    """Ctrl-C ended a transfer after ``moved`` of ``total`` bytes."""

    code = "interrupted"

    def __init__(self, moved: int, total: int) -> None:
        where = f" at {format_size(moved)} of {format_size(total)}; the same command goes on there"
        super().__init__(f"interrupted{where if moved else ''}")


def exit_code(error: FtpkitError) -> int:
    """Return the exit code that says what ``error`` is."""
    match error:
        case RefusedError():
            return REFUSED
        case CannotConnectError():
            return UNREACHABLE
        case _:
            return FAILED


class Tally:
    """Collects how the parts of one command failed, and what exit code that makes."""

    def __init__(self) -> None:
        self._codes: set[int] = set()

    def add(self, error: FtpkitError) -> None:
        """Count ``error`` in."""
        self._codes.add(exit_code(error))

    @property
    def exit_code(self) -> int:
        """0, the code of all failures, or 1 where they differ."""
        if len(self._codes) > 1:
            return FAILED
        return next(iter(self._codes), DONE)


def print_error(message: str, name: str = "") -> None:
    """Tell a person in one line on stderr, and of which file, unless the message says so."""
    # In a message a name is quoted, alone or as the end of a path.
    quoted = (repr(name), ascii(name), f"/{repr(name)[1:]}")
    if name and not any(form in message for form in quoted):
        message = f"{name}: {message}"
    click.echo(f"ftpkit: {escaped(' '.join(message.split()))}", err=True)


@contextmanager
def reported() -> Iterator[None]:
    """Make one line and an exit code of whatever a command raises.

    click's own exceptions pass, and so does a broken pipe, which click takes
    for what it is: the reader of our output has seen enough.
    """
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        print_error("interrupted")
        raise click.exceptions.Exit(INTERRUPTED) from None
    except FtpkitError as error:
        print_error(str(error))
        raise click.exceptions.Exit(exit_code(error)) from error
    except Exception as error:
        if os.environ.get("FTPKIT_DEBUG"):
            traceback.print_exc()
        kind = type(error).__name__
        print_error(f"unexpected {kind}: {error} (FTPKIT_DEBUG=1 shows where it comes from)")
        raise click.exceptions.Exit(FAILED) from error


def usage_fault(error: click.ClickException) -> str:
    """Return one sentence on what is wrong with the command line, and where help is."""
    message = error.format_message()
    if not isinstance(error, click.UsageError) or error.ctx is None:
        return message
    if type(error) is click.BadParameter:
        origin = "" if error.param is None else f"{_origin(error.ctx, error.param)}: "
        message = origin + error.message
    return f"{message.rstrip('.')} (see '{error.ctx.command_path} --help')"


def _origin(ctx: click.Context, param: click.Parameter) -> str:
    """Return where a person wrote the value of ``param``."""
    if ctx.get_parameter_source(param.name or "") is ParameterSource.ENVIRONMENT:
        return str(param.envvar)
    return "/".join(param.opts) if isinstance(param, click.Option) else param.human_readable_name
