"""serve: run a server until a signal."""

from typing import Any

import click

from ftpkit.cli.settings import (
    COUNT,
    DURATION,
    PORT,
    RATE,
    SCHEDULE,
    SLOTS,
    TIMEOUT,
    WORKERS,
    Rereadable,
    config_option,
    setting,
    variable,
)
from ftpkit.net.address import DEFAULT_PORT


@click.command(cls=Rereadable)
@click.argument("root", envvar=variable("root"), default="inbox")
@setting(
    "host",
    "--host",
    metavar="HOST",
    show_default="every interface",
    help="The name or address to listen on.",
)
@setting(
    "port",
    "--port",
    type=PORT,
    metavar="PORT",
    default=str(DEFAULT_PORT),
    show_default=True,
    help="0 picks a free one.",
)
@setting(
    "user",
    "--user",
    metavar="NAME",
    help="Give up root's rights for those of this user, once the port is open.",
)
@setting(
    "state",
    "--state",
    metavar="DIR",
    show_default="ftpkit's directory for it in the user's home",
    help="Where the key, the certificate and the tokens are.",
)
@setting(
    "cert",
    "--cert",
    metavar="FILE",
    help="A certificate in PEM, with those that vouch for it, in place of one that is made.",
)
@setting(
    "key",
    "--key",
    metavar="FILE",
    help="Its key; links name the key, so that a certificate is best renewed with the same.",
)
@setting(
    "plain",
    "--plain",
    is_flag=True,
    help="Speak with clients without TLS as well: who is on the way can read and change all.",
)
@setting(
    "open",
    "--open",
    is_flag=True,
    help="Admit everybody without a token: who reaches the port can read, change and delete all.",
)
@setting(
    "max-connections",
    "--max-connections",
    type=COUNT,
    metavar="N",
    default="1024",
    show_default=True,
    help="Turn further clients away.",
)
@setting(
    "max-connections-per-address",
    "--max-connections-per-address",
    type=COUNT,
    metavar="N",
    default="1000",
    show_default=True,
    help="Turn further clients of the same address away.",
)
@setting(
    "idle-timeout",
    "--idle-timeout",
    type=TIMEOUT,
    metavar="TIME",
    default="5m",
    show_default=True,
    help="Close a connection that asks for nothing for so long.",
)
@setting(
    "stall-timeout",
    "--stall-timeout",
    type=TIMEOUT,
    metavar="TIME",
    default="30s",
    show_default=True,
    help="Give up on a transfer that moves no byte for so long.",
)
@setting(
    "expire-uploads",
    "--expire-uploads",
    type=DURATION,
    metavar="TIME",
    default="7d",
    show_default=True,
    help="Remove an unfinished upload that nobody went on with for so long.",
)
@setting(
    "no-fsync",
    "--no-fsync",
    is_flag=True,
    help="Acknowledge before stable storage: for scratch data that a power cut may take.",
)
@setting("no-udp", "--no-udp", is_flag=True, help="Take no datagrams on the UDP port.")
@setting(
    "rate",
    "--rate",
    type=RATE,
    metavar="RATE",
    help="Move at most so many bytes a second each way, like 100M; a little less than the line "
    "carries lets --schedule decide and not the line.",
)
@setting(
    "slots",
    "--slots",
    type=SLOTS,
    metavar="N",
    help="Let at most so many transfers move at a time; 0 is no limit.",
)
@setting(
    "schedule",
    "--schedule",
    type=SCHEDULE,
    metavar="POLICY",
    default="fair",
    show_default=True,
    help="Who moves next where --rate or --slots make transfers wait: fcfs, sjf, rr, mlfq or fair.",
)
@setting(
    "workers",
    "--workers",
    type=WORKERS,
    metavar="N",
    default="1",
    show_default=True,
    help="Serve with so many processes; auto is one for each core.",
)
@setting(
    "grace",
    "--grace",
    type=DURATION,
    metavar="TIME",
    default="30s",
    show_default=True,
    help="Let running transfers finish for so long when the server is told to stop.",
)
@setting("verbose", "-v", "--verbose", is_flag=True, help="Log more.")
@setting("quiet", "-q", "--quiet", is_flag=True, help="Log warnings and errors only.")
@setting("log-json", "--log-json", is_flag=True, help="Log JSON, one object a line.")
@config_option("FTPKIT_SERVER_CONFIG")
def serve(**values: Any) -> int:
    """Receive files and hand them out.

    ROOT is the directory that they are in; it is made if missing.  [default: inbox]

    At its first start it makes a key and a token, and prints a link: whoever has it is let in,
    over TLS. 'ftpkit token' makes links that allow less. Sockets that a service manager has opened
    are used, if there are any.

    SIGTERM and Ctrl-C end it once running transfers have finished; again, at once. SIGHUP lets it
    read its settings and its certificate again, and drops nobody.

    \b
    Example:  ftpkit serve /srv/inbox
    """
    # A client's command has no use for it, and should start at once.
    from ftpkit.cli.serve.runner import Settings, serve_until_told

    return serve_until_told(Settings(**values), click.get_current_context())
