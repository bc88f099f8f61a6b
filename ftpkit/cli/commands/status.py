"""status: what a server is doing now, once or as it goes on."""

import contextlib
import threading
import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Final

import click

from ftpkit.cli.commands.files import json_option
from ftpkit.cli.commands.transfer import retry_option
from ftpkit.cli.exit_codes import DONE, INTERRUPTED
from ftpkit.cli.format import escaped, json_line, truncated
from ftpkit.cli.output.progress import Lines
from ftpkit.cli.output.screen import Screen, columns, is_screen
from ftpkit.cli.output.status_table import ORDERS, status_table
from ftpkit.cli.output.units import format_duration
from ftpkit.cli.server_option import connect, target_options
from ftpkit.client import Client
from ftpkit.client.retry import Backoff, OnRetry
from ftpkit.errors import FtpkitError
from ftpkit.net.address import Address, Url
from ftpkit.protocol.status import ServerStatus

INTERVAL_S: Final = 1.0
# How soon a new size of the terminal is seen.
_LOOK_S: Final = 0.2


@click.command()
@click.option("--watch", is_flag=True, help="Go on each second; on a terminal, q quits.")
@click.option(
    "--sort",
    "order",
    type=click.Choice(list(ORDERS)),
    default="rate",
    show_default=True,
    help="Which transfers come first.",
)
@json_option
@retry_option
@target_options
def status(
    watch: bool, order: str, json: bool, retry_for: float, url: Url | None, timeout: float
) -> int:
    """Show what the server is doing now.

    How long it is up, how many are connected, what has ended since, and each transfer that goes
    on: its rate is that of the last second or so, its position that among those that wait for a
    turn.

    With --watch, a server that is lost is waited for as long as --retry-for says.

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
                for each in answers(client, backoff, partial(Lines(quiet=False).retrying, "")):
                    _print(each, client.address, order, json=json)
                    if not json:
                        click.echo()
    except KeyboardInterrupt:
        return INTERRUPTED
    return DONE


def answers(client: Client, backoff: Backoff, on_retry: OnRetry) -> Iterator[ServerStatus]:
    """Yield what the server says, each second, over new connections where they are lost."""
    for number in count():
        try:
            status = client.status()
        except FtpkitError as error:
            backoff.wait(error, on_retry)
            continue
        backoff.progress(number)
        yield status
        # A server does not call: it is asked anew, each second.
        time.sleep(INTERVAL_S)


def _print(status: ServerStatus, address: Address, order: str, *, json: bool) -> None:
    if json:
        click.echo(json_line({**status}))
    else:
        click.echo("\n".join(status_table(status, address, order, columns())))


class _Watch:
    """The screen, and a thread that asks the server, so that keys are heard meanwhile."""

    def __init__(self, client: Client, backoff: Backoff, order: str) -> None:
        self._client, self._backoff, self._order = client, backoff, order
        self._address = client.address
        self._status: ServerStatus | None = None
        self._trouble = ""
        self._failure: BaseException | None = None

    def run(self) -> None:
        """Show what the server says until somebody quits; raise why it says no more."""
        # It ends with the process: a call that waits for the server cannot be called off.
        threading.Thread(target=self._ask, name="ftpkit-status", daemon=True).start()
        # Who hangs up has seen enough.
        with contextlib.suppress(EOFError, OSError), Screen() as screen:
            while self._failure is None:
                screen.draw(self._lines(*screen.size))
                typed = screen.keys(_LOOK_S)
                if "q" in typed:
                    return
                self._sort(typed)
        if self._failure is not None:
            raise self._failure

    def _ask(self) -> None:
        try:
            for status in answers(self._client, self._backoff, self._retrying):
                self._status, self._trouble = status, ""
        except BaseException as error:  # noqa: BLE001  it is raised where it is shown
            self._failure = error

    def _retrying(self, error: FtpkitError, delay: float) -> None:
        self._trouble = f"{error}; retrying in {format_duration(delay)}"

    def _sort(self, typed: str) -> None:
        names = {order.letter: name for name, order in ORDERS.items()}
        for key in typed:
            self._order = names.get(key, self._order)

    def _lines(self, columns: int, rows: int) -> list[str]:
        """Return what fits: the transfers that come first, and the keys."""
        if self._status is None:
            lines = [f"asking {self._address}"]
        else:
            lines = status_table(self._status, self._address, self._order, columns)
        room = rows - 2
        if len(lines) > room:
            hidden = len(lines) - room + 1
            lines = [*lines[: room - 1], f"and {hidden:,} more"]
        foot = [escaped(self._trouble), _keys(self._order)]
        return [truncated(line, columns) for line in [*lines, *foot]][:rows]


def _keys(chosen: str) -> str:
    """Return which keys there are; the order that is ``chosen`` stands in brackets."""
    orders = {name: f"{order.letter} {name}" for name, order in ORDERS.items()}
    orders[chosen] = f"[{orders[chosen]}]"
    return "q quit, sort by: " + "  ".join(orders.values())
