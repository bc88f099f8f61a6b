"""The command ``ftpkit``, a group of all commands."""

import io
import os
import sys
from importlib import import_module
from typing import Any, Final

import click

from ftpkit import __version__
from ftpkit.cli import exit_codes

_COMMANDS: Final = (
    "serve",
    "token",
    "login",
    "hosts",
    "put",
    "get",
    "ls",
    "stat",
    "mv",
    "rm",
    "mkdir",
    "verify",
    "ping",
    "status",
    "compare",
    "help",
)


class Commands(click.Group):
    """A group that imports a command when it is used, and reports each error in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import the module of a command, and return its function of the same name."""
        if name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"ftpkit.cli.commands.{name}"), name)
        return command

    def main(self, *args: Any, **extra: Any) -> Any:
        _open_closed_streams()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # A name that the terminal's encoding lacks must not end a listing.
                stream.reconfigure(errors="backslashreplace")
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
        except click.ClickException as error:
            exit_codes.print_error(exit_codes.usage_message(error))
            code = error.exit_code
        except click.Abort:
            exit_codes.print_error("interrupted")
            code = exit_codes.INTERRUPTED
        sys.exit(code)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; its return value is the exit code."""
        with exit_codes.reported():
            return super().invoke(ctx)


def _open_closed_streams() -> None:
    """Open /dev/null for each standard stream that was closed when the process began.

    They get the descriptors 0 to 2, which files and sockets would get otherwise.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  until the process ends


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=exit_codes.EXIT_CODES,
)
@click.version_option(__version__, prog_name="ftpkit", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Transfer large files to and from a server, verified, over a single port.

    \b
    On the server:  ftpkit serve
    On a client:    ftpkit login URL       the login URL that 'ftpkit serve' prints
                    ftpkit put bigfile.iso
                    ftpkit get bigfile.iso

    'ftpkit COMMAND --help' shows the options of a command, 'ftpkit help' lists the manual pages,
    and 'ftpkit help TOPIC' shows one.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
