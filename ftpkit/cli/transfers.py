"""What ``put`` and ``get`` share: their options, and running several transfers at once."""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

import click

from ftpkit.cli.exit_codes import InterruptedTransferError, Tally, advised
from ftpkit.cli.output.progress import Events, Lines, Report, stderr_is_terminal
from ftpkit.cli.server_option import connect, retry_option
from ftpkit.cli.settings import (
    COUNT,
    RATE,
    Command,
    add_options,
    json_option,
    option,
    quiet_option,
    setting,
)
from ftpkit.client import Client, TransferResult, UdpMode
from ftpkit.errors import FtpkitError
from ftpkit.net.address import Url

T = TypeVar("T")


def transfer_options(command: Command) -> Command:
    return add_options(
        command,
        option("--no-overwrite", "Fail if the target exists.", bool),
        setting(
            "rate",
            "Limit the transfer rate, in bytes per second, like 20M or 20Mi; 0 is no limit.",
            RATE,
        ),
        setting("jobs", "Transfer up to N files at the same time.", COUNT, "1"),
        retry_option,
        setting(
            "udp", "Send blocks as UDP datagrams if possible: faster on lossy or long paths.", bool
        ),
        setting("udp-only", "Like --udp, but fail without UDP.", bool),
        quiet_option("Print errors only."),
        json_option("Print events on stdout as JSON, one object per line."),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSettings:
    """The options that ``put`` and ``get`` share; rates in bytes per second, times in seconds."""

    no_overwrite: bool
    rate: float | None
    jobs: int
    retry_for: float
    udp: bool
    udp_only: bool
    quiet: bool
    json: bool
    url: Url | None
    timeout: float

    def connect(self) -> Client:
        """Return a client of the server; it connects when it is used."""
        udp = UdpMode.ONLY if self.udp_only else UdpMode.FIRST if self.udp else UdpMode.NO
        return connect(
            self.url,
            self.timeout,
            bytes_per_s=self.rate,
            retry_for_s=self.retry_for,
            udp=udp,
            jobs=self.jobs,
        )

    @property
    def shows_bars(self) -> bool:
        return not self.json and not self.quiet and stderr_is_terminal()

    def run(
        self,
        jobs: "list[TransferJob]",
        move: Callable[..., TransferResult],
        submit: "Callable[..., Future[TransferResult]]",
    ) -> int:
        """Transfer all ``jobs``, also after one failed; return the exit code.

        ``move`` and ``submit`` are the client's two methods for one direction.
        """
        overwrite = not self.no_overwrite
        with self._report(jobs) as report:
            if self.jobs == 1:
                tally = _one_by_one(jobs, report, partial(move, overwrite=overwrite))
            else:
                tally = _together(jobs, report, partial(submit, overwrite=overwrite), self.jobs)
        return tally.exit_code

    @contextmanager
    def _report(self, jobs: "list[TransferJob]") -> Iterator[Report]:
        if self.json:
            yield Events()
        elif not self.shows_bars:
            yield Lines(quiet=self.quiet)
        else:
            # Deferred: importing tqdm is slow.
            from ftpkit.cli.output.bars import Bars

            totals = [job.total or 0 for job in jobs]
            with closing(Bars(Lines(quiet=False), totals, min(self.jobs, len(jobs)))) as bars:
                yield bars


@dataclass(slots=True)
class TransferJob:
    """One file to transfer: its name on the server, the client's arguments, and its progress."""

    name: str
    args: tuple[Any, ...]
    total: int | None
    """Bytes; None until known."""
    moved: int = 0
    advice: Mapping[str, str] = field(default_factory=dict)
    """What to do about a refusal."""

    def start(self, report: Report, method: Callable[..., T]) -> T:
        """Call ``method`` of the client, with callbacks that report progress."""

        def on_progress(moved: int, total: int) -> None:
            self.moved, self.total = moved, total
            report.moved(self.name, moved, total)

        report.start(self.name, self.total)
        on_retry = partial(report.retrying, self.name)
        return method(*self.args, on_progress=on_progress, on_retry=on_retry)

    def finish(self, report: Report, result: Callable[[], TransferResult], tally: Tally) -> None:
        """Wait for ``result``, and report it or its error."""
        try:
            with advised(self.advice):
                report.done(result())
        except (FtpkitError, CancelledError) as failure:
            error = failure if isinstance(failure, FtpkitError) else self.interrupted
            report.failed(self.name, error)
            tally.add(error)

    @property
    def interrupted(self) -> InterruptedTransferError:
        """The error of a transfer that Ctrl-C ended."""
        return InterruptedTransferError(self.moved, self.total or 0)


def last_part(path: str) -> str:
    return os.path.basename(path.rstrip("/")) or path


def reject_duplicates(names: list[str]) -> None:
    """Raise UsageError if two files would have the same name: one would replace the other."""
    if duplicates := [name for name, count in Counter(names).items() if count > 1]:
        raise click.UsageError(
            f"several files would be named {min(duplicates)}: run one command for each,"
            " with another name after --as (put) or -o (get)"
        )


def _one_by_one(
    jobs: list[TransferJob], report: Report, move: Callable[..., TransferResult]
) -> Tally:
    """Transfer in this thread: cheaper for many small files."""
    tally = Tally()
    for job in jobs:
        try:
            job.finish(report, partial(job.start, report, move), tally)
        except KeyboardInterrupt:
            report.failed(job.name, job.interrupted)
            raise
        if tally.unreachable:
            break
    return tally


def _together(
    jobs: list[TransferJob],
    report: Report,
    submit: "Callable[..., Future[TransferResult]]",
    at_once: int,
) -> Tally:
    tally, waiting = Tally(), deque(jobs)
    running: dict[Future[TransferResult], TransferJob] = {}
    # Cheaper for many small files than ``wait``, which visits every running future.
    ended: SimpleQueue[Future[TransferResult]] = SimpleQueue()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.popleft()
                future = job.start(report, submit)
                running[future] = job
                future.add_done_callback(ended.put)
            future = ended.get()
            running.pop(future).finish(report, future.result, tally)
            if tally.unreachable:
                waiting.clear()
    except KeyboardInterrupt:
        for future in running:
            future.cancel()
        for future, job in running.items():
            job.finish(report, future.result, tally)
        raise
    return tally
