"""The command ``get``."""

import os
import shutil
import sys
import tempfile
from dataclasses import replace
from typing import Any

import click

from ftpkit.cli.exit_codes import DONE
from ftpkit.cli.server_option import server_options
from ftpkit.cli.transfers import (
    TransferJob,
    TransferSettings,
    last_part,
    reject_duplicates,
    transfer_options,
)
from ftpkit.client import Client
from ftpkit.errors import Code, RefusedError


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    type=click.Path(readable=False),
    help="Write to this file, or into this directory: one that exists, or PATH/ to make it;"
    " - is the standard output.",
)
@transfer_options
@server_options
def get(names: tuple[str, ...], output: str | None, **values: Any) -> int:
    """Download each NAME into the current directory, or to PATH.

    A file appears in one step, after all of its data has arrived and been verified. So does the
    first byte on the standard output; until then the file is in the temporary directory.

    \b
    Example:  ftpkit get bigfile.iso --from ftpk://HOST:9021 -o copy.iso
    """
    options = TransferSettings(**values)
    if output == "-":
        return _print(names, options)
    to_directory = output is None or output.endswith("/") or os.path.isdir(output)
    if len(names) > 1 and not to_directory:
        raise click.UsageError("with several NAMEs, -o must be a directory: add a / to make it")
    reject_duplicates([last_part(name) for name in names])
    with options.connect() as client:
        # Only the bar of all files needs the sizes before the first byte.
        sizes_needed = len(names) > 1 and options.shows_bars
        jobs = [
            TransferJob(
                name,
                (name, output),
                _size(client, name) if sizes_needed else None,
                advice={Code.IS_A_DIRECTORY: f"name a file ('ftpkit ls {name}' lists them)"},
            )
            for name in names
        ]
        return options.run(jobs, client.get, client.submit_get)


def _print(names: tuple[str, ...], options: TransferSettings) -> int:
    """Write one file to the standard output, once all of it is verified."""
    if len(names) > 1 or options.json:
        raise click.UsageError("-o - writes one NAME to the standard output, without --json")
    with tempfile.TemporaryDirectory() as directory, options.connect() as client:
        path = os.path.join(directory, "f")
        jobs = [TransferJob(names[0], (names[0], path), None)]
        code = replace(options, quiet=True).run(jobs, client.get, client.submit_get)
        if code == DONE:
            with open(path, "rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
        return code


def _size(client: Client, name: str) -> int | None:
    try:
        return client.stat(name).total
    except RefusedError:
        return None  # the download reports the error
