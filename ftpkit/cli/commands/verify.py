"""The command ``verify``."""

from collections.abc import Iterator

import click

from ftpkit.cli.exit_codes import FAILED, Tally
from ftpkit.cli.format import directory_name, escaped, json_line
from ftpkit.cli.server_option import connected, server_options
from ftpkit.cli.settings import json_option, quiet_option
from ftpkit.client import Client
from ftpkit.net.address import Url


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@quiet_option("Print damaged files only.")
@json_option()
@server_options
def verify(names: tuple[str, ...], quiet: bool, json: bool, url: Url | None, timeout: float) -> int:
    """Have the server read each NAME and compare it with its stored digest.

    A directory stands for all files below it; the default is the root of the server. A file is
    "good", "damaged", or "unknown": it has no digest if it was not uploaded with ftpkit or has been
    modified since. The exit code is 1 if a file is damaged. What cannot be read is reported and
    counted as "failed", the command goes on, and its exit code is not 0.

    \b
    Example:  ftpkit verify backups
    """
    counts = {"good": 0, "damaged": 0, "unknown": 0}
    tally = Tally()
    with connected(url, timeout) as client:
        for top in map(directory_name, names or ("",)):
            with tally.reporting(top):
                for name in _files(client, top, tally):
                    with tally.reporting(name):
                        state = _state(client, name)
                        counts[state] += 1
                        if json:
                            click.echo(json_line({"name": name, "state": state}))
                        elif state == "damaged" or not quiet:
                            click.echo(f"{state:7}  {escaped(name)}")
    if tally.failures:
        counts["failed"] = tally.failures
    if not json and not quiet:
        click.echo(", ".join(f"{count} {state}" for state, count in counts.items()))
    return FAILED if counts["damaged"] else tally.exit_code


def _files(client: Client, top: str, tally: Tally) -> Iterator[str]:
    if client.stat(top).kind == "file":
        yield top
        return
    for entry in client.list(top, recursive=True):
        if entry.error is not None:
            tally.fail(entry.error, entry.name)
        elif entry.kind == "file":
            yield entry.name


def _state(client: Client, name: str) -> str:
    stored = client.stat(name).content_digest
    if stored is None:
        return "unknown"
    return "good" if client.digest(name, stored.partition(":")[0]) == stored else "damaged"
