"""compare: the same work done in several ways, side by side."""

from dataclasses import asdict
from typing import Final

import click

from ftpkit.cli.commands.compare_schedules import schedules
from ftpkit.cli.commands.compare_transports import transports
from ftpkit.cli.commands.files import json_option
from ftpkit.cli.format import json_line
from ftpkit.cli.output.table import Column, table
from ftpkit.cli.settings import whole, word

# Kept in memory, several times over: some 200 MB at most.
MAX_MESSAGES: Final = 100_000

# The name of each transport, and what its row shows.
_FRAMING: Final = {
    "tcp": (
        "TCP, plain recv",
        "a read returns whatever bytes have come, of many messages or of half a one",
    ),
    "tcp-framed": (
        "TCP, length prefix",
        "the same kind of reads, but ftpkit's frames tell where each message ends",
    ),
    "udp": (
        "UDP datagrams",
        "a read returns one message as it was sent; what finds the (small) buffer full is lost",
    ),
}
_STICKY: Final = (
    "Sticky packets: TCP keeps bytes, not messages, so what was sent one by one comes out glued\n"
    "together or cut anywhere, unless a length before each message tells them apart."
)


@click.group(invoke_without_command=True)
@click.pass_context
def compare(ctx: click.Context) -> None:
    """Show ways to move bytes side by side.

    Everything runs on this machine unless you name a server, and leaves nothing behind.

    \b
    Example:  ftpkit compare framing
              ftpkit compare transports bigfile.iso --link 100M,50ms,1%
              ftpkit compare schedules --simulate
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@compare.command()
@click.option(
    "--messages",
    type=word(whole(1, MAX_MESSAGES), f"a whole number from 1 to {MAX_MESSAGES}"),
    metavar="N",
    default="10000",
    show_default=True,
    help=f"How many to send in each way, {MAX_MESSAGES:,} at most.",
)
@click.option(
    "--size",
    type=word(whole(4, 1024), "a number of bytes from 4 to 1024"),
    metavar="MAX",
    default="64",
    show_default=True,
    help="Their largest size in bytes, 4 to 1024; the sizes vary.",
)
@json_option
def framing(messages: int, size: int, json: bool) -> None:
    """Count sticky packets and lost datagrams.

    Sends messages as fast as possible over TCP, over TCP with ftpkit's length prefix, and as UDP
    datagrams, and counts how many came out whole, glued to others in one read, split over
    several reads, or not at all.

    \b
    Example:  ftpkit compare framing --messages 100000
    """
    # No other command has a use for it, and each should start at once.
    from ftpkit.compare.framing import compare_framing

    rows = [asdict(outcome) for outcome in compare_framing(messages, size)]
    if json:
        for row in rows:
            click.echo(json_line(row))
        return
    columns = [
        Column("transport", "", lambda transport: _FRAMING[transport][0]),
        *(Column(key, key) for key in ("messages", "reads", "whole", "glued", "split", "lost")),
    ]
    click.echo(table(columns, rows))
    click.echo()
    for name, told in _FRAMING.values():
        click.echo(f"{name}: {told}")
    click.echo()
    click.echo(_STICKY)


compare.add_command(transports)
compare.add_command(schedules)
