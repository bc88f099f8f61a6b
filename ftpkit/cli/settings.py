"""Where a value comes from: the command line, an FTPKIT_… variable, a TOML file, the default.

click knows every option, its type and its default; nothing of that is said again here.
"""

import re
import tomllib
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource
from click.types import BoolParamType, StringParamType

from ftpkit.cli.format import escaped
from ftpkit.cli.output.units import parse_duration, parse_size
from ftpkit.net.address import Url
from ftpkit.osapi import process as os_process

T = TypeVar("T")
Command = Callable[..., int | None]
Decorator = Callable[[Command], Command]

# poll() counts a socket's timeout in milliseconds, in 31 bits: 24.8 days.
MAX_DURATION_S: Final = 24 * 86400


def word(read: Callable[[str], T], expected: str) -> Callable[[str], T]:
    """Return a click type: ``read`` raises ValueError for a word that is not ``expected``."""

    def convert(text: str) -> T:
        try:
            return read(text)
        except ValueError:
            raise click.BadParameter(f"expected {expected}, got '{escaped(text)}'") from None

    return convert


def whole(low: int, high: int) -> Callable[[str], int]:
    """Return a reader of whole numbers from ``low`` to ``high``, of nine digits at most."""

    def read(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError(text)
        return int(text)

    return read


def _rate(text: str) -> float | None:
    return parse_size(text.removesuffix("/s")) or None


def _duration(text: str) -> float:
    if (seconds := parse_duration(text)) > MAX_DURATION_S:
        raise ValueError(text)
    return seconds


def _timeout(text: str) -> float:
    if not (seconds := _duration(text)):
        raise ValueError(text)
    return seconds


def _schedule(text: str) -> str:
    # A client's command has no use for it.
    from ftpkit.scheduling.policies import POLICIES

    if text not in POLICIES:
        raise ValueError(text)
    return text


def URL(text: str) -> Url:  # noqa: N802  a click type, as those below
    """Read an address or a link; what is none is not said again, for there may be a token in it."""
    try:
        return Url.parse(text)
    except ValueError:
        raise click.BadParameter(
            "expected ftpk://HOST:PORT or a whole link, with a port from 1 to 65535"
        ) from None


PORT: Final = word(whole(0, 65535), "a port from 0 to 65535")
COUNT: Final = word(whole(1, 10**9 - 1), "a whole number from 1")
WORKERS: Final = word(
    lambda text: os_process.cores() if text == "auto" else whole(1, 1000)(text),
    "a whole number from 1 to 1000, or auto",
)
SLOTS: Final = word(
    lambda text: whole(0, 10**9 - 1)(text) or None, "a whole number, or 0 for no limit"
)
SCHEDULE: Final = word(_schedule, "fcfs, sjf, rr, mlfq or fair")
RATE: Final = word(_rate, "bytes a second like 20M or 20Mi, or 0 for no limit")
DURATION: Final = word(_duration, "a time like 30s, 10m or 7d, 24d at most")
TIMEOUT: Final = word(_timeout, "a time like 30s, 10m or 7d, over 0 and 24d at most")


def variable(key: str) -> str:
    """Return the environment variable of a key of the settings file."""
    return "FTPKIT_" + key.upper().replace("-", "_")


def setting(key: str, *flags: str, **rest: Any) -> Decorator:
    """Return an option that is also a variable and a key of the settings file."""
    name = key.replace("-", "_")
    return click.option(name, *flags, envvar=variable(key), show_envvar=True, **rest)


def settings_of(command: click.Command) -> dict[str, click.Parameter]:
    """Return the settings of ``command`` by their keys in the settings file."""
    return {
        param.name.replace("_", "-"): param
        for param in command.params
        if param.name and param.envvar and param.name != "config"
    }


def config_option(
    envvar: str, default: Callable[[], str] | None = None, where: str = ""
) -> Decorator:
    """Return the eager option that loads a settings file; only the default one may be missing."""
    return click.option(
        "--config",
        metavar="FILE",
        envvar=envvar,
        show_envvar=True,
        default=default,
        show_default=where or False,
        is_eager=True,
        expose_value=False,
        callback=_load,
        help="Read settings from this TOML file: its keys are the options that have a variable.",
    )


class Rereadable(click.Command):
    """A command whose options can be read once more, from wherever they came."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Read the options, and keep the command line."""
        return super().make_context(info_name, args, parent, obj=[*args], **extra)

    @staticmethod
    def read_again(ctx: click.Context) -> dict[str, Any]:
        """Return all values as they are now; the command line stays what it was."""
        return ctx.command.make_context(ctx.info_name, [*ctx.obj], ctx.parent).params


def _load(ctx: click.Context, param: click.Parameter, path: str | None) -> None:
    """Make the file's values the defaults of this command."""
    if path is None:
        return
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except FileNotFoundError:
        if ctx.get_parameter_source("config") is not ParameterSource.DEFAULT:
            raise _fault(ctx, path, "there is no such file") from None
        return
    except OSError as error:
        raise _fault(ctx, path, error.strerror or str(error)) from None
    except UnicodeDecodeError:
        raise _fault(ctx, path, "not TOML: expected text in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise _fault(ctx, path, f"not TOML: {error}") from None
    known = _known(ctx, param)
    for key, value in table.items():
        if key not in known:
            expected = ", ".join(sorted(known))
            raise _fault(ctx, path, f"{key}: unknown key, expected one of {expected}")
        try:
            table[key] = _checked(known[key], value, ctx)
        except click.BadParameter as error:
            raise _fault(ctx, path, f"{key}: {error.message}") from None
    own = settings_of(ctx.command)
    ctx.default_map = {str(own[key].name): value for key, value in table.items() if key in own}


def _known(ctx: click.Context, config: click.Parameter) -> dict[str, click.Parameter]:
    """Return the settings of every command that reads the same file as this one."""
    group = ctx.find_root().command
    commands = group.commands.values() if isinstance(group, click.Group) else [ctx.command]
    known = {}
    for command in commands:
        if any(
            param.name == "config" and param.envvar == config.envvar for param in command.params
        ):
            known.update(settings_of(command))
    return known


def _checked(param: click.Parameter, value: object, ctx: click.Context) -> object:
    """Return what click is to convert, or raise BadParameter: TOML has types of its own."""
    match param.type:
        case BoolParamType():
            fits, expected = isinstance(value, bool), "true or false"
        case StringParamType():
            fits, expected = isinstance(value, str), "text in quotes"
        case _:
            value = str(value)
            param.type.convert(value, param, ctx)
            return value
    if not fits:
        raise click.BadParameter(f"expected {expected}, got {value!r}")
    return value


def _fault(ctx: click.Context, path: str, message: str) -> click.UsageError:
    return click.UsageError(f"{path}: {message}", ctx)
