"""The command ``put``."""

import os
from typing import Any

import click

from ftpkit.cli.exit_codes import print_error
from ftpkit.cli.server_option import server_options
from ftpkit.cli.transfers import (
    TransferJob,
    TransferSettings,
    last_part,
    reject_duplicates,
    transfer_options,
)
from ftpkit.errors import Code
from ftpkit.protocol.fields import nearest_time


@click.command()
@click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, type=click.Path(readable=False)
)
@click.option("--as", "alias", metavar="NAME", help="Store FILE under this name on the server.")
@transfer_options
@server_options
def put(files: tuple[str, ...], alias: str | None, **values: Any) -> int:
    """Upload each FILE under the last component of its path.

    A file appears on the server in one step, after all of its data has arrived and been verified.

    \b
    Example:  ftpkit put bigfile.iso --to ftpk://HOST:9021 --rate 20M
    """
    if alias is not None and len(files) > 1:
        raise click.UsageError("--as can only be used with a single FILE")
    names = [alias] if alias is not None else [last_part(os.path.abspath(file)) for file in files]
    reject_duplicates(names)
    options = TransferSettings(**values)
    exists: dict[str, str] = {Code.EXISTS: "leave out --no-overwrite to replace it"}
    advice = exists if options.no_overwrite else {}
    with options.connect() as client:
        jobs = [
            TransferJob(name, (file, name), _size(file), advice=advice)
            for file, name in zip(files, names, strict=True)
        ]
        return options.run(jobs, client.put, client.submit_put)


def _size(file: str) -> int | None:
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return None  # the upload reports the error
    if nearest_time(status.st_mtime_ns) != status.st_mtime_ns:
        print_error("its modification time is outside 1677 to 2262; the nearest is stored", file)
    return status.st_size
