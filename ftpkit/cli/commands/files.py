"""Look at and change what a server holds: ls, stat, mv, rm, mkdir, ping."""

from collections.abc import Callable

import click

from ftpkit.cli.exit_codes import Tally, print_error
from ftpkit.cli.format import escaped, ls_json, ls_line, stat_json, stat_lines
from ftpkit.cli.output.units import format_duration
from ftpkit.cli.server_option import connect, target_options
from ftpkit.cli.settings import setting
from ftpkit.errors import CannotConnectError, FtpkitError
from ftpkit.net.address import Url

json_option = setting("json", "--json", is_flag=True, help="Print JSON, one object a line.")


@click.command()
@click.argument("name", default="")
@click.option("-R", "--recursive", is_flag=True, help="List everything below it, too.")
@json_option
@target_options
def ls(name: str, recursive: bool, json: bool, url: Url | None, timeout: float) -> None:
    """List the directory NAME, or the server's root.

    Size, date, name: a directory ends in /, a symbolic link in @.

    \b
    Example:  ftpkit ls -R backups
    """
    line = ls_json if json else ls_line
    with connect(url, timeout) as client:
        for entry in client.list(name, recursive=recursive):
            click.echo(line(entry))


@click.command()
@click.argument("name")
@json_option
@target_options
def stat(name: str, json: bool, url: Url | None, timeout: float) -> None:
    """Show what stands under NAME.

    \b
    Example:  ftpkit stat bigfile.iso
    """
    with connect(url, timeout) as client:
        reply = client.stat(name)
    click.echo(stat_json(reply) if json else stat_lines(reply))


@click.command()
@click.argument("name")
@click.argument("to")
@click.option("--overwrite", is_flag=True, help="Replace a file that stands under TO.")
@target_options
def mv(name: str, to: str, overwrite: bool, url: Url | None, timeout: float) -> None:
    """Move NAME to TO, on the server.

    \b
    Example:  ftpkit mv bigfile.iso archive/bigfile-2026.iso
    """
    with connect(url, timeout) as client:
        client.rename(name, to, overwrite=overwrite)


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("-r", "--recursive", is_flag=True, help="Delete directories and all that is in them.")
@target_options
def rm(names: tuple[str, ...], recursive: bool, url: Url | None, timeout: float) -> int:
    """Delete each NAME: a file or an empty directory.

    \b
    Example:  ftpkit rm -r old-backups
    """
    with connect(url, timeout) as client:
        return _each(names, lambda name: client.delete(name, recursive=recursive))


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@target_options
def mkdir(names: tuple[str, ...], url: Url | None, timeout: float) -> int:
    """Make each directory NAME, with its parents.

    One that exists is fine.

    \b
    Example:  ftpkit mkdir backups/2026
    """
    with connect(url, timeout) as client:
        return _each(names, client.mkdir)


@click.command()
@target_options
def ping(url: Url | None, timeout: float) -> None:
    """Ask the server for an answer.

    Prints how long it took.

    \b
    Example:  ftpkit ping --to ftpk://HOST:9021
    """
    with connect(url, timeout) as client:
        seconds = client.ping()
    click.echo(f"{escaped(str(client.address))} answers in {format_duration(seconds)}")


def _each(names: tuple[str, ...], act: Callable[[str], object]) -> int:
    """Go through ``names``, on after a failure; return the exit code."""
    tally = Tally()
    for name in names:
        try:
            act(name)
        except CannotConnectError:
            raise
        except FtpkitError as error:
            print_error(str(error), name)
            tally.add(error)
    return tally.exit_code
