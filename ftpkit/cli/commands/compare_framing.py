"""The command ``compare framing``."""

from dataclasses import asdict
from typing import Final

import click

from ftpkit.cli.output.table import Column, print_rows
from ftpkit.cli.settings import integer, json_option, option, parsed_by

# Limits memory to some 200 MB: the messages are kept several times over.
MAX_MESSAGES: Final = 100_000

# The name of each transport, and what its table row shows.
_TRANSPORTS: Final = {
    "tcp": (
        "TCP, plain recv",
        "one recv() returns the bytes that have arrived: several messages, or part of one",
    ),
    "tcp-framed": (
        "TCP, length prefix",
        "recv() returns the same, but the length in each frame separates the messages",
    ),
    "udp": (
        "UDP datagrams",
        "one recv() returns one message; datagrams that find the receive buffer full are lost",
    ),
}
_STICKY: Final = (
    "Sticky packets: TCP transports a stream of bytes without message boundaries, so messages\n"
    "arrive joined or split unless each is preceded by its length."
)


@click.command()
@option(
    "--messages",
    f"Send N messages over each transport, at most {MAX_MESSAGES:,}.",
    parsed_by("N", integer(1, MAX_MESSAGES), f"an integer from 1 to {MAX_MESSAGES}"),
    "10000",
)
@option(
    "--size",
    "Send messages of 4 to MAX bytes, at most 1024.",
    parsed_by("MAX", integer(4, 1024), "a number of bytes from 4 to 1024"),
    "64",
)
@json_option()
def framing(messages: int, size: int, json: bool) -> None:
    """Count sticky packets and lost datagrams.

    Sends messages as fast as possible over TCP, over TCP with ftpkit's length prefix, and as UDP
    datagrams, and counts how many arrived whole, joined with others in one read, split over
    several reads, or not at all.

    \b
    Example:  ftpkit compare framing --messages 100000
    """
    # Deferred: 'ftpkit --help' starts faster without the comparison.
    from ftpkit.compare.framing import compare_framing

    columns = [
        Column("transport", "", lambda transport: _TRANSPORTS[transport][0]),
        *(Column(key, key) for key in ("messages", "reads", "whole", "glued", "split", "lost")),
    ]
    print_rows(columns, [asdict(each) for each in compare_framing(messages, size)], json=json)
    if not json:
        click.echo()
        for name, explanation in _TRANSPORTS.values():
            click.echo(f"{name}: {explanation}")
        click.echo(f"\n{_STICKY}")
