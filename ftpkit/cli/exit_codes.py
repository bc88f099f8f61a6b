"""Report errors: a line on stderr, and an exit code."""

import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import click
from click.core import ParameterSource

from ftpkit.cli.format import escaped
from ftpkit.cli.output.units import format_size
from ftpkit.errors import CannotConnectError, Code, FtpkitError, RefusedError

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
REFUSED: Final = 3
UNREACHABLE: Final = 4
INTERRUPTED: Final = 130

EXIT_CODES: Final = """\b
Exit codes:
  0    success
  1    a transfer failed
  2    usage error in the command line or the settings
  3    refused by the server
  4    cannot connect
  130  interrupted"""


class InterruptedTransferError(FtpkitError):
    """Ctrl-C ended a transfer after ``moved`` of ``total`` bytes."""

    code = "interrupted"

    def __init__(self, moved: int, total: int) -> None:
        where = f" at {format_size(moved)} of {format_size(total)}; repeat the command to resume"
        super().__init__(f"interrupted{where if moved else ''}")


def exit_code(error: FtpkitError) -> int:
    if isinstance(error, RefusedError):
        return REFUSED
    return UNREACHABLE if isinstance(error, CannotConnectError) else FAILED


class Tally:
    """Collects the failures of one command, and derives its exit code."""

    def __init__(self) -> None:
        self._codes: set[int] = set()
        self.failures = 0

    def add(self, error: FtpkitError) -> None:
        self._add(exit_code(error))

    def fail(self, message: str, name: str) -> None:
        """Print and record a failure that the server reported about ``name``."""
        print_error(message, name)
        self._add(FAILED)

    @contextmanager
    def reporting(self, name: str) -> Iterator[None]:
        """Print and record a failure with ``name``; without a server, nothing can go on."""
        try:
            yield
        except CannotConnectError:
            raise
        except FtpkitError as error:
            print_error(str(error), name)
            self.add(error)

    def _add(self, code: int) -> None:
        self._codes.add(code)
        self.failures += 1

    @property
    def exit_code(self) -> int:
        """0 without failures, their code if they all have the same one, else 1."""
        if len(self._codes) > 1:
            return FAILED
        return next(iter(self._codes), DONE)

    @property
    def unreachable(self) -> bool:
        """Whether a failure was that the server cannot be reached."""
        return UNREACHABLE in self._codes


def print_error(message: str, name: str = "") -> None:
    """Print one line on stderr, prefixed with ``name`` unless the message contains it."""
    # A message quotes a name, alone or as the end of a path.
    quoted = (repr(name), ascii(name), f"/{repr(name)[1:]}")
    if name and not any(form in message for form in quoted):
        message = f"{name}: {message}"
    click.echo(f"ftpkit: {escaped(' '.join(message.split()))}", err=True)


@contextmanager
def advised(advice: Mapping[str, str]) -> Iterator[None]:
    """Add ``advice``, the option or command that helps, to a refusal with its code."""
    try:
        yield
    except RefusedError as error:
        if error.code not in advice:
            raise
        raise RefusedError(Code(error.code), f"{error}; {advice[error.code]}") from error


def run_each(names: Iterable[str], act: Callable[[str], object]) -> int:
    """Call ``act`` for each of ``names``, also after a failure; return the exit code."""
    tally = Tally()
    for name in names:
        with tally.reporting(name):
            act(name)
    return tally.exit_code


@contextmanager
def reported() -> Iterator[None]:
    """Turn an exception of a command into an error message and an exit code.

    click's own exceptions pass, and so does a broken pipe, which click handles: the reader of the
    output has closed it.
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
        if isinstance(error, FileNotFoundError) and _is_current_directory_deleted():
            print_error("the current directory was deleted: change to another one")
            raise click.exceptions.Exit(FAILED) from error
        if os.environ.get("FTPKIT_DEBUG"):
            traceback.print_exc()
        kind = type(error).__name__
        print_error(f"unexpected {kind}: {error} (set FTPKIT_DEBUG=1 to see a traceback)")
        raise click.exceptions.Exit(FAILED) from error


def _is_current_directory_deleted() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def usage_message(error: click.ClickException) -> str:
    """Return what is wrong with the command line, with a pointer to the command's help."""
    message = error.format_message()
    if not isinstance(error, click.UsageError) or error.ctx is None:
        return message
    if type(error) is click.BadParameter:
        origin = "" if error.param is None else f"{_origin(error.ctx, error.param)}: "
        message = origin + error.message
    return f"{message.rstrip('.')} (see '{error.ctx.command_path} --help')"


def _origin(ctx: click.Context, param: click.Parameter) -> str:
    """Return the name of the option, argument or variable that set ``param``."""
    if ctx.get_parameter_source(param.name or "") is ParameterSource.ENVIRONMENT:
        return str(param.envvar)
    if isinstance(param, click.Option):
        return "/".join(param.opts)
    return param.human_readable_name.strip("[].")
