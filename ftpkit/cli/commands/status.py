"""The command ``status``: the server's state, once or continuously."""

import contextlib
import threading
import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Final

import click

from ftpkit.cli.exit_codes import DONE, INTERRUPTED
from ftpkit.cli.format import escaped, json_line, truncated
from ftpkit.cli.output.progress import Lines
from ftpkit.cli.output.screen import Screen, columns, is_screen
from ftpkit.cli.output.status_table import ORDERS, status_table
from ftpkit.cli.output.units import format_duration
from ftpkit.cli.server_option import connect, retry_option, server_options
from ftpkit.cli.settings import json_option, option
from ftpkit.client import Client
from ftpkit.client.retry import Backoff, OnRetry
from ftpkit.errors import FtpkitError
from ftpkit.net.address import Address, Url
from ftpkit.protocol.status import ServerStatus

INTERVAL_S: Final = 1.0
# How soon a resized terminal is redrawn.
_REDRAW_S: Final = 0.2


@click.command()
@option("--watch", "Update every second; on a terminal, q quits.", bool)
@option(
    "--sort", "Sort transfers by this column.", click.Choice(list(ORDERS)), "rate", names=["order"]
)
@json_option()
@retry_option
@server_options
def status(
    watch: bool, order: str, json: bool, retry_for: float, url: Url | None, timeout: float
) -> int:
    """Show connections and active transfers of the server.

    Prints uptime, number of connections, totals of finished transfers, and each active transfer
    with its rate over the last second and its position in the scheduler's queue. Requires a token
    with the admin permission.

    With --watch, a lost connection is retried until --retry-for has passed.

    \b
    Example:  ftpkit status --watch --sort position
    """
    client = connect(url, timeout)
    if not watch:
        with client:
            _print(client.status(), client.address, order, json=json)
        return DONE
    backoff = Backoff(retry_for)
    try:
        if is_screen() and not json:
            _Watch(client, backoff, order).run()
        else:
            with client:
                for each in poll_status(client, backoff, partial(Lines(quiet=False).retrying, "")):
                    _print(each, client.address, order, json=json)
                    if not json:
                        click.echo()
    except KeyboardInterrupt:
        return INTERRUPTED
    return DONE


def poll_status(client: Client, backoff: Backoff, on_retry: OnRetry) -> Iterator[ServerStatus]:
    """Request the status every second, reconnecting as ``backoff`` allows."""
    for number in count():
        try:
            status = client.status()
        except FtpkitError as error:
            backoff.wait(error, on_retry)
            continue
        backoff.progress(number)
        yield status
        time.sleep(INTERVAL_S)  # how often the table is refreshed, as users are told


def _print(status: ServerStatus, address: Address, order: str, *, json: bool) -> None:
    if json:
        click.echo(json_line({**status}))
    else:
        click.echo("\n".join(status_table(status, address, order, columns())))


class _Watch:
    """The screen and its keys, and a thread that polls the server."""

    def __init__(self, client: Client, backoff: Backoff, order: str) -> None:
        self._client, self._backoff, self._order = client, backoff, order
        self._address = client.address
        self._status: ServerStatus | None = None
        self._problem = ""
        self._failure: BaseException | None = None

    def run(self) -> None:
        """Show the status until the user quits; raise the error that ended the polling."""
        # A daemon thread: a request that waits for the server cannot be cancelled.
        threading.Thread(target=self._poll, name="ftpkit-status", daemon=True).start()
        # EOFError and OSError: the terminal has been closed.
        with contextlib.suppress(EOFError, OSError), Screen() as screen:
            while self._failure is None:
                screen.draw(self._lines(*screen.size))
                typed = screen.keys(_REDRAW_S)
                if "q" in typed:
                    return
                self._sort(typed)
        if self._failure is not None:
            raise self._failure

    def _poll(self) -> None:
        try:
            for status in poll_status(self._client, self._backoff, self._retrying):
                self._status, self._problem = status, ""
        except BaseException as error:  # noqa: BLE001  run() raises it
            self._failure = error

    def _retrying(self, error: FtpkitError, delay: float) -> None:
        self._problem = f"{error}; retrying in {format_duration(delay)}"

    def _sort(self, typed: str) -> None:
        names = {name[0]: name for name in ORDERS}
        for key in typed:
            self._order = names.get(key, self._order)

    def _lines(self, columns: int, rows: int) -> list[str]:
        """Return the lines of the screen: as many transfers as fit, and the keys."""
        if self._status is None:
            lines = [f"connecting to {self._address}"]
        else:
            lines = status_table(self._status, self._address, self._order, columns)
        available = rows - 2
        if len(lines) > available:
            hidden = len(lines) - available + 1
            lines = [*lines[: available - 1], f"and {hidden:,} more"]
        footer = [escaped(self._problem), _keys(self._order)]
        return [truncated(line, columns) for line in [*lines, *footer]][:rows]


def _keys(current: str) -> str:
    """Return the list of keys, with the current sort order in brackets."""
    orders = {name: f"{name[0]} {name}" for name in ORDERS}
    orders[current] = f"[{orders[current]}]"
    return "q quit, sort by: " + "  ".join(orders.values())
