"""The command ``get``."""

import os
from typing import Any

import click

from ftpkit.cli.server_option import server_options
from ftpkit.cli.transfers import (
    TransferJob,
    TransferOptions,
    last_part,
    reject_duplicates,
    transfer_options,
)
from ftpkit.client import Client
from ftpkit.errors import RefusedError


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    type=click.Path(readable=False),
    help="Write to this file, or into this existing directory.",
)
@transfer_options
@server_options
def get(names: tuple[str, ...], output: str | None, **values: Any) -> int:
    """Download each NAME into the current directory, or to PATH.

    A file appears in one step, after all of its data has arrived and been verified.

    \b
    Example:  ftpkit get bigfile.iso --from ftpk://HOST:9021 -o copy.iso
    """
    if len(names) > 1 and output is not None and not os.path.isdir(output):
        raise click.UsageError("with several NAMEs, -o must name an existing directory")
    reject_duplicates([last_part(name) for name in names])
    options = TransferOptions(**values)
    with options.connect() as client:
        # Only the bar of all files needs the sizes before the first byte.
        sizes_needed = len(names) > 1 and options.shows_bars
        jobs = [
            TransferJob(name, (name, output), _size(client, name) if sizes_needed else None)
            for name in names
        ]
        return options.run(jobs, client.get, client.submit_get)


def _size(client: Client, name: str) -> int | None:
    try:
        return client.stat(name).total
    except RefusedError:
        return None  # the download reports the error
