"""The command group ``compare``."""

import click

from ftpkit.cli.commands.compare_framing import framing
from ftpkit.cli.commands.compare_schedules import schedules
from ftpkit.cli.commands.compare_transports import transports


@click.group(invoke_without_command=True)
@click.pass_context
def compare(ctx: click.Context) -> None:
    """Compare framing, transports and schedules side by side.

    Everything runs on this machine unless you name a server, and leaves no files behind.

    \b
    Example:  ftpkit compare framing
              ftpkit compare transports bigfile.iso --link 100M,50ms,1%
              ftpkit compare schedules --simulate
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for _command in (framing, transports, schedules):
    compare.add_command(_command)
