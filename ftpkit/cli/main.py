"""The group of all commands."""

import io
import sys
from typing import Any

import click

from ftpkit import __version__
from ftpkit.cli import exit_codes
from ftpkit.cli.commands.compare import compare
from ftpkit.cli.commands.files import ls, mkdir, mv, ping, rm, stat
from ftpkit.cli.commands.help import help_command
from ftpkit.cli.commands.hosts import hosts, login
from ftpkit.cli.commands.serve import serve
from ftpkit.cli.commands.status import status
from ftpkit.cli.commands.token import token
from ftpkit.cli.commands.transfer import get, put
from ftpkit.cli.commands.verify import verify


class Commands(click.Group):
    """A group that tells every failure in one line and gives the exit code it is known by."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run one command line and exit."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # A name that the terminal's encoding does not know must not end a listing.
                stream.reconfigure(errors="backslashreplace")
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
        except click.ClickException as error:
            exit_codes.print_error(exit_codes.usage_fault(error))
            code = error.exit_code
        except click.Abort:
            exit_codes.print_error("interrupted")
            code = exit_codes.INTERRUPTED
        sys.exit(code)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what it returns is its exit code."""
        with exit_codes.reported():
            return super().invoke(ctx)


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=exit_codes.EXIT_CODES,
)
@click.version_option(__version__, prog_name="ftpkit", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Push big files to a host: whole, verified, one port, one command on each side.

    \b
    On the host:    ftpkit serve
    On a client:    ftpkit login LINK, with the link that it prints
                    ftpkit put bigfile.iso
                    ftpkit get bigfile.iso
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for _command in (
    serve,
    token,
    login,
    hosts,
    put,
    get,
    ls,
    stat,
    mv,
    rm,
    mkdir,
    verify,
    ping,
    status,
    compare,
    help_command,
):
    main.add_command(_command)
