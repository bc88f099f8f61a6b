"""Options that can also be set by an FTPKIT_… variable or in a TOML file, and their types.

The command line takes precedence over the variable, the variable over the file.
"""

import contextlib
import re
import tomllib
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource
from click.types import BoolParamType, StringParamType

from ftpkit.cli.format import escaped
from ftpkit.cli.output.units import parse_duration, parse_rate
from ftpkit.net.address import PIN_LENGTH, Url
from ftpkit.osapi import process as os_process

T = TypeVar("T")
Command = Callable[..., int | None]
Decorator = Callable[[Command], Command]

# poll() takes a timeout in milliseconds as a 32-bit int: 24.8 days.
MAX_DURATION_S: Final = 24 * 86400


def parsed_by(
    metavar: str,
    parse: Callable[[str], T],
    expected: str,
    accepts: Callable[[T], object] = lambda _: True,
) -> Callable[[str], T]:
    """Return a click type, shown as ``metavar``.

    Text is not ``expected`` if ``parse`` raises ValueError, or ``accepts`` is false of its result.
    """

    def convert(text: str) -> T:
        with contextlib.suppress(ValueError):
            if accepts(value := parse(text)):
                return value
        raise click.BadParameter(f"expected {expected}, got '{escaped(text)}'")

    # click takes the metavar from here.
    convert.__name__ = metavar
    return convert


def integer(low: int, high: int) -> Callable[[str], int]:
    """Return a parser of integers from ``low`` to ``high``, of at most nine digits."""

    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError(text)
        return int(text)

    return parse


def decimal(text: str) -> float:
    """Parse a number of at most four digits and three decimals, like ``0.5``."""
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{0,3})?", text):
        raise ValueError(text)
    return float(text)


def _is_policy(text: str) -> bool:
    # Deferred: client commands start faster without the policies.
    from ftpkit.scheduling.policies import POLICIES

    return text in POLICIES


def URL(text: str) -> Url:  # noqa: N802  a click type, like the constants below
    """Parse an address or a login URL; an error does not repeat it, since it may hold a token."""
    try:
        return Url.parse(text)
    except ValueError:
        pin = re.match("ftpk://[^/@:]*:([^/@:]*)@", text)
        if pin is not None and len(pin[1]) != PIN_LENGTH:
            raise click.BadParameter(
                f"the pin in the URL is not {PIN_LENGTH} characters: copy the whole URL"
            ) from None
        raise click.BadParameter(
            "expected a login URL or ftpk://HOST:PORT, with a port from 1 to 65535"
        ) from None


PORT: Final = parsed_by("PORT", integer(0, 65535), "a port from 0 to 65535")
COUNT: Final = parsed_by("N", integer(1, 10**9 - 1), "an integer of at least 1")
WORKERS: Final = parsed_by(
    "N",
    lambda text: os_process.cores() if text == "auto" else integer(1, 1000)(text),
    "an integer from 1 to 1000, or auto",
)
SLOTS: Final = parsed_by(
    "N", lambda text: integer(0, 10**9 - 1)(text) or None, "an integer, or 0 for no limit"
)
SCHEDULE: Final = parsed_by("POLICY", str, "fcfs, sjf, rr, mlfq or fair", _is_policy)
RATE: Final = parsed_by(
    "RATE",
    lambda text: parse_rate(text) or None,
    "bytes per second like 20M or 20Mi, or 0 for no limit",
)
DURATION: Final = parsed_by(
    "TIME",
    parse_duration,
    "a time like 30s, 10m or 7d, at most 24d",
    lambda seconds: seconds <= MAX_DURATION_S,
)
TIMEOUT: Final = parsed_by(
    "TIME",
    parse_duration,
    "a time like 30s, 10m or 7d, more than 0 and at most 24d",
    lambda seconds: 0 < seconds <= MAX_DURATION_S,
)


def variable(key: str) -> str:
    """Return the environment variable of a key of the settings file."""
    return "FTPKIT_" + key.upper().replace("-", "_")


def option(
    flag: str,
    text: str,
    kind: Any = None,
    default: object = None,
    names: Sequence[str] = (),
    **rest: Any,
) -> Decorator:
    """Return an option with the help ``text``, and click type ``kind``; its default is shown.

    bool makes it a flag without a value. ``names`` are its parameter and further flags.
    """
    if default is not None:
        rest = {"default": default, "show_default": True, **rest}
    return click.option(flag, *names, type=kind, is_flag=kind is bool, help=text, **rest)


def setting(
    key: str,
    text: str,
    kind: Any = None,
    default: object = None,
    flags: Sequence[str] = (),
    **rest: Any,
) -> Decorator:
    """Return an option that is also an environment variable and a key of the settings file.

    ``flags`` is ``--key`` unless given.
    """
    flag, *others = flags or (f"--{key}",)
    names = (key.replace("-", "_"), *others)
    source = {"envvar": variable(key), "show_envvar": True}
    return option(flag, text, kind, default, names, **source, **rest)


def add_options(command: Command, *options: Decorator) -> Command:
    """Add ``options`` to ``command``; --help lists them in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def json_option(text: str = "Print JSON, one object per line.") -> Decorator:
    return setting("json", text, bool)


def quiet_option(text: str) -> Decorator:
    return setting("quiet", text, bool, flags=("-q", "--quiet"))


def settings_of(command: click.Command) -> dict[str, click.Parameter]:
    """Return the options of ``command`` that are settings, by their keys in the settings file."""
    return {
        param.name.replace("_", "-"): param
        for param in command.params
        if param.name and param.envvar and param.name != "config"
    }


def config_option(
    envvar: str, default: Callable[[], str | None] | None = None, where: str = ""
) -> Decorator:
    """Return the option that loads a settings file; only the default file may be missing.

    It is eager: the file's values are the defaults of the options parsed after it.
    """
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
        help="Read settings from this TOML file; its keys are the options that list a variable.",
    )


class ReloadableCommand(click.Command):
    """A command whose variables and settings file can be read again."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        return super().make_context(info_name, args, parent, obj=[*args], **extra)

    @staticmethod
    def reload(ctx: click.Context) -> dict[str, Any]:
        """Return the current values of all options, with the original command line."""
        return ctx.command.make_context(ctx.info_name, [*ctx.obj], ctx.parent).params


def _load(ctx: click.Context, param: click.Parameter, path: str | None) -> None:
    """Make the values in the file the defaults of this command."""
    if path is None:
        return
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        default = ctx.get_parameter_source("config") is ParameterSource.DEFAULT
        if default and isinstance(error, FileNotFoundError):
            return
        raise _fault(ctx, path, error.strerror or str(error)) from None
    except UnicodeDecodeError:
        raise _fault(ctx, path, "invalid TOML: not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise _fault(ctx, path, f"invalid TOML: {error}") from None
    own = settings_of(ctx.command)
    known = own if own.keys() >= table.keys() else _settings_of_all(ctx, param)
    for key, value in table.items():
        if key not in known:
            expected = ", ".join(sorted(known))
            raise _fault(ctx, path, f"{key}: unknown key, expected one of {expected}")
        try:
            table[key] = _checked(known[key], value, ctx)
        except click.BadParameter as error:
            raise _fault(ctx, path, f"{key}: {error.message}") from None
    ctx.default_map = {str(own[key].name): value for key, value in table.items() if key in own}


def _settings_of_all(ctx: click.Context, config: click.Parameter) -> dict[str, click.Parameter]:
    """Return the settings of all commands that read the same file as this one."""
    group = ctx.find_root().command
    known = settings_of(ctx.command)
    if isinstance(group, click.Group):
        for name in group.list_commands(ctx):
            command = group.get_command(ctx, name)
            if command and any(each.envvar == config.envvar for each in command.params):
                known.update(settings_of(command))
    return known


def _checked(param: click.Parameter, value: object, ctx: click.Context) -> object:
    """Return ``value`` as click expects it; raise BadParameter if its TOML type is wrong."""
    match param.type:
        case BoolParamType():
            fits, expected = isinstance(value, bool), "true or false"
        case StringParamType():
            fits, expected = isinstance(value, str), "a quoted string"
        case _:
            value = str(value)
            param.type.convert(value, param, ctx)
            return value
    if not fits:
        raise click.BadParameter(f"expected {expected}, got {value!r}")
    return value


def _fault(ctx: click.Context, path: str, message: str) -> click.UsageError:
    return click.UsageError(f"--config: {path}: {message}", ctx)
