"""put and get."""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

import click

from ftpkit.cli.exit_codes import InterruptedTransferError, Tally
from ftpkit.cli.output.progress import Events, Lines, Report, watched
from ftpkit.cli.server_option import connect, target_options
from ftpkit.cli.settings import COUNT, DURATION, RATE, Command, setting
from ftpkit.client import Client, TransferResult, UdpMode
from ftpkit.errors import CannotConnectError, FtpkitError, RefusedError
from ftpkit.net.address import Url

T = TypeVar("T")

retry_option = setting(
    "retry-for",
    "--retry-for",
    type=DURATION,
    metavar="TIME",
    default="10m",
    show_default=True,
    help="Try again after a lost connection until there was no progress for so long.",
)


def transfer_options(command: Command) -> Command:
    """Add what put and get have in common, beside the target."""
    options = (
        click.option("--no-overwrite", is_flag=True, help="Fail where the target exists."),
        setting(
            "rate",
            "--rate",
            type=RATE,
            metavar="RATE",
            help="Move at most so many bytes a second, like 20M or 20Mi; 0 is no limit.",
        ),
        setting(
            "jobs",
            "--jobs",
            type=COUNT,
            metavar="N",
            default="1",
            show_default=True,
            help="Move so many files at once.",
        ),
        retry_option,
        setting(
            "udp",
            "--udp",
            is_flag=True,
            help="Move blocks as UDP datagrams: for lines with loss or distance.",
        ),
        setting(
            "udp-only",
            "--udp-only",
            is_flag=True,
            help="The same, and refuse where UDP is blocked.",
        ),
        setting("quiet", "-q", "--quiet", is_flag=True, help="Print nothing but errors."),
        setting(
            "json", "--json", is_flag=True, help="Print events on stdout, one JSON object a line."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@dataclass(slots=True)
class TransferJob:
    """One file to move: its name for a person, its bytes if known, how, and how far that is."""

    name: str
    total: int | None
    move: Callable[..., TransferResult]
    submit: "Callable[..., Future[TransferResult]]"
    moved: int = 0

    def start(self, report: Report, how: Callable[..., T]) -> T:
        """Begin to move it: ``how`` is its ``move`` or its ``submit``."""

        def on_progress(moved: int, total: int) -> None:
            self.moved, self.total = moved, total
            report.moved(self.name, moved, total)

        report.start(self.name, self.total)
        return how(on_progress=on_progress, on_retry=partial(report.retrying, self.name))

    @property
    def interrupted(self) -> InterruptedTransferError:
        """Why it failed, where somebody ended it."""
        return InterruptedTransferError(self.moved, self.total or 0)


@click.command()
@click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, type=click.Path(readable=False)
)
@click.option("--as", "alias", metavar="NAME", help="The name that it gets on the server.")
@transfer_options
@target_options
def put(
    files: tuple[str, ...],
    alias: str | None,
    no_overwrite: bool,
    rate: float | None,
    jobs: int,
    retry_for: float,
    udp: bool,
    udp_only: bool,
    quiet: bool,
    json: bool,
    url: Url | None,
    timeout: float,
) -> int:
    """Upload each FILE, under the last part of its path.

    A file appears on the server in one step, when all of it has arrived and is verified.

    \b
    Example:  ftpkit put bigfile.iso --to ftpk://HOST:9021 --rate 20M
    """
    if alias is not None and len(files) > 1:
        raise click.UsageError("--as names one file, so it goes with one FILE")
    names = [alias] if alias is not None else [_last_part(os.path.abspath(file)) for file in files]
    _refuse_twins(names)
    with connect(url, timeout, rate, retry_for, _udp(udp, udp_only), jobs) as client:
        move = partial(client.put, overwrite=not no_overwrite)
        submit = partial(client.submit_put, overwrite=not no_overwrite)
        work = [
            TransferJob(
                name, _size_here(file), partial(move, file, name), partial(submit, file, name)
            )
            for file, name in zip(files, names, strict=True)
        ]
        return _move(work, jobs, json=json, quiet=quiet)


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    type=click.Path(readable=False),
    help="Where it goes: a file, or a directory that exists.",
)
@transfer_options
@target_options
def get(
    names: tuple[str, ...],
    output: str | None,
    no_overwrite: bool,
    rate: float | None,
    jobs: int,
    retry_for: float,
    udp: bool,
    udp_only: bool,
    quiet: bool,
    json: bool,
    url: Url | None,
    timeout: float,
) -> int:
    """Download each NAME into the current directory, or to PATH.

    A file appears in one step, when all of it has arrived and is verified.

    \b
    Example:  ftpkit get bigfile.iso --from ftpk://HOST:9021 -o copy.iso
    """
    if len(names) > 1 and output is not None and not os.path.isdir(output):
        raise click.UsageError("with several NAMEs, -o is a directory that exists")
    _refuse_twins([_last_part(name) for name in names])
    with connect(url, timeout, rate, retry_for, _udp(udp, udp_only), jobs) as client:
        # Only the bar of the whole has to know all sizes before the first byte.
        ask = len(names) > 1 and not json and not quiet and watched()
        move = partial(client.get, overwrite=not no_overwrite)
        submit = partial(client.submit_get, overwrite=not no_overwrite)
        work = [
            TransferJob(
                name,
                _size_there(client, name) if ask else None,
                partial(move, name, output),
                partial(submit, name, output),
            )
            for name in names
        ]
        return _move(work, jobs, json=json, quiet=quiet)


def _move(jobs: list[TransferJob], at_once: int, *, json: bool, quiet: bool) -> int:
    """Do ``at_once`` of the jobs at once, on after a failure; return the exit code."""
    with closing(_report(jobs, at_once, json=json, quiet=quiet)) as report:
        tally = _one_by_one(jobs, report) if at_once == 1 else _together(jobs, at_once, report)
    return tally.exit_code


def _one_by_one(jobs: list[TransferJob], report: Report) -> Tally:
    """Do them in this thread: many small files wait for no other."""
    tally = Tally()
    for job in jobs:
        try:
            transfer = job.start(report, job.move)
        except KeyboardInterrupt:
            report.failed(job.name, job.interrupted)
            raise
        except FtpkitError as error:
            report.failed(job.name, error)
            tally.add(error)
            if isinstance(error, CannotConnectError):
                break
        else:
            report.done(transfer)
    return tally


def _together(jobs: list[TransferJob], at_once: int, report: Report) -> Tally:
    tally, waiting = Tally(), deque(jobs)
    running: dict[Future[TransferResult], TransferJob] = {}
    # Cheaper for many small files than ``wait``, which goes through all that run.
    ended: SimpleQueue[Future[TransferResult]] = SimpleQueue()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.popleft()
                future = job.start(report, job.submit)
                running[future] = job
                future.add_done_callback(ended.put)
            future = ended.get()
            error = _tell(running.pop(future), future, report)
            if error is not None:
                tally.add(error)
            if isinstance(error, CannotConnectError):
                waiting.clear()
    except KeyboardInterrupt:
        for future in running:
            future.cancel()
        for future, job in running.items():
            _tell(job, future, report)
        raise
    return tally


def _tell(job: TransferJob, future: "Future[TransferResult]", report: Report) -> FtpkitError | None:
    """Wait until a job has ended, and tell how; return why it failed."""
    error: FtpkitError
    try:
        transfer = future.result()
    except CancelledError:
        error = job.interrupted
    except FtpkitError as failure:
        error = failure
    else:
        report.done(transfer)
        return None
    report.failed(job.name, error)
    return error


def _report(jobs: list[TransferJob], at_once: int, *, json: bool, quiet: bool) -> Report:
    if json:
        return Events()
    lines = Lines(quiet=quiet)
    if quiet or not watched():
        return lines
    from ftpkit.cli.output.bars import Bars

    return Bars(lines, [job.total or 0 for job in jobs], min(at_once, len(jobs)))


def _udp(first: bool, only: bool) -> UdpMode:
    return UdpMode.ONLY if only else UdpMode.FIRST if first else UdpMode.NO


def _last_part(path: str) -> str:
    return os.path.basename(path.rstrip("/")) or path


def _refuse_twins(names: list[str]) -> None:
    """Two files under one name would leave the last of them, without a word."""
    twins = {name for name in names if names.count(name) > 1}
    if twins:
        raise click.UsageError(f"more than one of them would be named {min(twins)}")


def _size_here(file: str) -> int | None:
    try:
        return os.stat(file).st_size
    except (OSError, ValueError):
        return None  # put says what is wrong with it


def _size_there(client: Client, name: str) -> int | None:
    try:
        return client.stat(name).total
    except RefusedError:
        return None  # get says what is wrong with it
