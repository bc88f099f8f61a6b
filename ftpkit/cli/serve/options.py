"""The options of ``serve``, and what they select: limits, account, key, logging."""

import dataclasses
import logging
from functools import partial
from typing import Any

import click

from ftpkit.cli.serve.logs import log_to_stderr
from ftpkit.cli.serve.run_as import SystemUser
from ftpkit.net.tls_identity import Identity
from ftpkit.server.limits import Limits
from ftpkit.server.workers.worker import WorkerConfig


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """The values of the command line, the variables and the settings file; ``grace`` in seconds."""

    root: str
    host: str | None
    port: int
    user: str | None
    state: str | None
    cert: str | None
    key: str | None
    plain: bool
    open: bool
    no_fsync: bool
    no_udp: bool
    limits: Limits
    workers: int
    grace: float
    verbose: bool
    quiet: bool
    log_json: bool

    @classmethod
    def parse(cls, values: dict[str, Any]) -> "ServeOptions":
        """Take the options that click has parsed; those named like a limit become ``limits``."""
        options = {
            field.name: "rate" if field.name == "bytes_per_s" else field.name.removesuffix("_s")
            for field in dataclasses.fields(Limits)
        }
        limits = Limits(**{limit: values[option] for limit, option in options.items()})
        rest = {key: value for key, value in values.items() if key not in options.values()}
        return cls(limits=limits, **rest)

    def account(self) -> SystemUser | None:
        """Return the account of --user; UsageError if there is no such account."""
        if self.user is None:
            return None
        try:
            return SystemUser.find(self.user)
        except ValueError as error:
            raise click.UsageError(f"--user: {error}") from None

    def identity(self) -> Identity | None:
        """Read the files of --cert and --key; ClickException if that fails."""
        if self.cert is None and self.key is None:
            return None
        if self.cert is None or self.key is None:
            raise click.UsageError("--cert and --key must be used together")
        try:
            return Identity.read(self.cert, self.key)
        except OSError as error:
            raise click.ClickException(f"{error.filename}: {error.strerror}") from None
        except ValueError as error:
            raise click.ClickException(str(error)) from None

    def worker_config(self, identity: Identity | None, tokens: str | None) -> WorkerConfig:
        """Return the configuration of the workers; ``tokens`` is the path of their file."""
        return WorkerConfig(
            workers=self.workers,
            limits=self.limits,
            identity=identity,
            plain=self.plain,
            tokens=tokens,
            on_start=self.logging(),
        )

    def logging(self) -> "partial[None]":
        """Return a picklable function that sets up logging."""
        level = logging.DEBUG if self.verbose else logging.WARNING if self.quiet else logging.INFO
        return partial(log_to_stderr, level=level, as_json=self.log_json)
